"""What the compiled bottleneck kernels use, and what their instruction counts predict. Needs no GPU.

    python -m benchmarks.bottleneck_sass

Prints registers, stack and shared memory of every launch for three architectures, and for ViT-Tiny on an H200 the
instructions of each loop and the microseconds that one layer at batch 256 takes if no issue slot is lost. A prediction,
not a measurement. Writes results/compiled-bottleneck.json.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import triton
from tests.kernels.bottleneck_variants import variants
from tests.kernels.resources import ARCHITECTURES, compile_kernel, compile_sass, loops

from ibvit_kernels.bottleneck.tiles import Shape

VIT_TINY = Shape(heads=3, width=64, columns=192, hidden=64, latent=32)
CASES = {
    "ViT-Tiny bf16": (VIT_TINY, "bf16", ARCHITECTURES),
    "ViT-Tiny fp16": (VIT_TINY, "fp16", (90,)),
    "ViT-Tiny fp32": (VIT_TINY, "fp32", (90,)),
    "ViT-Small bf16": (VIT_TINY._replace(heads=6, columns=384), "bf16", (90,)),
    "widest bf16": (Shape(heads=6, width=128, columns=768, hidden=128, latent=128), "bf16", (90,)),
}
ROWS = 256 * 196
# One H200: 132 multiprocessors at 1.98 GHz that issue 4 warp instructions a clock.
ISSUE = 132 * 4 * 1.98e9
ARITHMETIC = {
    "floating point": ("FFMA", "FADD", "FMUL", "FMNMX", "FSEL", "FSETP"),
    "special function": ("MUFU",),
    "tensor core": ("HGMMA", "HMMA"),
    "shared memory": ("LDS", "STS", "LDSM", "STSM"),
    "barriers": ("BAR",),
}


def resources() -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for case, (shape, dtype, architectures) in CASES.items():
        for arch in architectures:
            for name, job in variants(arch, shape, dtype):
                usage = compile_kernel(*job, arch=arch)
                rows.append({"case": case, "arch": arch, "kernel": name} | usage._asdict())
                print(f"{case:15} sm_{arch:<4} {name:28} {usage}", flush=True)
    return rows


def predictions() -> list[dict[str, object]]:
    """The loop of each launch on sm_90, and the time its instructions take to issue."""
    rows: list[dict[str, object]] = []
    for name, (kernel, signature, constants, options) in variants(90, VIT_TINY, "bf16"):
        if name in ("pack", "unmerge"):
            continue
        loop: Counter[str] = loops(compile_sass(kernel, signature, constants, options, 90))[-1]
        kinds = {kind: sum(loop[i] for i in names) for kind, names in ARITHMETIC.items()}
        passes = -(-ROWS // constants["ROWS"]) * VIT_TINY.heads
        microseconds = 1e6 * loop.total() * options["num_warps"] * passes / ISSUE
        rows.append({"kernel": name, "instructions": loop.total()} | kinds | {"issue_us": microseconds})
        print(f"{name:28} {loop.total():5} instructions {kinds}  {microseconds:.1f} us a layer", flush=True)
    return rows


def main() -> None:
    found = {"triton": triton.__version__, "resources": resources(), "predictions": predictions()}
    path = Path(__file__).parent / "results" / "compiled-bottleneck.json"
    path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
