"""The bottleneck op on Triton: host side. Shapes and meaning are those of `ibvit.ops.reference`."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ibvit_kernels.bottleneck_forward import forward_kernel
from ibvit_kernels.bottleneck_pack import COLUMNS, pack_kernel
from ibvit_kernels.bottleneck_tiles import INTERPRETER, Shape, column_groups, forward_tile


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


def pack(shape: Shape, dtype: torch.dtype, params: tuple[Tensor, ...]) -> Packed:
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
        *params, *packed, **_sizes(shape), HIDDEN=shape.hidden, TILE=COLUMNS, num_warps=4
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
            RESIDUAL=residual is not None, LATENTS=latents, num_warps=tile.warps,
        )  # fmt: skip
    return update, kl, written


def architecture(device: torch.device) -> int:
    """Compute capability as in sm_90, or `INTERPRETER` for CPU tensors."""
    if device.type != "cuda":
        return INTERPRETER
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _sizes(shape: Shape) -> dict[str, int]:
    """The constexprs that all kernels share."""
    return {
        "H": shape.heads,
        "D": shape.width,
        "C": shape.columns,
        "LATENT": shape.latent,
        "HP": shape.padded_hidden,
        "LP": shape.padded_latent,
        "CP": shape.padded_columns,
    }
