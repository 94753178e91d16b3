"""Sizes that the kernels are compiled for: padding, output-column groups, and fixed tiles per architecture and dtype.

Nothing is tuned at run time: a tile decides the order of summation, so it must be the same on every rank and every day.
Needs neither Triton nor a GPU.
"""

from __future__ import annotations

import functools
from itertools import accumulate
from typing import NamedTuple

from ibvit_kernels.bottleneck import Inner, Sizes, inner_sizes

DOT = 16  # the least extent of a tensor-core product


class Shape(Sizes):
    """The sizes of one block (`sizes` in `ibvit.ops.contracts`), and the layout that follows for the Triton kernels."""

    __slots__ = ()

    @property
    def padded_hidden(self) -> int:
        return max(self.hidden, DOT)

    @property
    def padded_latent(self) -> int:
        return max(self.latent, DOT)

    @property
    def padded_columns(self) -> int:
        groups, wide, narrow = column_groups(self.columns)
        return groups * (wide + narrow)

    @property
    def weight_offsets(self) -> list[int]:
        """Offsets of W1, W2, W3 and the merged map in the packed weights of a head, and the extent of all."""
        rows = (self.width, 2 * self.padded_latent, self.padded_latent, self.padded_columns)  # of h elements, padded
        return list(accumulate((self.padded_hidden * count for count in rows), initial=0))

    @property
    def weights_per_head(self) -> int:
        """Elements of the packed weights of a head."""
        return self.weight_offsets[-1]

    @property
    def bias_offsets(self) -> list[int]:
        """Offsets of b1, b2 and b3 in the packed biases of a head, and the extent of all."""
        return list(accumulate((self.padded_hidden, 2 * self.padded_latent, self.padded_hidden), initial=0))

    @property
    def biases_per_head(self) -> int:
        """Elements of the packed biases of a head."""
        return self.bias_offsets[-1]

    @property
    def biases(self) -> int:
        """Elements of the packed biases: of every head, then of the output."""
        return self.heads * self.biases_per_head + self.padded_columns


def gradient_sizes(shape: Shape) -> Inner[int]:
    """Elements of the gradients that the backward kernel computes."""
    return inner_sizes(shape, merged=shape.heads * shape.hidden * shape.columns)


@functools.cache
def column_groups(columns: int) -> tuple[int, int, int]:
    """(groups, wide, narrow): C is covered by groups of wide + narrow columns, powers of two; narrow may be 0.

    192 float32 columns are what the accumulators of 128 rows leave room for. Each group runs the encoder again, which
    costs about as much as 192 columns; the least total wins.

    Example:
        >>> [column_groups(c) for c in (192, 384, 768, 1024, 100)]
        [(1, 128, 64), (2, 128, 64), (4, 128, 64), (6, 128, 64), (1, 128, 0)]
    """
    widths = [(16, 0), (32, 0), (64, 0), (64, 32), (128, 0), (128, 64)]
    tilings = [(-(-columns // (wide + narrow)), wide, narrow) for wide, narrow in widths]
    return min(tilings, key=lambda tiling: tiling[0] * (tiling[1] + tiling[2] + 192))


class Tile(NamedTuple):
    """How the work of one kernel is divided."""

    rows: int  # tokens per program, or per step of the loop of a program
    warps: int
    stages: int  # depth of the software pipeline


class Launch(NamedTuple):
    """One launch of the backward kernel: the tile, how weights are read, and the gradients that it computes."""

    tile: Tile
    reload: bool = False  # weights are read again for each product, instead of staying on chip
    input: bool = False  # d_y, w1, b1
    posterior: bool = False  # w2, b2
    decoder: bool = False  # w3, b3
    merged: bool = False  # the merged map and the bias of the output


INTERPRETER = 0
"""The architecture that stands for Triton's interpreter."""


def forward_tile(arch: int, shape: Shape, itemsize: int) -> Tile:
    """Tile of the forward kernel for sm_<arch>, activations of `itemsize` bytes.

    A warp group of Hopper owns 64 rows, and Triton gives each warp group its own rows in a chain of products: eight
    warps with fewer than 128 rows would compute everything twice.
    """
    if arch == INTERPRETER:
        return Tile(16, 4, 1)
    if itemsize == 4 or is_large(shape):
        return Tile(16, 8, 1)
    return Tile(128, 8, 2 if arch >= 90 else 1)


def backward_launches(arch: int, shape: Shape, itemsize: int) -> tuple[Launch, ...]:
    """What the backward pass launches: as many gradients at once as fit into registers.

    Every launch recomputes the forward pass, so few launches are better. `input` and `decoder` share the gradient of g,
    and `merged` needs no more than the forward pass. The weights do not all fit on chip where they are float32, in TF32
    parts, and where heads are large. float32 launches still spill up to 48 bytes per thread.
    """
    one_group = column_groups(shape.columns)[0] == 1
    if arch >= 90 and itemsize == 2 and not is_large(shape):
        tile = Tile(128, 8, 1)
        first = Launch(tile, input=True, decoder=True)
        if one_group:
            return first, Launch(tile, posterior=True, merged=True)
        return first, Launch(tile, posterior=True), Launch(tile, merged=True)
    if itemsize == 2 and not is_large(shape):
        tile = Tile(16, 4, 1) if arch == INTERPRETER else Tile(32, 8, 1)
        return Launch(tile, input=True), Launch(tile, posterior=True, decoder=True), Launch(tile, merged=True)
    tile = Tile(16, 4, 1) if arch == INTERPRETER else Tile(16, 8, 1)
    return tuple(Launch(tile, reload=True, **{name: True}) for name in ("input", "posterior", "decoder", "merged"))


def is_large(shape: Shape) -> bool:
    """Whether the weights of a head are beyond the sizes of the paper (D = h = 64, r = 32)."""
    return max(shape.width, shape.hidden) > 64 or shape.latent > 32


def splits(shape: Shape, rows: int, rows_per_step: int, multiprocessors: int) -> int:
    """Programs among which the tokens of one head are divided: of all heads together, one per multiprocessor."""
    return max(1, min(multiprocessors // shape.heads, -(-rows // rows_per_step)))
