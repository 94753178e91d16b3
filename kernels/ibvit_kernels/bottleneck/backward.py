"""Backward kernel: one program owns one head and walks over tiles of tokens, recomputing everything from y and the key.

The gradients of the head's weights stay in registers over the whole walk; each program writes its part once, and the
parts are summed afterwards in a fixed order: no atomics, the same bits every time. What does not fit into registers at
once is left to further launches of the same kernel: the flags say which gradients a launch makes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ibvit_kernels.bottleneck.arithmetic import LOG2E, gelu_and_slope, latent_of_column, standard_normal


@triton.jit(do_not_specialize=["block", "rows", "tokens"])
def backward_kernel(
    d_update: tl.tensor,  # [B·N, C]
    d_kl: tl.tensor,  # [B, H, N] float32
    y: tl.tensor,  # [B·N, H·D]
    weights: tl.tensor,  # [H, W1 | W2 | W3 | merged]
    biases: tl.tensor,  # float32: [H, b1 | b2 | b3], then the output's [CP]
    key: tl.tensor,  # [3] int64: seed, step, first sample
    d_y: tl.tensor,  # [B·N, H·D], out if INPUT
    parts: tl.tensor,  # [splits, w1 | b1 | w2 | b2 | w3 | b3 | merged | bias] float32, out; all heads of each
    block: tl.tensor,  # index of the transformer block
    rows: tl.tensor,  # B·N
    tokens: tl.tensor,  # N
    H: tl.constexpr,
    D: tl.constexpr,
    C: tl.constexpr,
    HIDDEN: tl.constexpr,
    LATENT: tl.constexpr,
    HP: tl.constexpr,  # hidden, padded
    LP: tl.constexpr,  # latent, padded
    CP: tl.constexpr,  # C, padded
    ROWS: tl.constexpr,  # tokens of a step
    WIDE: tl.constexpr,  # columns of d_update are read in groups of WIDE + NARROW
    NARROW: tl.constexpr,
    STAGES: tl.constexpr,
    RELOAD: tl.constexpr,  # read the weights for each product anew: held on chip, they would not fit
    INPUT: tl.constexpr,  # make d_y and the gradients of w1, b1
    POSTERIOR: tl.constexpr,  # of w2, b2
    DECODER: tl.constexpr,  # of w3, b3
    MERGED: tl.constexpr,  # of the merged map and of the output's bias, in this program's column group
) -> None:
    W2_AT: tl.constexpr = D * HP
    W3_AT: tl.constexpr = W2_AT + 2 * HP * LP
    MERGED_AT: tl.constexpr = W3_AT + LP * HP
    CHAIN: tl.constexpr = INPUT or POSTERIOR or DECODER
    GROUP: tl.constexpr = WIDE + NARROW
    dtype: tl.constexpr = y.dtype.element_ty
    head = tl.program_id(0)
    split = tl.program_id(1)
    first = tl.program_id(2) * GROUP if MERGED else 0

    local = tl.arange(0, ROWS)
    d = tl.arange(0, D)
    hidden = tl.arange(0, HP)
    latent_column = tl.arange(0, LP)
    pair = tl.arange(0, 2 * LP)
    wide = tl.arange(0, WIDE)
    ones = tl.full([16, ROWS], 1.0, dtype)  # the sum over tokens as a product: a bias is the weight of a constant input

    w = weights + head * (MERGED_AT + HP * CP)
    b = biases + head * (2 * HP + 2 * LP)
    w1 = _held(w, d[:, None] * HP + hidden, RELOAD)
    w2 = _held(w, W2_AT + hidden[:, None] * (2 * LP) + pair, RELOAD)
    w3 = _held(w, W3_AT + latent_column[:, None] * HP + hidden, RELOAD)
    at_merged = MERGED_AT + hidden[:, None] * CP
    merged = w + at_merged
    if NARROW > 0:
        narrow = WIDE + tl.arange(0, NARROW)
    if CHAIN:
        merged_wide = _held(w, at_merged + wide, RELOAD)
        if NARROW > 0:
            merged_narrow = _held(w, at_merged + narrow, RELOAD)
    seed = tl.load(key)
    step = tl.load(key + 1)
    first_sample = tl.load(key + 2)

    if INPUT:
        d_w1 = tl.zeros([D, HP], tl.float32)
        d_b1 = tl.zeros([16, HP], tl.float32)
    if POSTERIOR:
        d_w2 = tl.zeros([2 * LP, HP], tl.float32)
        d_b2 = tl.zeros([16, 2 * LP], tl.float32)
    if DECODER:
        d_w3 = tl.zeros([HP, LP], tl.float32)
        d_b3 = tl.zeros([16, HP], tl.float32)
    if MERGED:
        d_wide = tl.zeros([WIDE, HP], tl.float32)
        d_bias_wide = tl.zeros([16, WIDE], tl.float32)
        if NARROW > 0:
            d_narrow = tl.zeros([NARROW, HP], tl.float32)
            d_bias_narrow = tl.zeros([16, NARROW], tl.float32)

    for tile in tl.range(split, tl.cdiv(rows, ROWS), tl.num_programs(1), num_stages=STAGES, disable_licm=True):
        row = tile * ROWS + local
        # b and w themselves: made outside the loop, b's addresses would take 48 registers, and w be read there.
        b_here, w_here, w_again = b + (tile >> 31), w + (tile >> 31), w + (tile >> 30)
        real_row = row < rows
        image = row // tokens
        token = row - image * tokens

        out = d_update + row.to(tl.int64)[:, None] * C + first
        d_out_wide = tl.load(out + wide, mask=real_row[:, None] & (first + wide < C)[None, :], other=0.0)
        if NARROW > 0:
            d_out_narrow = tl.load(out + narrow, mask=real_row[:, None] & (first + narrow < C)[None, :], other=0.0)
        if CHAIN:
            d_g = tl.dot(d_out_wide, tl.trans(_weight(w_here, merged_wide, RELOAD)), input_precision="tf32x3")
            if NARROW > 0:
                merged_here = _weight(w_here, merged_narrow, RELOAD)
                d_g = tl.dot(d_out_narrow, tl.trans(merged_here), d_g, input_precision="tf32x3")
            for group in tl.range(GROUP, CP, GROUP):
                real = real_row[:, None] & (group + wide < C)[None, :]
                d_out = tl.load(out + (group + wide), mask=real, other=0.0)
                d_g = tl.dot(d_out, tl.trans(tl.load(merged + (group + wide))), d_g, input_precision="tf32x3")
                if NARROW > 0:
                    real = real_row[:, None] & (group + narrow < C)[None, :]
                    d_out = tl.load(out + (group + narrow), mask=real, other=0.0)
                    d_g = tl.dot(d_out, tl.trans(tl.load(merged + (group + narrow))), d_g, input_precision="tf32x3")

        if INPUT or POSTERIOR:
            at_kl = (image.to(tl.int64) * H + head) * tokens + token
            price = tl.load(d_kl + at_kl, mask=real_row, other=0.0)[:, None]
        at_y = row.to(tl.int64)[:, None] * (H * D) + (head * D + d)
        y_h = tl.load(y + at_y, mask=real_row[:, None], other=0.0)
        before_a = tl.dot(y_h, _weight(w_here, w1, RELOAD), input_precision="tf32x3") + tl.load(b_here + hidden)
        a, slope1 = gelu_and_slope(before_a)
        a = a.to(dtype)
        slope1 = _shrink(slope1, ROWS, HP, dtype)
        posterior = tl.dot(a, _weight(w_here, w2, RELOAD), input_precision="tf32x3") + tl.load(b_here + HP + pair)
        mu, raw_logvar = tl.split(tl.permute(tl.reshape(posterior, [ROWS, 2, LP]), [0, 2, 1]))
        inside = (raw_logvar > -10.0) & (raw_logvar < 10.0)
        logvar = tl.clamp(raw_logvar, -10.0, 10.0, propagate_nan=tl.PropagateNan.ALL)
        sigma = tl.exp2(logvar * (0.5 * LOG2E))
        noise = sigma * standard_normal(seed, step, first_sample + image, token, block, head, ROWS, LP)
        z = (mu + noise).to(dtype)
        pull_logvar = tl.where(inside, 0.5 * (sigma * sigma - 1.0), 0.0)
        noise = tl.where(inside, 0.5 * noise, 0.0)
        if INPUT or POSTERIOR:
            mu *= price
            pull_logvar *= price
        before_g = tl.dot(z, _weight(w_here, w3, RELOAD), input_precision="tf32x3")
        g, slope3 = gelu_and_slope(before_g + tl.load(b_here + HP + 2 * LP + hidden))
        g = g.to(dtype)

        if MERGED:
            d_wide = tl.dot(tl.trans(d_out_wide), g, d_wide, input_precision="tf32x3")
            d_bias_wide = tl.dot(ones, d_out_wide, d_bias_wide, input_precision="tf32x3")
            if NARROW > 0:
                d_narrow = tl.dot(tl.trans(d_out_narrow), g, d_narrow, input_precision="tf32x3")
                d_bias_narrow = tl.dot(ones, d_out_narrow, d_bias_narrow, input_precision="tf32x3")
        if CHAIN:
            d_g = (d_g * slope3).to(dtype)
            if DECODER:
                d_w3 = tl.dot(tl.trans(d_g), z, d_w3, input_precision="tf32x3")
                d_b3 = tl.dot(ones, d_g, d_b3, input_precision="tf32x3")
        if INPUT or POSTERIOR:
            d_z = tl.dot(d_g, tl.trans(_weight(w_again, w3, RELOAD)), input_precision="tf32x3")
            d_mu = d_z + mu
            d_logvar = d_z * noise + pull_logvar
            d_posterior = tl.reshape(tl.permute(tl.join(d_mu, d_logvar), [0, 2, 1]), [ROWS, 2 * LP]).to(dtype)
            if POSTERIOR:
                d_w2 = tl.dot(tl.trans(d_posterior), a, d_w2, input_precision="tf32x3")
                d_b2 = tl.dot(ones, d_posterior, d_b2, input_precision="tf32x3")
        if INPUT:
            d_a = tl.dot(d_posterior, tl.trans(_weight(w_again, w2, RELOAD)), input_precision="tf32x3")
            d_a = (d_a * _grow(slope1, ROWS, HP, dtype)).to(dtype)
            d_w1 = tl.dot(tl.trans(y_h), d_a, d_w1, input_precision="tf32x3")
            d_b1 = tl.dot(ones, d_a, d_b1, input_precision="tf32x3")
            d_y_h = tl.dot(d_a, tl.trans(_weight(w_again, w1, RELOAD)), input_precision="tf32x3")
            row_again = row + (tile >> 31)  # row itself; its addresses need not live through the step
            at_y = row_again.to(tl.int64)[:, None] * (H * D) + (head * D + d)
            tl.store(d_y + at_y, d_y_h.to(dtype), mask=(row_again < rows)[:, None])

    B1_AT: tl.constexpr = H * D * HIDDEN
    PART_W2: tl.constexpr = B1_AT + H * HIDDEN
    B2_AT: tl.constexpr = PART_W2 + H * HIDDEN * 2 * LATENT
    PART_W3: tl.constexpr = B2_AT + H * 2 * LATENT
    B3_AT: tl.constexpr = PART_W3 + H * LATENT * HIDDEN
    PART_MERGED: tl.constexpr = B3_AT + H * HIDDEN
    BIAS_AT: tl.constexpr = PART_MERGED + H * HIDDEN * C
    part = parts + split.to(tl.int64) * (BIAS_AT + C)
    real_hidden = hidden < HIDDEN
    latent = latent_of_column(LP)
    if INPUT:
        tl.store(part + (head * D + d)[:, None] * HIDDEN + hidden, d_w1, mask=real_hidden[None, :])
        _store_row(part + B1_AT + head * HIDDEN + hidden, d_b1, real_hidden)
    if POSTERIOR:
        at = tl.where(pair < LP, 0, LATENT) + latent_of_column(2 * LP) % LP
        real = latent_of_column(2 * LP) % LP < LATENT
        at_w2 = part + PART_W2 + (head * HIDDEN + hidden)[None, :] * (2 * LATENT) + at[:, None]
        tl.store(at_w2, d_w2, mask=real[:, None] & real_hidden[None, :])
        _store_row(part + B2_AT + head * 2 * LATENT + at, d_b2, real)
    if DECODER:
        real = (latent < LATENT)[None, :] & real_hidden[:, None]
        tl.store(part + PART_W3 + (head * LATENT + latent)[None, :] * HIDDEN + hidden[:, None], d_w3, mask=real)
        _store_row(part + B3_AT + head * HIDDEN + hidden, d_b3, real_hidden)
    if MERGED:
        column = first + wide
        at = part + PART_MERGED + (head * HIDDEN + hidden)[None, :] * C
        tl.store(at + column[:, None], d_wide, mask=real_hidden[None, :] & (column < C)[:, None])
        _store_row(part + BIAS_AT + column, d_bias_wide, column < tl.where(head == 0, C, 0))
        if NARROW > 0:
            column = first + narrow
            tl.store(at + column[:, None], d_narrow, mask=real_hidden[None, :] & (column < C)[:, None])
            _store_row(part + BIAS_AT + column, d_bias_narrow, column < tl.where(head == 0, C, 0))


@triton.jit
def _held(w: tl.tensor, at: tl.tensor, RELOAD: tl.constexpr) -> tl.tensor:
    """Weights, or where they lie: what `_weight` makes weights of."""
    return at if RELOAD else tl.load(w + at)


@triton.jit
def _weight(w: tl.tensor, held: tl.tensor, RELOAD: tl.constexpr) -> tl.tensor:
    return tl.load(w + held) if RELOAD else held


@triton.jit
def _shrink(slope: tl.tensor, ROWS: tl.constexpr, HP: tl.constexpr, dtype: tl.constexpr) -> tl.tensor:
    """A tile of GELU's slopes, all within ±2, in half its registers: 16-bit fixed point, good to 2⁻¹⁵.

    Adding 1.5·2²³ leaves the rounded integer in the low bits of a float32. float32 tiles stay as they are.
    """
    if dtype == tl.float32:
        return slope
    else:
        fixed = (slope * 16384.0 + 12582912.0).to(tl.uint32, bitcast=True)
        low, high = tl.split(tl.permute(tl.reshape(fixed, [ROWS, 2, HP // 2]), [0, 2, 1]))
        return (low & 0xFFFF) | (high << 16)


@triton.jit
def _grow(packed: tl.tensor, ROWS: tl.constexpr, HP: tl.constexpr, dtype: tl.constexpr) -> tl.tensor:
    if dtype == tl.float32:
        return packed
    else:
        low = ((packed & 0xFFFF) ^ 0x4B008000).to(tl.float32, bitcast=True)
        high = ((packed >> 16) ^ 0x4B008000).to(tl.float32, bitcast=True)
        fixed = tl.reshape(tl.permute(tl.join(low, high), [0, 2, 1]), [ROWS, HP])
        return fixed * (1.0 / 16384.0) - 8421376.0 / 16384.0


@triton.jit
def _store_row(target: tl.tensor, value: tl.tensor, real: tl.tensor) -> None:
    """Store one of 16 equal rows."""
    tl.store(target, tl.sum(value, axis=0) * 0.0625, mask=real)
