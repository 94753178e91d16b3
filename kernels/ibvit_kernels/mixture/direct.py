"""Sums of exponentials of Gaussian log-densities by direct differences: exact where the expanded quadratic cancels.

A program owns `SAMPLE_TILE` samples, spread over the threads, and walks over blocks of components. All threads read the
same components, so that sums over components stay within a thread. Blocks with flag 0 are skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ibvit_kernels.mixture.sorting import SAMPLE_TILE, Components, split_components
from ibvit_kernels.mixture.sums import add_block, add_first, add_second, store_sums, zero_sums

WARPS = 2  # 4 samples per thread
UNROLL_LIMIT = 2  # dimensions up to which samples stay in registers; beyond, they are read again for each tile


class DirectChannel(NamedTuple):
    """The operands of one channel; exponents in units of log 2, relative to the reference of the sample."""

    u: Tensor  # [d, S] float32, S a multiple of SAMPLE_TILE
    reference: Tensor  # [S] float32
    centre: Tensor  # [d, M] float32: mu, or -mu * scale where `fused`
    scale: Tensor  # [d, M] float32: sqrt(log2(e) / 2) / sigma
    const: Tensor  # [M] float32: log2 of the factor of the density; -inf on padding


class DirectComponents(NamedTuple):
    """The part of a DirectChannel that belongs to the components."""

    centre: Tensor
    scale: Tensor
    const: Tensor
    offset: float  # was subtracted from const, and must be subtracted from the reference


def direct_components(components: Components, fused: bool) -> DirectComponents:
    """Round to float32, one row per dimension; mu * scale is rounded once, with the scale that the kernel reads."""
    scale = components.scale.float()
    centre = -components.mu * scale.double() if fused else components.mu
    return DirectComponents(
        centre.float().T.contiguous(), scale.T.contiguous(), components.const.float(), components.offset
    )


@triton.jit
def _terms(
    u: tl.tensor,
    reference: tl.tensor,
    centre: tl.tensor,
    scale: tl.tensor,
    const: tl.tensor,
    offs_s: tl.tensor,
    offs_m: tl.tensor,
    samples: tl.tensor,
    components: tl.tensor,
    D: tl.constexpr,
    FUSED: tl.constexpr,
    UNROLLED: tl.constexpr,
) -> tl.tensor:
    """Terms [components, samples] of a tile; `reference` is in registers, all else in memory."""
    t = reference[None, :] - tl.load(const + offs_m)[:, None]
    if UNROLLED:
        for j in tl.static_range(D):
            t = _add_square(t, u, centre, scale, offs_s, offs_m, j * samples, j * components, FUSED)
    else:
        for j in range(D):
            t = _add_square(t, u, centre, scale, offs_s, offs_m, j * samples, j * components, FUSED)
    return tl.exp2(t * -1.0)  # unlike -t, which is 0 - t, a modifier of the instruction


@triton.jit
def _add_square(
    t: tl.tensor,
    u: tl.tensor,
    centre: tl.tensor,
    scale: tl.tensor,
    offs_s: tl.tensor,
    offs_m: tl.tensor,
    u_row: tl.tensor,
    component_row: tl.tensor,
    FUSED: tl.constexpr,
) -> tl.tensor:
    x = tl.load(u + u_row + offs_s)[None, :]
    m = tl.load(centre + component_row + offs_m)[:, None]
    s = tl.load(scale + component_row + offs_m)[:, None]
    z = tl.fma(x, s, m) if FUSED else (x - m) * s
    return tl.fma(z, z, t)


@triton.jit(do_not_specialize=["blocks", "per_split"])
def direct_sums(
    u_a: tl.tensor,  # [DA, samples] float32
    reference_a: tl.tensor,  # [samples] float32
    centre_a: tl.tensor,  # [DA, components] float32
    scale_a: tl.tensor,  # [DA, components] float32
    const_a: tl.tensor,  # [components] float32
    u_b: tl.tensor,  # the same of the second channel; not read where DB is 0
    reference_b: tl.tensor,
    centre_b: tl.tensor,
    scale_b: tl.tensor,
    const_b: tl.tensor,
    flags: tl.tensor,  # [samples / TILE, blocks] int8: 0 where a block is negligible for all samples of the tile
    out: tl.tensor,  # [1 or 3, splits, samples] float64: sums over channel a, channel b, their product
    blocks: tl.tensor,  # components / BLOCK
    per_split: tl.tensor,
    DA: tl.constexpr,
    DB: tl.constexpr,
    FUSED: tl.constexpr,
    UNROLLED: tl.constexpr,
    TILE: tl.constexpr,
    COMPONENTS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    tile = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1).to(tl.int64)
    samples = tl.num_programs(0).to(tl.int64) * TILE
    components = blocks.to(tl.int64) * BLOCK
    # Declared not contiguous. Otherwise loads are vectorised along samples, and every coordinate passes through shared
    # memory before a thread computes with it.
    offs_s = tl.max_contiguous(tile * TILE + tl.arange(0, TILE), 1)
    ref_a = tl.load(reference_a + offs_s)
    if DB > 0:
        ref_b = tl.load(reference_b + offs_s)
    totals = zero_sums(TILE, tl.float64, DB > 0)
    for block in range(split * per_split, tl.minimum((split + 1) * per_split, blocks.to(tl.int64))):
        if tl.load(flags + tile * blocks + block) != 0:
            sums = zero_sums(TILE, tl.float32, DB > 0)
            for first in range(0, BLOCK, COMPONENTS):
                offs_m = block * BLOCK + first + tl.arange(0, COMPONENTS)
                p_a = _terms(
                    u_a, ref_a, centre_a, scale_a, const_a, offs_s, offs_m, samples, components, DA, FUSED, UNROLLED
                )
                sums = add_first(sums, p_a, 0, DB > 0)
                if DB > 0:
                    p_b = _terms(
                        u_b, ref_b, centre_b, scale_b, const_b, offs_s, offs_m, samples, components, DB, FUSED, UNROLLED
                    )
                    sums = add_second(sums, p_a, p_b, 0)
            totals = add_block(totals, sums, DB > 0)
    store_sums(out, totals, split, offs_s, samples, DB > 0)


def direct_options(dims: Sequence[int], fused: bool, block: int) -> dict[str, Any]:
    """Constants and compiler options of `direct_sums` for channels of these dimensions."""
    unrolled = max(dims) <= UNROLL_LIMIT
    return {
        "DA": dims[0],
        "DB": dims[1] if len(dims) > 1 else 0,
        "FUSED": fused,
        "UNROLLED": unrolled,
        "TILE": SAMPLE_TILE,
        # The registers of a thread hold this many exponents for each of 4 samples. That is enough to hide latency where
        # samples stay in registers, and enough arithmetic per load where they are read again.
        "COMPONENTS": 8 if unrolled or len(dims) > 1 else 16,
        "BLOCK": block,
        "num_warps": WARPS,
        "enable_fp_fusion": True,
    }


def launch_direct(channels: Sequence[DirectChannel], flags: Tensor, fused: bool) -> Tensor:
    """Sums over components: [1, S] for one channel; [3, S] (first, second, product) for two. float64.

    flags: [S / SAMPLE_TILE, blocks] int8; blocks of equal size cover the components.
    """
    a, b = channels[0], channels[-1]
    tiles, blocks = flags.shape
    splits, per_split = split_components(tiles, blocks)
    shape = (2 * len(channels) - 1, splits, a.u.shape[1])
    out = torch.empty(shape, dtype=torch.float64, device=a.u.device)
    options = direct_options([len(c.u) for c in channels], fused, len(a.const) // blocks)
    direct_sums[(tiles, splits)](*a, *b, flags, out, blocks, per_split, **options)
    return out.sum(1)
