"""Weights in the layout that the kernels read, and the gradients of the weights that are merged.

W4 and Wo are two linear maps with nothing between them, so each call folds them into one: merged_h = W4_h Wo_hᵀ
``[h, C]``, and Σ_h b4_h Wo_hᵀ + bo into one bias. `pack_kernel` computes that in float32 and lays the weights of each
head side by side in the activations' precision, zero-padded to the tensor cores' sizes; `unmerge_kernel` turns the
gradient of the merged map into those of W4, b4 and Wo.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ibvit_kernels.bottleneck.arithmetic import latent_of_column

COLUMNS = 16  # output columns per program


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
    biases: tl.tensor,  # float32: [H, b1 | b2 | b3], then the bias of the output [CP], out
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
    TILE: tl.constexpr,
) -> None:
    head = tl.program_id(0)
    tile = tl.program_id(1)
    out = weights + head * WEIGHTS
    offs_h = tl.arange(0, HP)
    mask_h = offs_h < HIDDEN
    offs_d = tl.arange(0, D)
    if tile * TILE < CP:
        offs_c = tile * TILE + tl.arange(0, TILE)
        mask = offs_c < C
        w4_h = tl.load(w4 + (head * HIDDEN + offs_h)[:, None] * D + offs_d, mask=mask_h[:, None], other=0.0)
        wo_h = tl.load(
            proj_weight + offs_c[None, :] * (H * D) + head * D + offs_d[:, None], mask=mask[None, :], other=0.0
        )
        merged = tl.dot(w4_h.to(tl.float32), wo_h.to(tl.float32), input_precision="ieee")
        tl.store(out + MERGED_MAP + offs_h[:, None] * CP + offs_c, merged.to(weights.dtype.element_ty))
        if head == 0:
            total = tl.load(proj_bias + offs_c, mask=mask, other=0.0).to(tl.float32)
            for other in range(H):
                wo = tl.load(
                    proj_weight + offs_c[:, None] * (H * D) + other * D + offs_d, mask=mask[:, None], other=0.0
                )
                total += tl.sum(wo.to(tl.float32) * tl.load(b4 + other * D + offs_d).to(tl.float32)[None, :], axis=1)
            tl.store(biases + H * BIASES + offs_c, total)
    else:
        offs_latent = latent_of_column(LP)
        mask_latent = offs_latent < LATENT
        offs_r = tl.arange(0, LP)
        from_w1 = w1 + (head * D + offs_d)[:, None] * HIDDEN + offs_h
        _copy(from_w1, mask_h[None, :] & (offs_d >= 0)[:, None], out + offs_d[:, None] * HP + offs_h)
        from_w2 = w2 + (head * HIDDEN + offs_h)[:, None] * (2 * LATENT) + offs_latent
        to = out + W2 + offs_h[:, None] * (2 * LP) + offs_r
        mask_w2 = mask_h[:, None] & mask_latent[None, :]
        _copy(from_w2, mask_w2, to)
        _copy(from_w2 + LATENT, mask_w2, to + LP)
        from_w3 = w3 + (head * LATENT + offs_latent)[:, None] * HIDDEN + offs_h
        mask_w3 = mask_latent[:, None] & mask_h[None, :]
        _copy(from_w3, mask_w3, out + W3 + offs_r[:, None] * HP + offs_h)
        b = biases + head * BIASES
        _copy(b1 + head * HIDDEN + offs_h, mask_h, b + offs_h)
        _copy(b2 + head * 2 * LATENT + offs_latent, mask_latent, b + B2 + offs_r)
        _copy(b2 + (head * 2 + 1) * LATENT + offs_latent, mask_latent, b + B2 + LP + offs_r)
        _copy(b3 + head * HIDDEN + offs_h, mask_h, b + B3 + offs_h)


@triton.jit
def _copy(source: tl.tensor, mask: tl.tensor, target: tl.tensor) -> None:
    tl.store(target, tl.load(source, mask=mask, other=0.0).to(target.dtype.element_ty))


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
    """dWo_h = d_mergedᵀ W4_h + d_bias ⊗ b4_h; dW4_h = d_merged · Wo_h; db4_h = d_bias · Wo_h."""
    head = tl.program_id(0)
    tile = tl.program_id(1)
    offs_d = tl.arange(0, D)
    COLUMN_TILES: tl.constexpr = (C + TILE - 1) // TILE
    if tile < COLUMN_TILES:
        offs_c = tile * TILE + tl.arange(0, TILE)
        mask = offs_c < C
        offs_h = tl.arange(0, HP)
        mask_h = offs_h < HIDDEN
        source = d_merged + (head * HIDDEN + offs_h)[None, :] * C + offs_c[:, None]
        gradient = tl.load(source, mask=mask[:, None] & mask_h[None, :], other=0.0)
        w = tl.load(w4 + (head * HIDDEN + offs_h)[:, None] * D + offs_d, mask=mask_h[:, None], other=0.0)
        bias = tl.load(b4 + head * D + offs_d).to(tl.float32)
        outer = tl.load(d_bias + offs_c, mask=mask, other=0.0)[:, None] * bias[None, :]
        total = tl.dot(gradient, w.to(tl.float32), outer, input_precision="ieee")
        target = d_proj_weight + offs_c[:, None] * (H * D) + head * D + offs_d
        tl.store(target, total, mask=mask[:, None])
    else:
        offs_k = (tile - COLUMN_TILES) * TILE + tl.arange(0, TILE)
        mask_k = offs_k < HIDDEN
        d_w4_rows = tl.zeros([TILE, D], tl.float32)
        d_b4_terms = tl.zeros([TILE, D], tl.float32)
        for start in range(0, C, TILE):
            offs_c = start + tl.arange(0, TILE)
            mask_c = offs_c < C
            from_rows = d_merged + (head * HIDDEN + offs_k)[:, None] * C + offs_c
            rows = tl.load(from_rows, mask=mask_k[:, None] & mask_c[None, :], other=0.0)
            from_wo = proj_weight + offs_c[:, None] * (H * D) + head * D + offs_d
            wo = tl.load(from_wo, mask=mask_c[:, None], other=0.0).to(tl.float32)
            d_w4_rows = tl.dot(rows, wo, d_w4_rows, input_precision="ieee")
            d_b4_terms += tl.load(d_bias + offs_c, mask=mask_c, other=0.0)[:, None] * wo
        tl.store(d_w4 + (head * HIDDEN + offs_k)[:, None] * D + offs_d, d_w4_rows, mask=mask_k[:, None])
        if tile == COLUMN_TILES:
            tl.store(d_b4 + head * D + offs_d, tl.sum(d_b4_terms, axis=0))
