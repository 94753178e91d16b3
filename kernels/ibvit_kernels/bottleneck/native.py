"""The bottleneck op on the CPU library: host side, float32. Shapes and meaning are those of `ibvit.ops.reference`."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ibvit_kernels import library
from ibvit_kernels.bottleneck import Sizes


class Shape(Sizes):
    """One block's sizes, and what the library makes of them."""

    __slots__ = ()

    @property
    def weights_per_head(self) -> int:
        """Elements of one head's packed weights."""
        return _counts(self)[0] // self.heads

    @property
    def biases(self) -> int:
        """Elements of the packed biases."""
        return _counts(self)[1]


class Packed(NamedTuple):
    """One block's parameters as the library reads them."""

    weights: Tensor  # [H, ·]
    biases: Tensor


shape_of = Shape.of


def gradient_sizes(shape: Shape) -> list[int]:
    """Elements of what `backward` returns in one vector: w1, b1, w2, b2, w3, b3, nothing, output bias."""
    heads, width, columns, hidden, latent = shape
    per_head = (width * hidden, hidden, hidden * 2 * latent, 2 * latent, latent * hidden, hidden, 0)
    return [*(heads * size for size in per_head), columns]


def pack(shape: Shape, dtype: torch.dtype, params: Sequence[Tensor]) -> Packed:
    """Fold W4 into the projection and lay the parameters out.

    params: w1, b1, w2, b2, w3, b3, w4, b4, proj_weight, proj_bias.
    """
    params = [param.float().contiguous() for param in params]
    new = params[0].new_empty
    packed = Packed(new(shape.heads, shape.weights_per_head, dtype=dtype), new(shape.biases))
    call("pack", shape, _addresses(params), *(x.data_ptr() for x in packed))
    return packed


def forward(
    shape: Shape, y: Tensor, packed: Packed, residual: Tensor | None, key: Tensor, block: int
) -> tuple[Tensor, Tensor]:
    """update ``[B, N, C]`` (plus residual, in its dtype, if given) and KL ``[B, H, N]``."""
    batch, tokens, _ = y.shape
    update = y.new_empty(batch, tokens, shape.columns)
    kl = y.new_empty(batch, shape.heads, tokens)
    call(
        "forward", shape, batch, tokens, *(x.data_ptr() for x in (y, *packed, key)), block, update.data_ptr(),
        kl.data_ptr(),
    )  # fmt: skip
    return update if residual is None else (residual + update).to(residual.dtype), kl


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
    """Gradients: of y, the inner ones in one vector (`gradient_sizes`), of w4, b4, proj_weight."""
    batch, tokens, _ = y.shape
    params = [param.float().contiguous() for param in params]
    d_y = torch.empty_like(y)
    sizes = gradient_sizes(shape)
    d_inner = y.new_empty(sum(sizes))
    *inner, _, d_proj_bias = d_inner.split(sizes)
    outer = tuple(torch.empty_like(params[i]) for i in (6, 7, 8))
    operands = [x.data_ptr() for x in (d_update, d_kl, y)]
    call(
        "backward", shape, batch, tokens, *operands, _addresses(params), *(x.data_ptr() for x in packed),
        key.data_ptr(), block, d_y.data_ptr(), _addresses([*inner, *outer, d_proj_bias]),
    )  # fmt: skip
    return d_y, d_inner, *outer


instruction_set: str | None = None
"""Which of `library.instruction_sets()` runs; None: the fastest. For tests."""


def call(name: str, shape: Shape, *arguments: object) -> None:
    function = getattr(library.load(), f"ibvit_bottleneck_{name}")
    chosen = library.instruction_set_index(instruction_set)
    library.check(function(library.BottleneckSizes(*shape), *arguments, torch.get_num_threads(), chosen))


@functools.cache
def _counts(shape: Shape) -> tuple[int, int]:
    loaded, sizes = library.load(), library.BottleneckSizes(*shape)
    return loaded.ibvit_bottleneck_weights(sizes), loaded.ibvit_bottleneck_biases(sizes)


def _addresses(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
