"""What the compiled mixture kernels use, and what their instruction counts predict.

Registers, stack and shared memory of the kernels for three architectures, and for an H200 the seconds that 2*10^7
samples x 980,000 components would take if every pair is computed: `overlapped` if the busiest unit never waits,
`serial` if the units take turns. A prediction, not a measurement.
"""

from __future__ import annotations

from functools import partial

from benchmarks.h200 import CLOCK, EXP2, ISSUE, MULTIPROCESSORS, TENSOR_FLOPS
from benchmarks.kernels.mixture_variants import Variant, direct_variant, gemm_variant, screen_variant, variants
from benchmarks.kernels.resources import ARCHITECTURES, compile_kernel, compile_sass, loops
from benchmarks.recording import Benchmark, Case, Row

PAIRS = 2e7 * 980_000
CLOCKS = MULTIPROCESSORS * CLOCK


def benchmark(full: bool) -> Benchmark:
    cases = [
        (1, direct_variant((1,), fused=True)),
        (2, direct_variant((2,), fused=True)),
        (2, direct_variant((2,), fused=False)),
        *((d, gemm_variant([max(16, 2 * d)], 90)) for d in (8, 16, 32, 64)),
        *((d, screen_variant(2 * d)) for d in (32, 64)),
        *((d, direct_variant((d,), fused)) for d in (32, 64) for fused in (True, False)),
    ]
    return Benchmark(
        "resources of each kernel; seconds of an H200 for 2e7 samples x 980,000 components, nothing skipped, by "
        "instruction counts",
        [
            *(Case(f"sm_{arch}", partial(resources, arch)) for arch in (ARCHITECTURES if full else ())),
            *(Case(f"d={d} {v.name}", partial(prediction, d, v)) for d, v in cases[: None if full else 1]),
        ],
        measured=False,
    )


def resources(arch: int) -> list[Row]:
    return [
        {"part": "resources", "arch": arch, "kernel": v.name, **compile_kernel(*v[1:5], arch)._asdict()}
        for v in variants(arch)
    ]


def prediction(d: int, variant: Variant) -> list[Row]:
    """Instructions that a pair of a sample and a component takes in the loops, and seconds on each unit."""
    nested = loops(compile_sass(*variant[1:5], 90))
    inner, around = nested[0], nested[1] if len(nested) > 1 else nested[0]
    over_dimensions = variant.name.startswith("direct") and not variant.constexprs["UNROLLED"]
    instructions = around.total() + (d - 1) * inner.total() if over_dimensions else inner.total()
    exp2 = (around if over_dimensions else inner)["MUFU"] / variant.exponents
    products = {"gemm": 3, "screen": 1, "direct": 0}[variant.name.split()[0]]
    features = variant.constexprs.get("KA", variant.constexprs.get("K", 0))
    seconds = {
        "issue_s": PAIRS * instructions / variant.exponents / (CLOCKS * ISSUE),
        "exp2_s": PAIRS * exp2 / (CLOCKS * EXP2),
        "tensor_s": PAIRS * products * 2 * features / TENSOR_FLOPS,
    }
    counts = {f"inner_{name.lower()}_per_pair": n / variant.exponents for name, n in inner.most_common(8)}
    return [
        {
            "part": "prediction", "d": d, "kernel": variant.name,
            "instructions_per_pair": instructions / variant.exponents, **counts, **seconds,
            "overlapped_s": max(seconds.values()), "serial_s": sum(seconds.values()),
        }
    ]  # fmt: skip
