"""Forward kernel: attention output → update and KL, one tile of tokens per program, everything between on chip."""

from __future__ import annotations

import triton
import triton.language as tl

from ibvit_kernels.bottleneck.arithmetic import LOG2E, gelu, standard_normal


@triton.jit(do_not_specialize=["block", "rows", "tokens"])
def forward_kernel(
    y: tl.tensor,  # [B·N, H·D]
    weights: tl.tensor,  # [H, W1 | W2 | W3 | merged], merged = W4 Woᵀ
    biases: tl.tensor,  # float32: [H, b1 | b2 | b3], then the bias of the output [CP]
    key: tl.tensor,  # [3] int64: seed, step, first sample
    update: tl.tensor,  # [B·N, C], out
    kl: tl.tensor,  # [B, H, N] float32, out
    block: tl.tensor,  # index of the transformer block
    rows: tl.tensor,  # B·N
    tokens: tl.tensor,  # N
    H: tl.constexpr,
    D: tl.constexpr,
    C: tl.constexpr,
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
    ROWS: tl.constexpr,  # tokens per program
    WIDE: tl.constexpr,  # output columns per program: WIDE + NARROW, so that 192 is 128 + 64 and not 256
    NARROW: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    dtype: tl.constexpr = y.dtype.element_ty

    start = tl.program_id(0) * ROWS
    offs_tile = tl.arange(0, ROWS)
    offs_row = start + offs_tile
    mask_row = offs_row < rows
    image = offs_row // tokens
    token = offs_row - image * tokens
    seed = tl.load(key)
    step = tl.load(key + 1)
    sample = tl.load(key + 2) + image

    offs_d = tl.arange(0, D)
    offs_h = tl.arange(0, HP)
    offs_r = tl.arange(0, LP)
    offs_2r = tl.arange(0, 2 * LP)
    first = tl.program_id(1) * (WIDE + NARROW)
    offs_wide = first + tl.arange(0, WIDE)
    acc_wide = tl.zeros([ROWS, WIDE], tl.float32)
    if NARROW > 0:
        offs_narrow = first + WIDE + tl.arange(0, NARROW)
        acc_narrow = tl.zeros([ROWS, NARROW], tl.float32)

    for head in tl.range(H, num_stages=STAGES):
        w = weights + head * WEIGHTS
        b = biases + head * BIASES
        w1 = tl.load(w + offs_h[None, :] + offs_d[:, None] * HP)
        w2 = tl.load(w + W2 + offs_h[:, None] * (2 * LP) + offs_2r)
        w3 = tl.load(w + W3 + offs_r[:, None] * HP + offs_h)
        merged = w + MERGED_MAP + offs_h[:, None] * CP

        y_tile = y + start.to(tl.int64) * (H * D) + head * D
        y_h = tl.load(y_tile + (offs_tile[:, None] * (H * D) + offs_d), mask=mask_row[:, None], other=0.0)
        a = gelu(tl.dot(y_h, w1, input_precision="tf32x3") + tl.load(b + offs_h)).to(dtype)
        posterior = tl.dot(a, w2, input_precision="tf32x3") + tl.load(b + B2 + offs_2r)
        mu_h, logvar_h = tl.split(tl.permute(tl.reshape(posterior, [ROWS, 2, LP]), [0, 2, 1]))
        logvar_h = tl.clamp(logvar_h, -10.0, 10.0, propagate_nan=tl.PropagateNan.ALL)
        sigma = tl.exp2(logvar_h * (0.5 * LOG2E))
        kl_h = 0.5 * tl.sum(sigma * sigma + mu_h * mu_h - 1.0 - logvar_h, axis=1)
        z_h = mu_h + sigma * standard_normal(seed, step, sample, token, block, head, ROWS, LP)
        g = gelu(tl.dot(z_h.to(dtype), w3, input_precision="tf32x3") + tl.load(b + B3 + offs_h)).to(dtype)
        acc_wide = tl.dot(g, tl.load(merged + offs_wide), acc_wide, input_precision="tf32x3")
        if NARROW > 0:
            acc_narrow = tl.dot(g, tl.load(merged + offs_narrow), acc_narrow, input_precision="tf32x3")

        if first == 0:
            kl_offset = (image.to(tl.int64) * H + head) * tokens + token
            tl.store(kl + kl_offset, kl_h, mask=mask_row)

    bias = biases + H * BIASES
    _write(acc_wide, offs_wide, bias, update, start, rows, C, ROWS)
    if NARROW > 0:
        _write(acc_narrow, offs_narrow, bias, update, start, rows, C, ROWS)


@triton.jit
def _write(
    acc: tl.tensor,
    offs_c: tl.tensor,
    bias: tl.tensor,
    update: tl.tensor,
    start: tl.tensor,
    rows: tl.tensor,
    C: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    offs_tile = tl.arange(0, ROWS)
    tile_offset = start.to(tl.int64) * C
    offset = offs_tile[:, None] * C + offs_c
    mask = (start + offs_tile < rows)[:, None] & (offs_c < C)[None, :]
    acc += tl.load(bias + offs_c)[None, :]
    tl.store(update + tile_offset + offset, acc.to(update.dtype.element_ty), mask=mask)
