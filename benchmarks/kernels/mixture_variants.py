"""Every shape in which the mixture kernels are launched that differs in its machine code enough to be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ibvit_kernels.mixture import direct, gemm, layouts


class Variant(NamedTuple):
    """One compilation, as `resources.compile_kernel` takes it, and what a thread of it computes."""

    name: str
    fn: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    options: dict[str, Any]
    exponents: int  # pairs of a sample and a component in one tile, a thread and channel


def direct_variant(dims: Sequence[int], fused: bool) -> Variant:
    constants = direct.direct_options(dims, fused, layouts.DIRECT_BLOCK)
    exponents = constants["TILE"] * constants["COMPONENTS"] // (32 * constants["num_warps"])
    return _variant(f"direct d={_listed(dims)}{' fused' * fused}", direct.direct_sums, constants, exponents)


def gemm_variant(features: Sequence[int], arch: int) -> Variant:
    tile = gemm.gemm_tile(features, arch // 10)
    assert tile is not None
    exponents = tile.samples * tile.components // (32 * tile.warps)
    constants = gemm.gemm_options(features, tile)
    return _variant(f"gemm K={_listed(features)}", gemm.gemm_sums, constants, exponents)


def screen_variant(features: int) -> Variant:
    tile = gemm.SCREEN_TILE
    exponents = tile.samples * tile.components // (32 * tile.warps)
    return _variant(f"screen K={features}", gemm.screen_tiles, gemm.screen_options(features), exponents)


def variants(arch: int) -> list[Variant]:
    """All shapes: some fifty compilations for three architectures."""
    return [
        *(
            direct_variant(dims, fused)
            for dims in ((1,), (2,), (64,), (1, 1), (2, 2), (64, 64))
            for fused in (True, False)
        ),
        *(gemm_variant([k] * channels, arch) for k, channels in gemm.TILES),
        *(screen_variant(k) for k in (16, 32, 64, 128, 256)),
    ]


def chosen_variants(arch: int) -> list[Variant]:
    """The few that come closest to the limits of registers and shared memory."""
    return [
        direct_variant((2, 2), fused=True),
        direct_variant((2, 2), fused=False),
        direct_variant((64, 64), fused=False),
        gemm_variant([64], arch),
        gemm_variant([128], arch),
        gemm_variant([128, 128], arch),
        screen_variant(256),
    ]


def _variant(name: str, fn: Any, constants: dict[str, Any], exponents: int) -> Variant:
    signature = {argument: _type(argument) for argument in fn.arg_names if argument not in constants}
    options = {key: value for key, value in constants.items() if not key.isupper()}
    return Variant(name, fn, signature, {k: v for k, v in constants.items() if k.isupper()}, options, exponents)


def _type(argument: str) -> str:
    if argument in ("blocks", "per_split"):
        return "i32"
    if argument.startswith(("unit", "slack", "threshold")):
        return "fp32"
    if argument in ("flags", "coarse"):
        return "*i8"
    if argument == "out":
        return "*fp64"
    return "*fp16" if "high" in argument or "low" in argument else "*fp32"


def _listed(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))
