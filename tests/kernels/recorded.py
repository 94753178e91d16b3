"""What compiled kernels use, recorded for each version of Triton that the suite has met.

    python -m tests.kernels.recorded      # records the installed version

Another compiler gives other registers and spills, and its choices are not ours to assert. So a version that is recorded
must give what is recorded; of any other only that is asserted without which a kernel does not run, or is not worth it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import triton

from benchmarks.kernels.bottleneck_variants import Job, variants
from benchmarks.kernels.mixture_variants import Variant, chosen_variants, direct_variant
from benchmarks.kernels.resources import ARCHITECTURES, Usage, assert_fits, compile_kernel, compile_sass, loops
from ibvit_kernels.bottleneck.tiles import Shape

FOLDER = Path(__file__).parent / "recorded_resources"
VERSION = ".".join(triton.__version__.split(".")[:2])
SPILLS = 16  # bytes per thread that a kernel may spill under a compiler that is not recorded

VIT_TINY = Shape(heads=3, width=64, columns=192, hidden=64, latent=32)
VIT_SMALL = VIT_TINY._replace(heads=6, columns=384)
# Tensor memory on sm_100 takes triton 3.9; with older ones the op says so.
NEWEST = 100 if tuple(map(int, VERSION.split("."))) >= (3, 9) else 90
# ViT-Tiny everywhere; two column groups on one architecture.
BOTTLENECK = [
    *((arch, VIT_TINY, dtype) for dtype in ("bf16", "fp16", "fp32") for arch in ARCHITECTURES if arch <= NEWEST),
    (90, VIT_SMALL, "bf16"),
]
INNER_LOOP = direct_variant((2,), fused=True)


def bottleneck_jobs(arch: int, shape: Shape, dtype: str) -> dict[str, Job]:
    """Every launch of one training step, by name."""
    case = f"sm_{arch} H={shape.heads} D={shape.width} C={shape.columns} h={shape.hidden} r={shape.latent} {dtype}"
    return {f"{case} {name}": job for name, job in variants(arch, shape, dtype)}


def mixture_variants(arch: int) -> dict[str, Variant]:
    return {f"sm_{arch} {variant.name}": variant for variant in chosen_variants(arch)}


def inner_loop() -> dict[str, int]:
    """Instructions by name in the inner loop of the direct form on sm_90."""
    return dict(loops(compile_sass(*INNER_LOOP[1:5], 90))[0])


def record() -> dict[str, Any] | None:
    """What is recorded of the installed version; None if nothing is."""
    path = FOLDER / f"triton-{VERSION}.json"
    return json.loads(path.read_text()) if path.exists() else None


def assert_as_recorded(kernel: str, usage: Usage, arch: int, may_spill: bool = False) -> None:
    """Compare with the record; without one the kernel must fit, and spill little unless it may."""
    assert_fits(usage, arch)
    known = record()
    if known is not None:
        assert usage._asdict() == known["resources"][kernel], kernel
    elif not may_spill:
        assert usage.stack <= SPILLS, f"{kernel}: {usage.stack} bytes of spills per thread"


def main() -> None:
    resources = {}
    for case in BOTTLENECK:
        for name, job in bottleneck_jobs(*case).items():
            resources[name] = compile_kernel(*job, arch=case[0])._asdict()
            print(name, resources[name], flush=True)
    for arch in ARCHITECTURES:
        for name, variant in mixture_variants(arch).items():
            resources[name] = compile_kernel(*variant[1:5], arch)._asdict()
            print(name, resources[name], flush=True)
    FOLDER.mkdir(exist_ok=True)
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(usage)}" for name, usage in resources.items())
    path = FOLDER / f"triton-{VERSION}.json"
    path.write_text(f'{{"inner_loop": {json.dumps(inner_loop())},\n "resources": {{\n{lines}\n }}}}\n')
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
