"""Device functions that the mixture kernels share: sums over components, and the store of these sums.

Sums are a tuple with one vector [samples] for one channel. For two channels (PAIR) there are three vectors: sums of the
terms of the first channel, of the terms of the second, and of the products of both. A block of components is summed in
float32, and the sums of all blocks are added in float64.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def zero_sums(SAMPLES: tl.constexpr, dtype: tl.constexpr, PAIR: tl.constexpr) -> tl.tuple:
    """Sums over no components."""
    zero = tl.zeros([SAMPLES], dtype)
    if PAIR:
        return zero, zero, zero
    else:
        return (zero,)


@triton.jit
def add_first(sums: tl.tuple, p_a: tl.tensor, AXIS: tl.constexpr, PAIR: tl.constexpr) -> tl.tuple:
    """Add the terms of the first channel in a tile; components lie along AXIS."""
    if PAIR:
        return sums[0] + tl.sum(p_a, AXIS), sums[1], sums[2]
    else:
        return (sums[0] + tl.sum(p_a, AXIS),)


@triton.jit
def add_second(sums: tl.tuple, p_a: tl.tensor, p_b: tl.tensor, AXIS: tl.constexpr) -> tl.tuple:
    """Add the terms of the second channel in a tile, and the products with the terms of the first."""
    return sums[0], sums[1] + tl.sum(p_b, AXIS), sums[2] + tl.sum(p_a * p_b, AXIS)


@triton.jit
def add_block(totals: tl.tuple, sums: tl.tuple, PAIR: tl.constexpr) -> tl.tuple:
    """Add the float32 sums of a block to the float64 sums."""
    if PAIR:
        return (
            totals[0] + sums[0].to(tl.float64),
            totals[1] + sums[1].to(tl.float64),
            totals[2] + sums[2].to(tl.float64),
        )
    else:
        return (totals[0] + sums[0].to(tl.float64),)


@triton.jit
def store_sums(
    out: tl.tensor,  # [1 or 3, splits, samples] float64
    totals: tl.tuple,
    split: tl.tensor,
    offs_s: tl.tensor,  # samples of this program
    samples: tl.tensor,  # of all programs
    PAIR: tl.constexpr,
) -> None:
    """Store the sums of one split of the components."""
    plane = tl.num_programs(1).to(tl.int64) * samples
    tl.store(out + split * samples + offs_s, totals[0])
    if PAIR:
        tl.store(out + plane + split * samples + offs_s, totals[1])
        tl.store(out + 2 * plane + split * samples + offs_s, totals[2])
