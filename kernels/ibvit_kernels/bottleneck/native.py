"""The bottleneck op on the CPU library: host side, float32. Shapes and meaning are those of `ibvit.ops.reference`.

`instruction_set` is one of `library.instruction_sets()`; None: the first. The op passes none; tests run them all.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ibvit_kernels import library
from ibvit_kernels.bottleneck import Gradients, Inner, Packed, Parameters, Sizes, inner_sizes, parameter_gradients


class Shape(Sizes):
    """The sizes of one block (`sizes` in `ibvit.ops.contracts`), and the layout that follows for the library."""

    __slots__ = ()

    @property
    def weights_per_head(self) -> int:
        """Elements of the packed weights of a head."""
        return _counts(self)[0] // self.heads

    @property
    def biases(self) -> int:
        """Elements of the packed biases."""
        return _counts(self)[1]


sizes_of = Shape.of


def gradient_sizes(shape: Shape) -> Inner[int]:
    """Elements of the gradients that `backward` returns in one vector; the merged map is not among them."""
    return inner_sizes(shape, merged=0)


def pack(shape: Shape, dtype: torch.dtype, params: Parameters, *, instruction_set: str | None = None) -> Packed:
    """Fold W4 into the projection and lay the parameters out."""
    params = _dense(params)
    new = params.w1.new_empty
    packed = Packed(new(shape.heads, shape.weights_per_head, dtype=dtype), new(shape.biases))
    call("pack", instruction_set, shape, _addresses(params), *(x.data_ptr() for x in packed))
    return packed


def forward(
    shape: Shape, y: Tensor, packed: Packed, key: Tensor, block: int, *, instruction_set: str | None = None
) -> tuple[Tensor, Tensor]:
    """update ``[B, N, C]`` and KL ``[B, H, N]``."""
    batch, tokens, _ = y.shape
    update = y.new_empty(batch, tokens, shape.columns)
    kl = y.new_empty(batch, shape.heads, tokens)
    call(
        "forward", instruction_set, shape, batch, tokens, *(x.data_ptr() for x in (y, *packed, key)), block,
        update.data_ptr(), kl.data_ptr(),
    )  # fmt: skip
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
    *,
    instruction_set: str | None = None,
) -> Gradients:
    """Gradients of y and of the parameters."""
    batch, tokens, _ = y.shape
    params = _dense(params)
    sizes = gradient_sizes(shape)
    gradients = Gradients(
        y=torch.empty_like(y),
        inner=y.new_empty(sum(sizes)),
        w4=torch.empty_like(params.w4),
        b4=torch.empty_like(params.b4),
        proj_weight=torch.empty_like(params.proj_weight),
    )
    d_params = parameter_gradients(gradients, sizes)
    call(
        "backward", instruction_set, shape, batch, tokens, *(x.data_ptr() for x in (d_update, d_kl, y)),
        _addresses(params), *(x.data_ptr() for x in packed), key.data_ptr(), block, gradients.y.data_ptr(),
        _addresses(d_params),
    )  # fmt: skip
    return gradients


def _dense(params: Parameters) -> Parameters:
    """As the library reads them: float32, contiguous."""
    return Parameters(*(param.float().contiguous() for param in params))


def call(name: str, instruction_set: str | None, shape: Shape, *arguments: object) -> None:
    """Run `ibvit_bottleneck_<name>` of csrc/bottleneck/bottleneck.cpp on torch's number of threads."""
    function = getattr(library.load(), f"ibvit_bottleneck_{name}")
    index = library.instruction_set_index(instruction_set)
    library.check(function(library.BottleneckSizes(*shape), *arguments, torch.get_num_threads(), index))


@functools.cache
def _counts(shape: Shape) -> tuple[int, int]:
    loaded, sizes = library.load(), library.BottleneckSizes(*shape)
    return loaded.ibvit_bottleneck_weights(sizes), loaded.ibvit_bottleneck_biases(sizes)


def _addresses(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
