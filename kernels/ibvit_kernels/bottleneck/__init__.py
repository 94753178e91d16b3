"""The bottleneck op: sizes, parameters and gradients, which all backends share. Needs neither Triton nor a GPU.

A backend is a module with `sizes_of`, `pack`, `forward`, `backward` and `gradient_sizes`: `host` launches Triton's
kernels, `native` calls the CPU library.
"""

from __future__ import annotations

from typing import Generic, NamedTuple, Self, TypeVar

from torch import Tensor

Part = TypeVar("Part")


class Sizes(NamedTuple):
    """The sizes of one block."""

    heads: int  # H
    width: int  # D
    columns: int  # C
    hidden: int  # h
    latent: int  # r

    @classmethod
    def of(cls, w1: Tensor, w3: Tensor, proj_weight: Tensor) -> Self:
        """Kernels are called for these sizes as numbers, so symbolic ones become numbers."""
        heads, width, hidden = w1.shape
        return cls(*(int(size) for size in (heads, width, proj_weight.shape[0], hidden, w3.shape[1])))


class Parameters(NamedTuple):
    """The bottlenecks and the output projection of one block, or the gradients of all these."""

    w1: Tensor  # [H, D, h]
    b1: Tensor  # [H, h]
    w2: Tensor  # [H, h, 2r]
    b2: Tensor  # [H, 2r]
    w3: Tensor  # [H, r, h]
    b3: Tensor  # [H, h]
    w4: Tensor  # [H, h, D]
    b4: Tensor  # [H, D]
    proj_weight: Tensor  # [C, H·D]
    proj_bias: Tensor  # [C]


class Packed(NamedTuple):
    """The parameters of one block in the layout that the kernels of a backend read, W4 folded into the projection."""

    weights: Tensor  # [H, ·], in the precision of the activations
    biases: Tensor  # float32


class Inner(NamedTuple, Generic[Part]):
    """Parts of the one vector of gradients that the backward kernel writes, in this order: tensors, or sizes.

    merged is the gradient of W4 folded into the projection; the gradients of w4 and proj_weight follow from it. Its
    part is empty for a backend that has it elsewhere.
    """

    w1: Part
    b1: Part
    w2: Part
    b2: Part
    w3: Part
    b3: Part
    merged: Part
    proj_bias: Part


class Gradients(NamedTuple):
    """What a backward pass returns."""

    y: Tensor  # as y
    inner: Tensor  # float32, see `Inner`
    w4: Tensor  # float32, as all of these
    b4: Tensor
    proj_weight: Tensor


def inner_sizes(sizes: Sizes, merged: int) -> Inner[int]:
    """Elements of each part, with `merged` of the merged map."""
    heads, width, columns, hidden, latent = sizes
    return Inner(
        w1=heads * width * hidden,
        b1=heads * hidden,
        w2=heads * hidden * 2 * latent,
        b2=heads * 2 * latent,
        w3=heads * latent * hidden,
        b3=heads * hidden,
        merged=merged,
        proj_bias=columns,
    )


def split_inner(vector: Tensor, sizes: Inner[int]) -> Inner[Tensor]:
    """The parts of the vector, as views."""
    return Inner(*vector.split(list(sizes)))


def parameter_gradients(gradients: Gradients, sizes: Inner[int]) -> Parameters:
    """The gradient of each parameter, as views; views of the vector have one axis."""
    inner = split_inner(gradients.inner, sizes)
    return Parameters(
        w1=inner.w1,
        b1=inner.b1,
        w2=inner.w2,
        b2=inner.b2,
        w3=inner.w3,
        b3=inner.b3,
        w4=gradients.w4,
        b4=gradients.b4,
        proj_weight=gradients.proj_weight,
        proj_bias=inner.proj_bias,
    )
