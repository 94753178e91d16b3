"""Backward kernel: a program owns one head, loops over tiles of tokens, and recomputes everything from y and the key.

The gradients of the head's weights stay in registers over the whole loop. Each program writes its part once, and the
parts are summed afterwards in a fixed order: no atomics, the same bits every time. Registers do not hold the gradients
of all weights at once, so the kernel is launched several times (`tiles.backward_launches`). Flags say which gradients a
launch computes:

    flag        computes                   needs, beside a, μ, ρ, z, g recomputed from y
    INPUT       d_y, w1, b1                d_update, merged → d_g; d_kl, w3 → d_posterior; w2 → d_a; w1
    POSTERIOR   w2, b2                     d_update, merged → d_g; d_kl, w3 → d_posterior
    DECODER     w3, b3                     d_update, merged → d_g
    MERGED      merged map, output bias    d_update, of one group of columns per program

CHAIN stands for the first three: they need d_g, the gradient at g before its GELU.
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
    weights: tl.tensor,  # [H, W1 | W2 | W3 | merged], merged = W4 Woᵀ
    biases: tl.tensor,  # float32: [H, b1 | b2 | b3], then the bias of the output [CP]
    key: tl.tensor,  # [3] int64: seed, step, first sample
    d_y: tl.tensor,  # [B·N, H·D], out if INPUT
    parts: tl.tensor,  # [splits, w1 | b1 | w2 | b2 | w3 | b3 | merged | bias] float32, out; each of all heads
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
    W2: tl.constexpr,  # offset of W2 in the packed weights of a head; likewise the next two
    W3: tl.constexpr,
    MERGED_MAP: tl.constexpr,
    WEIGHTS: tl.constexpr,  # packed weights of a head
    B2: tl.constexpr,  # offset of b2 in the packed biases of a head; likewise b3
    B3: tl.constexpr,
    BIASES: tl.constexpr,  # packed biases of a head
    D_B1: tl.constexpr,  # offset of the gradient of b1, of all heads, in a part; likewise the next six
    D_W2: tl.constexpr,
    D_B2: tl.constexpr,
    D_W3: tl.constexpr,
    D_B3: tl.constexpr,
    D_MERGED: tl.constexpr,
    D_BIAS: tl.constexpr,
    PART: tl.constexpr,  # extent of a part
    ROWS: tl.constexpr,  # tokens per step
    WIDE: tl.constexpr,  # columns of d_update are read in groups of WIDE + NARROW
    NARROW: tl.constexpr,
    STAGES: tl.constexpr,
    RELOAD: tl.constexpr,  # read the weights again for each product, because they do not all fit on chip
    INPUT: tl.constexpr,  # compute d_y and the gradients of w1, b1
    POSTERIOR: tl.constexpr,  # of w2, b2
    DECODER: tl.constexpr,  # of w3, b3
    MERGED: tl.constexpr,  # of the merged map and of the bias of the output, in the column group of this program
) -> None:
    CHAIN: tl.constexpr = INPUT or POSTERIOR or DECODER
    GROUP: tl.constexpr = WIDE + NARROW
    dtype: tl.constexpr = y.dtype.element_ty
    head = tl.program_id(0)
    split = tl.program_id(1)
    first = tl.program_id(2) * GROUP if MERGED else 0

    offs_tile = tl.arange(0, ROWS)
    offs_d = tl.arange(0, D)
    offs_h = tl.arange(0, HP)
    offs_r = tl.arange(0, LP)
    offs_2r = tl.arange(0, 2 * LP)
    offs_wide = tl.arange(0, WIDE)
    # A bias is the weight of a constant input 1. So the gradient of a bias is a product as well, the sum over tokens.
    ones = tl.full([16, ROWS], 1.0, dtype)

    w = weights + head * WEIGHTS
    b = biases + head * BIASES
    w1 = _weight_or_offset(w, offs_d[:, None] * HP + offs_h, RELOAD)
    w2 = _weight_or_offset(w, W2 + offs_h[:, None] * (2 * LP) + offs_2r, RELOAD)
    w3 = _weight_or_offset(w, W3 + offs_r[:, None] * HP + offs_h, RELOAD)
    merged_offset = MERGED_MAP + offs_h[:, None] * CP
    merged = w + merged_offset
    if NARROW > 0:
        offs_narrow = WIDE + tl.arange(0, NARROW)
    if CHAIN:
        merged_wide = _weight_or_offset(w, merged_offset + offs_wide, RELOAD)
        if NARROW > 0:
            merged_narrow = _weight_or_offset(w, merged_offset + offs_narrow, RELOAD)
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
        offs_row = tile * ROWS + offs_tile
        # tile >> 31 and tile >> 30 are always 0, which the compiler cannot know. So the compiler does not hoist the
        # addresses of b (48 registers) or the loads of w out of the loop, and does not replace the second reading of w
        # by the first.
        # benchmarks/compiled_bottleneck.py shows whether this is still needed.
        b_here, w_here, w_again = b + (tile >> 31), w + (tile >> 31), w + (tile >> 30)
        mask_row = offs_row < rows
        image = offs_row // tokens
        token = offs_row - image * tokens

        out = d_update + offs_row.to(tl.int64)[:, None] * C + first
        d_out_wide = tl.load(out + offs_wide, mask=mask_row[:, None] & (first + offs_wide < C)[None, :], other=0.0)
        if NARROW > 0:
            d_out_narrow = tl.load(
                out + offs_narrow, mask=mask_row[:, None] & (first + offs_narrow < C)[None, :], other=0.0
            )
        if CHAIN:
            d_g = tl.dot(d_out_wide, tl.trans(_weight(w_here, merged_wide, RELOAD)), input_precision="tf32x3")
            if NARROW > 0:
                merged_here = _weight(w_here, merged_narrow, RELOAD)
                d_g = tl.dot(d_out_narrow, tl.trans(merged_here), d_g, input_precision="tf32x3")
            for group in tl.range(GROUP, CP, GROUP):
                mask = mask_row[:, None] & (group + offs_wide < C)[None, :]
                d_out = tl.load(out + (group + offs_wide), mask=mask, other=0.0)
                d_g = tl.dot(d_out, tl.trans(tl.load(merged + (group + offs_wide))), d_g, input_precision="tf32x3")
                if NARROW > 0:
                    mask = mask_row[:, None] & (group + offs_narrow < C)[None, :]
                    d_out = tl.load(out + (group + offs_narrow), mask=mask, other=0.0)
                    d_g = tl.dot(
                        d_out, tl.trans(tl.load(merged + (group + offs_narrow))), d_g, input_precision="tf32x3"
                    )

        if INPUT or POSTERIOR:
            kl_offset = (image.to(tl.int64) * H + head) * tokens + token
            d_kl_rows = tl.load(d_kl + kl_offset, mask=mask_row, other=0.0)[:, None]
        y_offset = offs_row.to(tl.int64)[:, None] * (H * D) + (head * D + offs_d)
        y_h = tl.load(y + y_offset, mask=mask_row[:, None], other=0.0)
        before_a = tl.dot(y_h, _weight(w_here, w1, RELOAD), input_precision="tf32x3") + tl.load(b_here + offs_h)
        a, slope1 = gelu_and_slope(before_a)
        a = a.to(dtype)
        slope1 = _shrink(slope1, ROWS, HP, dtype)
        posterior = tl.dot(a, _weight(w_here, w2, RELOAD), input_precision="tf32x3") + tl.load(b_here + B2 + offs_2r)
        mu, raw_logvar = tl.split(tl.permute(tl.reshape(posterior, [ROWS, 2, LP]), [0, 2, 1]))
        inside = (raw_logvar > -10.0) & (raw_logvar < 10.0)
        logvar = tl.clamp(raw_logvar, -10.0, 10.0, propagate_nan=tl.PropagateNan.ALL)
        sigma = tl.exp2(logvar * (0.5 * LOG2E))
        noise = sigma * standard_normal(seed, step, first_sample + image, token, block, head, ROWS, LP)
        z = (mu + noise).to(dtype)
        if INPUT or POSTERIOR:
            # Of z and of the KL with respect to μ and ρ; a clamped ρ passes no gradient.
            dz_dlogvar = tl.where(inside, 0.5 * noise, 0.0)
            d_mu_of_kl = mu * d_kl_rows
            d_logvar_of_kl = tl.where(inside, 0.5 * (sigma * sigma - 1.0), 0.0) * d_kl_rows
        before_g = tl.dot(z, _weight(w_here, w3, RELOAD), input_precision="tf32x3")
        g, slope3 = gelu_and_slope(before_g + tl.load(b_here + B3 + offs_h))
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
            d_mu = d_z + d_mu_of_kl
            d_logvar = d_z * dz_dlogvar + d_logvar_of_kl
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
            # Equal to offs_row, but as new addresses, which need not stay in registers through the step.
            offs_row_again = offs_row + (tile >> 31)
            y_offset = offs_row_again.to(tl.int64)[:, None] * (H * D) + (head * D + offs_d)
            tl.store(d_y + y_offset, d_y_h.to(dtype), mask=(offs_row_again < rows)[:, None])

    part = parts + split.to(tl.int64) * PART
    mask_h = offs_h < HIDDEN
    offs_latent = latent_of_column(LP)
    if INPUT:
        tl.store(part + (head * D + offs_d)[:, None] * HIDDEN + offs_h, d_w1, mask=mask_h[None, :])
        _store_row(part + D_B1 + head * HIDDEN + offs_h, d_b1, mask_h)
    if POSTERIOR:
        offset = tl.where(offs_2r < LP, 0, LATENT) + latent_of_column(2 * LP) % LP
        mask = latent_of_column(2 * LP) % LP < LATENT
        to_w2 = part + D_W2 + (head * HIDDEN + offs_h)[None, :] * (2 * LATENT) + offset[:, None]
        tl.store(to_w2, d_w2, mask=mask[:, None] & mask_h[None, :])
        _store_row(part + D_B2 + head * 2 * LATENT + offset, d_b2, mask)
    if DECODER:
        mask = (offs_latent < LATENT)[None, :] & mask_h[:, None]
        tl.store(part + D_W3 + (head * LATENT + offs_latent)[None, :] * HIDDEN + offs_h[:, None], d_w3, mask=mask)
        _store_row(part + D_B3 + head * HIDDEN + offs_h, d_b3, mask_h)
    if MERGED:
        offs_c = first + offs_wide
        offset = part + D_MERGED + (head * HIDDEN + offs_h)[None, :] * C
        tl.store(offset + offs_c[:, None], d_wide, mask=mask_h[None, :] & (offs_c < C)[:, None])
        _store_row(part + D_BIAS + offs_c, d_bias_wide, offs_c < tl.where(head == 0, C, 0))
        if NARROW > 0:
            offs_c = first + offs_narrow
            tl.store(offset + offs_c[:, None], d_narrow, mask=mask_h[None, :] & (offs_c < C)[:, None])
            _store_row(part + D_BIAS + offs_c, d_bias_narrow, offs_c < tl.where(head == 0, C, 0))


@triton.jit
def _weight_or_offset(w: tl.tensor, offset: tl.tensor, RELOAD: tl.constexpr) -> tl.tensor:
    """The weights at these offsets; under RELOAD the offsets."""
    return offset if RELOAD else tl.load(w + offset)


@triton.jit
def _weight(w: tl.tensor, weight_or_offset: tl.tensor, RELOAD: tl.constexpr) -> tl.tensor:
    """The weights of `_weight_or_offset`; under RELOAD they are read now."""
    return tl.load(w + weight_or_offset) if RELOAD else weight_or_offset


@triton.jit
def _shrink(slope: tl.tensor, ROWS: tl.constexpr, HP: tl.constexpr, dtype: tl.constexpr) -> tl.tensor:
    """A tile of slopes of GELU, all within ±2, in half the registers: 16-bit fixed point with an error of at most 2⁻¹⁵.

    n = round(slope · 2¹⁴) fits 16 bits. Adding 1.5·2²³ (12582912) to a float32 rounds it to an integer and leaves n, in
    two's complement, in the low bits. Columns k and k + HP/2 share a word. float32 tiles stay as they are.
    """
    if dtype == tl.float32:
        return slope
    else:
        fixed = (slope * 16384.0 + 12582912.0).to(tl.uint32, bitcast=True)
        low, high = tl.split(tl.permute(tl.reshape(fixed, [ROWS, 2, HP // 2]), [0, 2, 1]))
        return (low & 0xFFFF) | (high << 16)


@triton.jit
def _grow(packed: tl.tensor, ROWS: tl.constexpr, HP: tl.constexpr, dtype: tl.constexpr) -> tl.tensor:
    """The slopes that `_shrink` packed.

    Flipping the sign bit of n gives n + 2¹⁵. With the exponent of 2²³ above it (0x4B000000) these bits are the float32
    2²³ + 2¹⁵ + n = 8421376 + n.
    """
    if dtype == tl.float32:
        return packed
    else:
        low = ((packed & 0xFFFF) ^ 0x4B008000).to(tl.float32, bitcast=True)
        high = ((packed >> 16) ^ 0x4B008000).to(tl.float32, bitcast=True)
        fixed = tl.reshape(tl.permute(tl.join(low, high), [0, 2, 1]), [ROWS, HP])
        return fixed * (1.0 / 16384.0) - 8421376.0 / 16384.0


@triton.jit
def _store_row(target: tl.tensor, value: tl.tensor, mask: tl.tensor) -> None:
    """Store one of 16 equal rows."""
    tl.store(target, tl.sum(value, axis=0) * 0.0625, mask=mask)
