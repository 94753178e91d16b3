"""Sums of exponentials of Gaussian log-densities as matrix products, and a screen for tiles that are negligible.

The exponents of a tile are one product of sample features with component features (`expansion`). Each factor is
split into two float16 numbers, 22 bits together; three of the four products count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ibvit_kernels.mixture.sorting import COMPONENT_PADDING, SAMPLE_TILE, split_components
from ibvit_kernels.mixture.sums import add_block, add_first, add_second, store_sums, zero_sums

FLAG_COMPONENTS = 64  # components that one flag of the screen covers
SCREEN_SLACK = 2**-9.9  # bounds the error of x . y, rounded to float16, by this times |x| |y|; a unit roundoff is 2^-11


class Tile(NamedTuple):
    """Extents of a tile, and launch options of a program."""

    samples: int
    components: int
    warps: int
    stages: int


# For sm_90: (K, channels) -> tile; K is the number of features, padded. Shared memory holds the features of the samples
# and `stages` tiles of components. On sm_80 the features of the samples are in registers; on sm_100 the products are in
# tensor memory.
TILES = {
    (16, 1): Tile(128, 64, 4, 2),
    (32, 1): Tile(128, 64, 4, 2),
    (64, 1): Tile(128, 64, 4, 2),
    (128, 1): Tile(256, 64, 8, 2),
    (256, 1): Tile(128, 32, 8, 2),
    (16, 2): Tile(128, 64, 8, 2),
    (32, 2): Tile(128, 64, 8, 2),
    (64, 2): Tile(128, 64, 8, 2),
    (128, 2): Tile(128, 32, 8, 2),
}
OTHER_TILES = {
    8: {(128, 1): Tile(128, 32, 8, 2), (64, 2): Tile(128, 32, 8, 2), (128, 2): Tile(128, 32, 8, 1)},
    10: {(128, 1): Tile(128, 64, 4, 1), (128, 2): Tile(128, 32, 8, 1)},
}
SCREEN_TILE = Tile(SAMPLE_TILE, FLAG_COMPONENTS, 8, 2)


def gemm_tile(features: Sequence[int], generation: int) -> Tile | None:
    """The tile for channels of these (padded) numbers of features on devices of compute capability `generation`.x.

    None if no tile has room for them.
    """
    key = max(features), len(features)
    return OTHER_TILES.get(generation, {}).get(key, TILES.get(key))


class GemmChannel(NamedTuple):
    """The operands of one channel, in the order of the arguments of the kernel."""

    high: Tensor  # [S, K] float16, S a multiple of SAMPLE_TILE
    low: Tensor  # [S, K] float16
    reference: Tensor  # [S] float32
    component_high: Tensor  # [M, K] float16, M a multiple of COMPONENT_PADDING
    component_low: Tensor  # [M, K] float16
    const: Tensor  # [M] float32; -inf on padding
    unit: float  # exponent = unit * (features . component features) + const - reference; a power of two


@triton.jit
def _product(
    high: tl.tensor,
    low: tl.tensor,
    component_high: tl.tensor,
    component_low: tl.tensor,
    offs_m: tl.tensor,
    K: tl.constexpr,
) -> tl.tensor:
    """Products [samples, components] of a tile. The small ones are added first, so that they are not rounded away."""
    offs_k = tl.arange(0, K)
    offset = offs_m[None, :] * K + offs_k[:, None]
    b_high = tl.load(component_high + offset)
    b_low = tl.load(component_low + offset)
    t = tl.dot(low, b_high)
    t = tl.dot(high, b_low, t)
    return tl.dot(high, b_high, t)


@triton.jit(do_not_specialize=["blocks", "per_split"])
def gemm_sums(
    high_a: tl.tensor,  # [samples, KA] float16
    low_a: tl.tensor,
    reference_a: tl.tensor,  # [samples] float32
    component_high_a: tl.tensor,  # [components, KA] float16
    component_low_a: tl.tensor,
    const_a: tl.tensor,  # [components] float32
    unit_a: tl.tensor,  # exponent = unit_a * product + const_a - reference_a
    high_b: tl.tensor,  # the same of the second channel; not read where KB is 0
    low_b: tl.tensor,
    reference_b: tl.tensor,
    component_high_b: tl.tensor,
    component_low_b: tl.tensor,
    const_b: tl.tensor,
    unit_b: tl.tensor,
    flags: tl.tensor,  # [samples / FLAG_SAMPLES, blocks] int8
    out: tl.tensor,  # [1 or 3, splits, samples] float64
    blocks: tl.tensor,
    per_split: tl.tensor,
    KA: tl.constexpr,
    KB: tl.constexpr,
    SAMPLES: tl.constexpr,
    COMPONENTS: tl.constexpr,
    BLOCK: tl.constexpr,
    FLAG_SAMPLES: tl.constexpr,
) -> None:
    tile = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1).to(tl.int64)
    samples = tl.num_programs(0).to(tl.int64) * SAMPLES
    offs_s = tile * SAMPLES + tl.arange(0, SAMPLES)
    offset_a = offs_s[:, None] * KA + tl.arange(0, KA)[None, :]
    h_a = tl.load(high_a + offset_a)
    l_a = tl.load(low_a + offset_a)
    ref_a = tl.load(reference_a + offs_s)
    if KB > 0:
        offset_b = offs_s[:, None] * KB + tl.arange(0, KB)[None, :]
        h_b = tl.load(high_b + offset_b)
        l_b = tl.load(low_b + offset_b)
        ref_b = tl.load(reference_b + offs_s)
    totals = zero_sums(SAMPLES, tl.float64, KB > 0)
    flags += tile * SAMPLES // FLAG_SAMPLES * blocks
    for block in range(split * per_split, tl.minimum((split + 1) * per_split, blocks.to(tl.int64))):
        if tl.load(flags + block) != 0:
            sums = zero_sums(SAMPLES, tl.float32, KB > 0)
            for first in range(0, BLOCK, COMPONENTS):
                offs_m = block * BLOCK + first + tl.arange(0, COMPONENTS)
                t_a = _product(h_a, l_a, component_high_a, component_low_a, offs_m, KA)
                p_a = tl.exp2(tl.fma(t_a, unit_a, tl.load(const_a + offs_m)[None, :] - ref_a[:, None]))
                sums = add_first(sums, p_a, 1, KB > 0)
                if KB > 0:
                    t_b = _product(h_b, l_b, component_high_b, component_low_b, offs_m, KB)
                    p_b = tl.exp2(tl.fma(t_b, unit_b, tl.load(const_b + offs_m)[None, :] - ref_b[:, None]))
                    sums = add_second(sums, p_a, p_b, 1)
            totals = add_block(totals, sums, KB > 0)
    store_sums(out, totals, split, offs_s, samples, KB > 0)


@triton.jit(do_not_specialize=["blocks", "per_split"])
def screen_tiles(
    high: tl.tensor,  # [samples, K] float16
    reference: tl.tensor,  # [samples] float32
    norm: tl.tensor,  # [samples / SAMPLES] float32: largest norm of the features of the samples in a tile
    component_high: tl.tensor,  # [components, K] float16
    const: tl.tensor,  # [components] float32
    component_norm: tl.tensor,  # [components / COMPONENTS] float32
    unit: tl.tensor,  # exponent = unit * product + const - reference
    slack: tl.tensor,  # unit * SCREEN_SLACK
    threshold: tl.tensor,  # exponents above this matter
    coarse: tl.tensor,  # [samples / SAMPLES, blocks] int8: blocks in which an exponent may exceed the threshold
    flags: tl.tensor,  # [samples / SAMPLES, components / COMPONENTS] int8, out; zero on entry
    blocks: tl.tensor,
    per_split: tl.tensor,
    K: tl.constexpr,
    SAMPLES: tl.constexpr,
    COMPONENTS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    TILES: tl.constexpr = BLOCK // COMPONENTS
    tile = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1).to(tl.int64)
    offs_s = tile * SAMPLES + tl.arange(0, SAMPLES)
    offs_k = tl.arange(0, K)
    h = tl.load(high + offs_s[:, None] * K + offs_k[None, :])
    ref = tl.load(reference + offs_s)
    margin = tl.load(norm + tile) * slack
    zero = tl.zeros([1, 1], tl.int32)  # rank 2 throughout: Triton 3.6 cannot reduce to a scalar on sm_100
    for block in range(split * per_split, tl.minimum((split + 1) * per_split, blocks.to(tl.int64))):
        if tl.load(coarse + tile * blocks + block) != 0:
            for i in range(TILES):
                index = block * TILES + i
                offs_m = index * COMPONENTS + tl.arange(0, COMPONENTS)
                t = tl.dot(h, tl.load(component_high + offs_m[None, :] * K + offs_k[:, None]))
                t = tl.fma(t, unit, tl.load(const + offs_m)[None, :] - ref[:, None])
                peak = tl.max(tl.max(t, 1, keep_dims=True), 0, keep_dims=True)
                peak += margin * tl.load(component_norm + index)
                tl.store(flags + tile * blocks * TILES + index + zero, (peak > threshold).to(tl.int8))


def gemm_options(features: Sequence[int], tile: Tile) -> dict[str, Any]:
    """Constants and compiler options of `gemm_sums`."""
    return {
        "KA": features[0],
        "KB": features[1] if len(features) > 1 else 0,
        "SAMPLES": tile.samples,
        "COMPONENTS": tile.components,
        "BLOCK": COMPONENT_PADDING,
        "FLAG_SAMPLES": SAMPLE_TILE,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        "enable_fp_fusion": True,
    }


def screen_options(features: int) -> dict[str, Any]:
    """Constants and compiler options of `screen_tiles`."""
    return {
        "K": features,
        "SAMPLES": SCREEN_TILE.samples,
        "COMPONENTS": SCREEN_TILE.components,
        "BLOCK": COMPONENT_PADDING,
        "num_warps": SCREEN_TILE.warps,
        "num_stages": SCREEN_TILE.stages,
        "enable_fp_fusion": True,
    }


def launch_gemm(channels: Sequence[GemmChannel], flags: Tensor) -> Tensor:
    """Sums over components: [1, S] for one channel; [3, S] (first, second, product) for two. float64.

    flags: [S / SAMPLE_TILE, M / COMPONENT_PADDING] int8.
    """
    a, b = channels[0], channels[-1]
    features = [c.high.shape[1] for c in channels]
    tile = gemm_tile(features, generation(a.high))
    if tile is None:
        raise ValueError(f"channels: expected at most 256 features for one, 128 each for two, got {features}")
    samples, blocks = len(a.high), flags.shape[1]
    splits, per_split = split_components(samples // tile.samples, blocks)
    out = torch.empty(2 * len(channels) - 1, splits, samples, dtype=torch.float64, device=a.high.device)
    gemm_sums[(samples // tile.samples, splits)](*a, *b, flags, out, blocks, per_split, **gemm_options(features, tile))
    return out.sum(1)


def launch_screen(channel: GemmChannel, coarse: Tensor, threshold: float) -> Tensor:
    """[S / SAMPLE_TILE, M / FLAG_COMPONENTS] int8: may an exponent of the tile exceed `threshold`?

    coarse: [S / SAMPLE_TILE, M / COMPONENT_PADDING] int8: 0 for blocks where no exponent does.
    """
    tiles, blocks = coarse.shape
    splits, per_split = split_components(tiles, blocks)
    flags = torch.zeros(tiles, len(channel.const) // FLAG_COMPONENTS, dtype=torch.int8, device=coarse.device)
    norm = _tile_norms(channel.high, SAMPLE_TILE)
    component_norm = _tile_norms(channel.component_high, FLAG_COMPONENTS)
    screen_tiles[(tiles, splits)](
        channel.high, channel.reference, norm, channel.component_high, channel.const, component_norm,
        channel.unit, channel.unit * SCREEN_SLACK, threshold, coarse, flags, blocks, per_split,
        **screen_options(channel.high.shape[1]),
    )  # fmt: skip
    return flags


def generation(tensor: Tensor) -> int:
    """Major version of the compute capability of the device; the interpreter counts as sm_90."""
    return torch.cuda.get_device_capability(tensor.device)[0] if tensor.is_cuda else 9


def _tile_norms(rows: Tensor, tile: int) -> Tensor:
    """Largest Euclidean norm in each run of `tile` rows; at least 1, which covers what float16 rounds to nothing."""
    return rows.float().norm(dim=1).view(-1, tile).amax(1).clamp(min=1)
