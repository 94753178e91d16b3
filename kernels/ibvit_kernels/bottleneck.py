"""The bottleneck op on Triton: host side. Shapes and meaning are those of `ibvit.ops.reference`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ibvit_kernels.bottleneck_backward import backward_kernel
from ibvit_kernels.bottleneck_forward import forward_kernel
from ibvit_kernels.bottleneck_pack import COLUMNS, pack_kernel, unmerge_kernel
from ibvit_kernels.bottleneck_tiles import (
    INTERPRETER,
    Shape,
    backward_launches,
    column_groups,
    forward_tile,
    gradient_sizes,
    splits,
)

FUSION = {"enable_fp_fusion": True}  # multiply-adds fuse, whatever the installed Triton's default


class Packed(NamedTuple):
    """One block's parameters as the kernels read them, see `bottleneck_pack`."""

    weights: Tensor  # [H, W1 | W2 | W3 | merged], in the activations' precision
    biases: Tensor  # float32: [H, b1 | b2 | b3], then the output's


class Latents(NamedTuple):
    """Each head's posterior and sample, float32 ``[B, H, N, r]``."""

    mu: Tensor
    logvar: Tensor
    z: Tensor


def shape_of(w1: Tensor, w3: Tensor, proj_weight: Tensor) -> Shape:
    heads, width, hidden = w1.shape
    return Shape(heads, width, proj_weight.shape[0], hidden, w3.shape[1])


def pack(shape: Shape, dtype: torch.dtype, params: Sequence[Tensor]) -> Packed:
    """Fold W4 into the projection and lay the parameters out; one small launch.

    params: w1, b1, w2, b2, w3, b3, w4, b4, proj_weight, proj_bias.
    """
    device = params[0].device
    packed = Packed(
        torch.empty(shape.heads, shape.weights_per_head, dtype=dtype, device=device),
        torch.empty(shape.biases, dtype=torch.float32, device=device),
    )
    column_tiles = triton.cdiv(shape.padded_columns, COLUMNS)
    pack_kernel[(shape.heads, column_tiles + 1)](
        *params, *packed, **_sizes(shape), HIDDEN=shape.hidden, TILE=COLUMNS, num_warps=4, **FUSION
    )
    return packed


def forward(
    shape: Shape, y: Tensor, packed: Packed, residual: Tensor | None, key: Tensor, block: int, latents: bool = False
) -> tuple[Tensor, Tensor, Latents | None]:
    """update ``[B, N, C]`` (plus residual, in its dtype, if given), KL ``[B, H, N]``, and the latents if asked for."""
    batch, tokens, _ = y.shape
    update = torch.empty_like(residual) if residual is not None else y.new_empty(batch, tokens, shape.columns)
    kl = torch.empty(batch, shape.heads, tokens, dtype=torch.float32, device=y.device)
    written = Latents(*kl.new_empty(3, *kl.shape, shape.latent)) if latents else None
    rows = batch * tokens
    groups, wide, narrow = column_groups(shape.columns)
    tile = forward_tile(architecture(y.device), shape, y.dtype.itemsize)
    if rows > 0:
        forward_kernel[(triton.cdiv(rows, tile.rows), groups)](
            y, *packed, residual, key, update, kl, *(written or (None, None, None)), block, rows, tokens,
            **_sizes(shape), ROWS=tile.rows, WIDE=wide, NARROW=narrow, STAGES=tile.stages,
            RESIDUAL=residual is not None, LATENTS=latents, num_warps=tile.warps, num_stages=tile.stages, **FUSION,
        )  # fmt: skip
    return update, kl, written


def backward(
    shape: Shape,
    d_update: Tensor,
    d_kl: Tensor,
    y: Tensor,
    params: Sequence[Tensor],
    packed: Packed,
    key: Tensor,
    block: int,
) -> tuple[Tensor, ...]:
    """Gradients of y (its dtype) and of params (float32; order and shapes of `pack`).

    The kernel writes one part of each parameter's gradient a program; torch adds the parts up, in a fixed order.
    """
    batch, tokens, _ = y.shape
    rows = batch * tokens
    d_y = torch.empty_like(y)
    launches = backward_launches(architecture(y.device), shape, y.dtype.itemsize)
    programs = splits(shape, rows, min(launch.tile.rows for launch in launches), multiprocessors(y.device))
    sizes = gradient_sizes(shape)
    parts = torch.empty(programs, sum(sizes), dtype=torch.float32, device=y.device)
    groups, wide, narrow = column_groups(shape.columns)
    for launch in launches:
        tile = launch.tile
        backward_kernel[(shape.heads, programs, groups if launch.merged else 1)](
            d_update, d_kl, y, *packed, key, d_y, parts, block, rows, tokens,
            **_sizes(shape), HIDDEN=shape.hidden, ROWS=tile.rows, WIDE=wide, NARROW=narrow, STAGES=tile.stages,
            INPUT=launch.input, POSTERIOR=launch.posterior, DECODER=launch.decoder, MERGED=launch.merged,
            num_warps=tile.warps, num_stages=tile.stages, **FUSION,
        )  # fmt: skip
    *inner, d_merged, d_bias = parts.sum(dim=0).split(sizes)
    w4, b4, proj_weight = params[6:9]
    outer = tuple(torch.empty_like(p, dtype=torch.float32) for p in (w4, b4, proj_weight))
    tiles = triton.cdiv(shape.columns, COLUMNS) + triton.cdiv(shape.hidden, COLUMNS)
    unmerge_kernel[(shape.heads, tiles)](
        d_merged, d_bias, w4, b4, proj_weight, *outer, H=shape.heads, D=shape.width, C=shape.columns,
        HIDDEN=shape.hidden, HP=shape.padded_hidden, TILE=COLUMNS, num_warps=4, **FUSION,
    )  # fmt: skip
    d_inner = (grad.view_as(param) for grad, param in zip(inner, params[:6], strict=True))
    return d_y, *d_inner, *outer, d_bias


@functools.cache
def architecture(device: torch.device) -> int:
    """Compute capability as in sm_90, or `INTERPRETER` for CPU tensors."""
    if device.type != "cuda":
        return INTERPRETER
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _sizes(shape: Shape) -> dict[str, int]:
    """The constexprs that the kernels share."""
    return {
        "H": shape.heads,
        "D": shape.width,
        "C": shape.columns,
        "LATENT": shape.latent,
        "HP": shape.padded_hidden,
        "LP": shape.padded_latent,
        "CP": shape.padded_columns,
    }


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many programs run at once; in the interpreter a few, so that there is something to add up."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 8
