"""What the compiled bottleneck kernels use, and what their instruction counts predict.

Registers, stack and shared memory of every launch for three architectures, and for ViT-Tiny on an H200 the instructions
of each loop and the microseconds that one layer at batch 256 takes if no issue slot is lost. A prediction, not a
measurement.
"""

from __future__ import annotations

from collections import Counter
from functools import partial

from benchmarks.h200 import CLOCK, ISSUE, MULTIPROCESSORS
from benchmarks.kernels.bottleneck_variants import Job, variants
from benchmarks.kernels.resources import ARCHITECTURES, compile_kernel, compile_sass, loops
from benchmarks.recording import Benchmark, Case, Row
from ibvit_kernels.bottleneck.tiles import Shape

VIT_TINY = Shape(heads=3, width=64, columns=192, hidden=64, latent=32)
CASES = [
    *(("ViT-Tiny bf16", VIT_TINY, "bf16", arch) for arch in ARCHITECTURES),
    ("ViT-Tiny fp16", VIT_TINY, "fp16", 90),
    ("ViT-Tiny fp32", VIT_TINY, "fp32", 90),
    ("ViT-Small bf16", VIT_TINY._replace(heads=6, columns=384), "bf16", 90),
    ("widest bf16", Shape(heads=6, width=128, columns=768, hidden=128, latent=128), "bf16", 90),
]
ROWS = 256 * 196
ARITHMETIC = {
    "floating_point": ("FFMA", "FADD", "FMUL", "FMNMX", "FSEL", "FSETP"),
    "special_function": ("MUFU",),
    "tensor_core": ("HGMMA", "HMMA"),
    "shared_memory": ("LDS", "STS", "LDSM", "STSM"),
    "barriers": ("BAR",),
}


def benchmark(full: bool) -> Benchmark:
    tiny = variants(90, VIT_TINY, "bf16")
    loop_kernels = [(name, job) for name, job in tiny if name not in ("pack", "unmerge")]
    return Benchmark(
        "resources of each launch; instructions of its loop on sm_90 and the time they take an H200 to issue, ViT-Tiny "
        "bf16, one layer at batch 256",
        [
            *(Case(f"{case[0]} sm_{case[3]}", partial(resources, *case)) for case in (CASES if full else [])),
            *(Case(name, partial(prediction, name, job)) for name, job in loop_kernels[: None if full else 1]),
        ],
        measured=False,
    )


def resources(case: str, shape: Shape, dtype: str, arch: int) -> list[Row]:
    return [
        {"part": "resources", "case": case, "arch": arch, "kernel": name, **compile_kernel(*job, arch=arch)._asdict()}
        for name, job in variants(arch, shape, dtype)
    ]


def prediction(name: str, job: Job) -> list[Row]:
    """The loop of a launch on sm_90, and the time its instructions take to issue."""
    _, _, constants, options = job
    loop: Counter[str] = loops(compile_sass(*job, 90))[-1]
    kinds = {kind: sum(loop[i] for i in names) for kind, names in ARITHMETIC.items()}
    threads = 32 * options["num_warps"] * -(-ROWS // constants["ROWS"]) * VIT_TINY.heads
    issue = 1e6 * loop.total() * threads / (MULTIPROCESSORS * CLOCK * ISSUE)
    return [{"part": "prediction", "kernel": name, "instructions": loop.total(), **kinds, "issue_us": issue}]
