"""The bottleneck op on Triton: host side. Shapes and meaning are those of `ibvit.ops.reference`."""

from __future__ import annotations

import functools
from itertools import accumulate

import torch
import triton
from torch import Tensor

from ibvit_kernels.bottleneck import Gradients, Packed, Parameters, split_inner
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


sizes_of = Shape.of


def pack(shape: Shape, dtype: torch.dtype, params: Parameters) -> Packed:
    """Fold W4 into the projection and lay the parameters out as `pack.py` says; one small launch."""
    device = params.w1.device
    packed = Packed(
        torch.empty(shape.heads, shape.weights_per_head, dtype=dtype, device=device),
        torch.empty(shape.biases, dtype=torch.float32, device=device),
    )
    column_tiles = triton.cdiv(shape.padded_columns, COLUMNS)
    pack_kernel[(shape.heads, column_tiles + 1)](*params, *packed, **pack_constants(shape))
    return packed


def forward(shape: Shape, y: Tensor, packed: Packed, key: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """update ``[B, N, C]`` and KL ``[B, H, N]``."""
    batch, tokens, _ = y.shape
    update = y.new_empty(batch, tokens, shape.columns)
    kl = torch.empty(batch, shape.heads, tokens, dtype=torch.float32, device=y.device)
    rows = batch * tokens
    tile = forward_tile(architecture(y.device), shape, y.dtype.itemsize)
    if rows > 0:
        forward_kernel[(triton.cdiv(rows, tile.rows), column_groups(shape.columns)[0])](
            y, *packed, key, update, kl, block, rows, tokens, **forward_constants(shape, tile)
        )
    return update, kl


def backward(
    shape: Shape,
    d_update: Tensor,
    d_kl: Tensor,
    y: Tensor,
    params: Parameters,
    packed: Packed,
    key: Tensor,
    block: int,
) -> Gradients:
    """Each program of the kernel writes a part of each gradient; torch adds the parts up in a fixed order."""
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
    gradients = Gradients(
        y=d_y,
        inner=parts.sum(dim=0),
        w4=torch.empty_like(params.w4, dtype=torch.float32),
        b4=torch.empty_like(params.b4, dtype=torch.float32),
        proj_weight=torch.empty_like(params.proj_weight, dtype=torch.float32),
    )
    inner = split_inner(gradients.inner, sizes)
    tiles = triton.cdiv(shape.columns, COLUMNS) + triton.cdiv(shape.hidden, COLUMNS)
    unmerge_kernel[(shape.heads, tiles)](
        inner.merged, inner.proj_bias, params.w4, params.b4, params.proj_weight, gradients.w4, gradients.b4,
        gradients.proj_weight, **unmerge_constants(shape),
    )  # fmt: skip
    return gradients


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
    options = _options(16 if is_large(shape) else 4, 1)
    return {**_sizes(shape), **_unpadded(shape), **_packed_offsets(shape), "TILE": COLUMNS, **options}


@functools.cache
def unmerge_constants(shape: Shape) -> Constants:
    sizes = {name: _sizes(shape)[name] for name in ("H", "D", "C", "HP")}
    return {**sizes, "HIDDEN": shape.hidden, "TILE": COLUMNS, **_options(16 if is_large(shape) else 8, 1)}


@functools.cache
def forward_constants(shape: Shape, tile: Tile) -> Constants:
    options = _options(tile.warps, tile.stages)
    return {**_sizes(shape), **_packed_offsets(shape), **_tiling(shape, tile), **options}


@functools.cache
def backward_constants(shape: Shape, launch: Launch) -> Constants:
    flags = {
        "RELOAD": launch.reload,
        "INPUT": launch.input,
        "POSTERIOR": launch.posterior,
        "DECODER": launch.decoder,
        "MERGED": launch.merged,
    }
    tile = launch.tile
    options = _options(tile.warps, tile.stages)
    offsets = _packed_offsets(shape) | _gradient_offsets(shape)
    return {**_sizes(shape), **_unpadded(shape), **offsets, **_tiling(shape, tile), **flags, **options}


def _sizes(shape: Shape) -> Constants:
    padded = {"HP": shape.padded_hidden, "LP": shape.padded_latent, "CP": shape.padded_columns}
    return {"H": shape.heads, "D": shape.width, "C": shape.columns, **padded}


def _unpadded(shape: Shape) -> Constants:
    return {"HIDDEN": shape.hidden, "LATENT": shape.latent}


def _packed_offsets(shape: Shape) -> Constants:
    """The offset of each parameter in the packed weights and biases of a head, and the extents of these."""
    weights = dict(zip(("W1", "W2", "W3", "MERGED_MAP", "WEIGHTS"), shape.weight_offsets, strict=True))
    biases = dict(zip(("B1", "B2", "B3", "BIASES"), shape.bias_offsets, strict=True))
    return {name: offset for name, offset in (weights | biases).items() if name not in ("W1", "B1")}  # these are 0


def _gradient_offsets(shape: Shape) -> Constants:
    """The offset of the gradient of each parameter in a part, and the extent of a part."""
    names = ("D_W1", "D_B1", "D_W2", "D_B2", "D_W3", "D_B3", "D_MERGED", "D_BIAS", "PART")
    offsets = accumulate(gradient_sizes(shape), initial=0)
    return {name: offset for name, offset in zip(names, offsets, strict=True) if name != "D_W1"}  # this is 0


def _tiling(shape: Shape, tile: Tile) -> Constants:
    _, wide, narrow = column_groups(shape.columns)
    return {"ROWS": tile.rows, "WIDE": wide, "NARROW": narrow, "STAGES": tile.stages}


def _options(warps: int, stages: int) -> Constants:
    """Launch options. Multiply-adds fuse, whatever the default of the installed Triton is."""
    return {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
