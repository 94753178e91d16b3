"""The bottleneck op on Triton: host side. Shapes and meaning are those of `ibvit.ops.reference`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ibvit_kernels.bottleneck.backward import backward_kernel
from ibvit_kernels.bottleneck.forward import forward_kernel
from ibvit_kernels.bottleneck.pack import COLUMNS, pack_kernel, unmerge_kernel
from ibvit_kernels.bottleneck.tiles import (
    INTERPRETER,
    Launch,
    Shape,
    Tile,
    backward_launches,
    column_groups,
    forward_tile,
    gradient_sizes,
    is_large,
    splits,
)

Constants = dict[str, int | bool]  # constexprs of one launch and its options; cached, not to be changed


class Packed(NamedTuple):
    """One block's parameters as the kernels read them, see `pack`."""

    weights: Tensor  # [H, W1 | W2 | W3 | merged], in the activations' precision
    biases: Tensor  # float32: [H, b1 | b2 | b3], then the output's


class Latents(NamedTuple):
    """Each head's posterior and sample, float32 ``[B, H, N, r]``."""

    mu: Tensor
    logvar: Tensor
    z: Tensor


shape_of = Shape.of


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
    pack_kernel[(shape.heads, column_tiles + 1)](*params, *packed, **pack_constants(shape))
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
    tile = forward_tile(architecture(y.device), shape, y.dtype.itemsize)
    if rows > 0:
        forward_kernel[(triton.cdiv(rows, tile.rows), column_groups(shape.columns)[0])](
            y, *packed, residual, key, update, kl, *(written or (None, None, None)), block, rows, tokens,
            **forward_constants(shape, tile, residual is not None, latents),
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
    """Gradients: of y in its dtype, the inner ones in one float32 vector (`gradient_sizes`), of w4, b4, proj_weight.

    Each program of the kernel writes its part of each parameter's gradient; torch adds the parts up in a fixed order.
    """
    batch, tokens, _ = y.shape
    rows = batch * tokens
    d_y = torch.empty_like(y)
    launches = backward_launches(architecture(y.device), shape, y.dtype.itemsize)
    programs = splits(shape, rows, min(launch.tile.rows for launch in launches), multiprocessors(y.device))
    sizes = gradient_sizes(shape)
    parts = torch.empty(programs, sum(sizes), dtype=torch.float32, device=y.device)
    groups = column_groups(shape.columns)[0]
    for launch in launches:
        backward_kernel[(shape.heads, programs, groups if launch.merged else 1)](
            d_update, d_kl, y, *packed, key, d_y, parts, block, rows, tokens, **backward_constants(shape, launch)
        )
    d_inner = parts.sum(dim=0)
    d_merged, d_bias = d_inner.split(sizes)[-2:]
    w4, b4, proj_weight = params[6:9]
    outer = tuple(torch.empty_like(p, dtype=torch.float32) for p in (w4, b4, proj_weight))
    tiles = triton.cdiv(shape.columns, COLUMNS) + triton.cdiv(shape.hidden, COLUMNS)
    unmerge_kernel[(shape.heads, tiles)](d_merged, d_bias, w4, b4, proj_weight, *outer, **unmerge_constants(shape))
    return d_y, d_inner, *outer


@functools.cache
def architecture(device: torch.device) -> int:
    """Compute capability as in sm_90, or `INTERPRETER` for CPU tensors."""
    if device.type != "cuda":
        return INTERPRETER
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many programs run at once; in the interpreter a few, so that there is something to add up."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 8


@functools.cache
def pack_constants(shape: Shape) -> Constants:
    return {**_sizes(shape), "HIDDEN": shape.hidden, "TILE": COLUMNS, **_options(16 if is_large(shape) else 4, 1)}


@functools.cache
def unmerge_constants(shape: Shape) -> Constants:
    sizes = {name: _sizes(shape)[name] for name in ("H", "D", "C", "HP")}
    return {**sizes, "HIDDEN": shape.hidden, "TILE": COLUMNS, **_options(16 if is_large(shape) else 8, 1)}


@functools.cache
def forward_constants(shape: Shape, tile: Tile, residual: bool, latents: bool) -> Constants:
    flags = {"RESIDUAL": residual, "LATENTS": latents}
    return {**_sizes(shape), **_tiling(shape, tile), **flags, **_options(tile.warps, tile.stages)}


@functools.cache
def backward_constants(shape: Shape, launch: Launch) -> Constants:
    tile, *wanted = launch
    flags = dict(zip(("RELOAD", "INPUT", "POSTERIOR", "DECODER", "MERGED"), wanted, strict=True))
    options = _options(tile.warps, tile.stages)
    return {**_sizes(shape), "HIDDEN": shape.hidden, **_tiling(shape, tile), **flags, **options}


def _sizes(shape: Shape) -> Constants:
    padded = {"HP": shape.padded_hidden, "LP": shape.padded_latent, "CP": shape.padded_columns}
    return {"H": shape.heads, "D": shape.width, "C": shape.columns, "LATENT": shape.latent, **padded}


def _tiling(shape: Shape, tile: Tile) -> Constants:
    _, wide, narrow = column_groups(shape.columns)
    return {"ROWS": tile.rows, "WIDE": wide, "NARROW": narrow, "STAGES": tile.stages}


def _options(warps: int, stages: int) -> Constants:
    """Launch options. Multiply-adds fuse, whatever the installed Triton's default."""
    return {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
