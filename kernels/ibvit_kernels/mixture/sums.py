"""Sums over components in a program's registers, and their way to memory: what the mixture kernels share.

Sums are a tuple of one vector for one channel. For two channels (PAIR) it holds three: over the terms of the first
channel, over those of the second, and over their products. The float32 sums of a block of components are added to
float64 sums.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def zero_sums(SAMPLES: tl.constexpr, dtype: tl.constexpr, PAIR: tl.constexpr) -> tl.tuple:
    zero = tl.zeros([SAMPLES], dtype)
    if PAIR:
        return zero, zero, zero
    else:
        return (zero,)


@triton.jit
def add_first(sums: tl.tuple, p_a: tl.tensor, AXIS: tl.constexpr, PAIR: tl.constexpr) -> tl.tuple:
    """Add a tile's terms of the first channel; components lie along AXIS."""
    if PAIR:
        return sums[0] + tl.sum(p_a, AXIS), sums[1], sums[2]
    else:
        return (sums[0] + tl.sum(p_a, AXIS),)


@triton.jit
def add_second(sums: tl.tuple, p_a: tl.tensor, p_b: tl.tensor, AXIS: tl.constexpr) -> tl.tuple:
    """Add a tile's terms of the second channel, and their products with those of the first."""
    return sums[0], sums[1] + tl.sum(p_b, AXIS), sums[2] + tl.sum(p_a * p_b, AXIS)


@triton.jit
def add_block(totals: tl.tuple, sums: tl.tuple, PAIR: tl.constexpr) -> tl.tuple:
    """Add a block's float32 sums to the float64 ones."""
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
    offs_s: tl.tensor,  # this program's samples
    samples: tl.tensor,
    PAIR: tl.constexpr,
) -> None:
    plane = tl.num_programs(1).to(tl.int64) * samples
    tl.store(out + split * samples + offs_s, totals[0])
    if PAIR:
        tl.store(out + plane + split * samples + offs_s, totals[1])
        tl.store(out + 2 * plane + split * samples + offs_s, totals[2])
