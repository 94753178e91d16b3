"""What the compiled mixture kernels use, and what their instruction counts predict. Needs no GPU.

    python -m benchmarks.mixture_sass [--all]

Prints registers, stack and shared memory of the kernels for three architectures (`--all`: of every shape), and for an
H200 the seconds that 2*10^7 samples x 980,000 components would take if every pair is computed: `overlapped` if the
busiest unit never waits, `serial` if the units take turns. A prediction, not a measurement. Writes
results/compiled-mixture.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import triton
from tests.kernels.mixture_variants import (
    Variant,
    chosen_variants,
    direct_variant,
    gemm_variant,
    screen_variant,
    variants,
)
from tests.kernels.resources import ARCHITECTURES, compile_kernel, compile_sass, loops

PAIRS = 2e7 * 980_000
# One H200: 132 multiprocessors at 1.98 GHz that issue 4 warp instructions and 16 exp2 a clock; GEMM rate as measured.
CLOCKS = 132 * 1.98e9
ISSUE, EXP2 = 4 * 32, 16
TENSOR_FLOPS = 790e12


def resources(everything: bool) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    print(f"{'arch':7} {'kernel':28} registers  stack   shared")
    for arch in ARCHITECTURES:
        for variant in variants(arch) if everything else chosen_variants(arch):
            usage = compile_kernel(*variant[1:5], arch)
            print(f"sm_{arch:<4} {variant.name:28} {usage.registers:9} {usage.stack:6} {usage.shared:8}", flush=True)
            rows.append({"arch": arch, "kernel": variant.name} | usage._asdict())
    return rows


def predictions() -> list[dict[str, object]]:
    cases = [
        (1, direct_variant((1,), fused=True)),
        (2, direct_variant((2,), fused=True)),
        (2, direct_variant((2,), fused=False)),
        *((d, gemm_variant([max(16, 2 * d)], 90)) for d in (8, 16, 32, 64)),
        *((d, screen_variant(2 * d)) for d in (32, 64)),
        *((d, direct_variant((d,), fused)) for d in (32, 64) for fused in (True, False)),
    ]
    rows = [predict(d, variant) for d, variant in cases]
    print(f"\n  d {'kernel':24}  instructions a pair   issue    exp2  tensor   overlapped  serial")
    for row in rows:
        times = " ".join(f"{row[unit]:7.1f}" for unit in ("issue_s", "exp2_s", "tensor_s"))
        print(
            f"{row['d']:3} {row['kernel']:24} {row['instructions_a_pair']:20.2f} {times} "
            f"{row['overlapped_s']:10.1f} s {row['serial_s']:6.1f} s"
        )
    return rows


def predict(d: int, variant: Variant) -> dict[str, object]:
    """Instructions that a pair of a sample and a component takes in the loops, and seconds on each unit."""
    nested = loops(compile_sass(*variant[1:5], 90))
    inner, around = nested[0], nested[1] if len(nested) > 1 else nested[0]
    over_dimensions = variant.name.startswith("direct") and not variant.constexprs["UNROLLED"]
    instructions = around.total() + (d - 1) * inner.total() if over_dimensions else inner.total()
    exp2 = (around if over_dimensions else inner)["MUFU"] / variant.exponents
    products = {"gemm": 3, "screen": 1, "direct": 0}[variant.name.split()[0]]
    features = variant.constexprs.get("KA", variant.constexprs.get("K", 0))
    seconds = [
        PAIRS * instructions / variant.exponents / (CLOCKS * ISSUE),
        PAIRS * exp2 / (CLOCKS * EXP2),
        PAIRS * products * 2 * features / TENSOR_FLOPS,
    ]
    counts = {name: round(n / variant.exponents, 3) for name, n in inner.most_common(8)}
    return {
        "d": d,
        "kernel": variant.name,
        "instructions_a_pair": instructions / variant.exponents,
        "inner_loop_a_pair": counts,
        "issue_s": seconds[0],
        "exp2_s": seconds[1],
        "tensor_s": seconds[2],
        "overlapped_s": max(seconds),
        "serial_s": sum(seconds),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every shape, not the chosen ones")
    everything = parser.parse_args(arguments).all
    result = {
        "versions": {"triton": triton.__version__},
        "resources": resources(everything),
        "predicted_for": "H200, 2e7 samples x 980000 components, nothing skipped; from instruction counts, not a run",
        "predictions": predictions(),
    }
    path = Path(__file__).parent / "results" / "compiled-mixture.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\nwrote {path}")


if __name__ == "__main__":
    main()
