"""Weights as the kernels want them, and the way back for their gradients.

W4 and Wo are two linear maps with nothing between them, so each call folds them into one: merged_h = W4_h Wo_hᵀ
``[h, C]``, and Σ_h b4_h Wo_hᵀ + bo into one bias. `pack_kernel` computes that in float32 and lays the weights of each
head side by side in the activations' precision, zero-padded to the tensor cores' sizes; `unmerge_kernel` turns the
gradient of the merged map into those of W4, b4 and Wo.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ibvit_kernels.bottleneck.arithmetic import latent_of_column

COLUMNS = 16  # output columns of one program


@triton.jit
def pack_kernel(
    w1: tl.tensor,  # [H, D, h]
    b1: tl.tensor,  # [H, h]
    w2: tl.tensor,  # [H, h, 2r]
    b2: tl.tensor,  # [H, 2r]
    w3: tl.tensor,  # [H, r, h]
    b3: tl.tensor,  # [H, h]
    w4: tl.tensor,  # [H, h, D]
    b4: tl.tensor,  # [H, D]
    proj_weight: tl.tensor,  # [C, H·D]
    proj_bias: tl.tensor,  # [C]
    weights: tl.tensor,  # [H, W1 | W2 | W3 | merged], out
    biases: tl.tensor,  # float32: [H, b1 | b2 | b3], then the output's [CP], out
    H: tl.constexpr,
    D: tl.constexpr,
    C: tl.constexpr,
    HIDDEN: tl.constexpr,
    LATENT: tl.constexpr,
    HP: tl.constexpr,  # hidden, padded
    LP: tl.constexpr,  # latent, padded
    CP: tl.constexpr,  # C, padded
    TILE: tl.constexpr,
) -> None:
    head = tl.program_id(0)
    tile = tl.program_id(1)
    W2_AT: tl.constexpr = D * HP
    W3_AT: tl.constexpr = W2_AT + 2 * HP * LP
    MERGED_AT: tl.constexpr = W3_AT + LP * HP
    out = weights + head * (MERGED_AT + HP * CP)
    hidden = tl.arange(0, HP)
    real_hidden = hidden < HIDDEN
    d = tl.arange(0, D)
    if tile * TILE < CP:
        c = tile * TILE + tl.arange(0, TILE)
        real = c < C
        w4_h = tl.load(w4 + (head * HIDDEN + hidden)[:, None] * D + d, mask=real_hidden[:, None], other=0.0)
        wo_h = tl.load(proj_weight + c[None, :] * (H * D) + head * D + d[:, None], mask=real[None, :], other=0.0)
        merged = tl.dot(w4_h.to(tl.float32), wo_h.to(tl.float32), input_precision="ieee")
        tl.store(out + MERGED_AT + hidden[:, None] * CP + c, merged.to(weights.dtype.element_ty))
        if head == 0:
            total = tl.load(proj_bias + c, mask=real, other=0.0).to(tl.float32)
            for other in range(H):
                wo = tl.load(proj_weight + c[:, None] * (H * D) + other * D + d, mask=real[:, None], other=0.0)
                total += tl.sum(wo.to(tl.float32) * tl.load(b4 + other * D + d).to(tl.float32)[None, :], axis=1)
            tl.store(biases + H * (2 * HP + 2 * LP) + c, total)
    else:
        latent = latent_of_column(LP)
        real_latent = latent < LATENT
        column = tl.arange(0, LP)
        at_w1 = w1 + (head * D + d)[:, None] * HIDDEN + hidden
        _copy(at_w1, real_hidden[None, :] & (d >= 0)[:, None], out + d[:, None] * HP + hidden)
        at_w2 = w2 + (head * HIDDEN + hidden)[:, None] * (2 * LATENT) + latent
        to = out + W2_AT + hidden[:, None] * (2 * LP) + column
        real_w2 = real_hidden[:, None] & real_latent[None, :]
        _copy(at_w2, real_w2, to)
        _copy(at_w2 + LATENT, real_w2, to + LP)
        at_w3 = w3 + (head * LATENT + latent)[:, None] * HIDDEN + hidden
        real_w3 = real_latent[:, None] & real_hidden[None, :]
        _copy(at_w3, real_w3, out + W3_AT + column[:, None] * HP + hidden)
        b = biases + head * (2 * HP + 2 * LP)
        _copy(b1 + head * HIDDEN + hidden, real_hidden, b + hidden)
        _copy(b2 + head * 2 * LATENT + latent, real_latent, b + HP + column)
        _copy(b2 + (head * 2 + 1) * LATENT + latent, real_latent, b + HP + LP + column)
        _copy(b3 + head * HIDDEN + hidden, real_hidden, b + HP + 2 * LP + hidden)


@triton.jit
def _copy(source: tl.tensor, real: tl.tensor, target: tl.tensor) -> None:
    tl.store(target, tl.load(source, mask=real, other=0.0).to(target.dtype.element_ty))


@triton.jit
def unmerge_kernel(
    d_merged: tl.tensor,  # [H, h, C] float32
    d_bias: tl.tensor,  # [C] float32
    w4: tl.tensor,  # [H, h, D]
    b4: tl.tensor,  # [H, D]
    proj_weight: tl.tensor,  # [C, H·D]
    d_w4: tl.tensor,  # [H, h, D] float32, out
    d_b4: tl.tensor,  # [H, D] float32, out
    d_proj_weight: tl.tensor,  # [C, H·D] float32, out
    H: tl.constexpr,
    D: tl.constexpr,
    C: tl.constexpr,
    HIDDEN: tl.constexpr,
    HP: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """dWo_h = merged's gradientᵀ W4_h + d_bias ⊗ b4_h; dW4_h = merged's gradient · Wo_h; db4_h = d_bias · Wo_h."""
    head = tl.program_id(0)
    tile = tl.program_id(1)
    d = tl.arange(0, D)
    COLUMN_TILES: tl.constexpr = (C + TILE - 1) // TILE
    if tile < COLUMN_TILES:
        c = tile * TILE + tl.arange(0, TILE)
        real = c < C
        hidden = tl.arange(0, HP)
        real_hidden = hidden < HIDDEN
        at = d_merged + (head * HIDDEN + hidden)[None, :] * C + c[:, None]
        gradient = tl.load(at, mask=real[:, None] & real_hidden[None, :], other=0.0)
        w = tl.load(w4 + (head * HIDDEN + hidden)[:, None] * D + d, mask=real_hidden[:, None], other=0.0)
        bias = tl.load(b4 + head * D + d).to(tl.float32)
        outer = tl.load(d_bias + c, mask=real, other=0.0)[:, None] * bias[None, :]
        total = tl.dot(gradient, w.to(tl.float32), outer, input_precision="ieee")
        at = d_proj_weight + c[:, None] * (H * D) + head * D + d
        tl.store(at, total, mask=real[:, None])
    else:
        k = (tile - COLUMN_TILES) * TILE + tl.arange(0, TILE)
        real_k = k < HIDDEN
        d_w4_rows = tl.zeros([TILE, D], tl.float32)
        d_b4_terms = tl.zeros([TILE, D], tl.float32)
        for start in range(0, C, TILE):
            column = start + tl.arange(0, TILE)
            real_column = column < C
            at_rows = d_merged + (head * HIDDEN + k)[:, None] * C + column
            rows = tl.load(at_rows, mask=real_k[:, None] & real_column[None, :], other=0.0)
            at_wo = proj_weight + column[:, None] * (H * D) + head * D + d
            wo = tl.load(at_wo, mask=real_column[:, None], other=0.0).to(tl.float32)
            d_w4_rows = tl.dot(rows, wo, d_w4_rows, input_precision="ieee")
            d_b4_terms += tl.load(d_bias + column, mask=real_column, other=0.0)[:, None] * wo
        tl.store(d_w4 + (head * HIDDEN + k)[:, None] * D + d, d_w4_rows, mask=real_k[:, None])
        if tile == COLUMN_TILES:
            tl.store(d_b4 + head * D + d, tl.sum(d_b4_terms, axis=0))
