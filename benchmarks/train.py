"""The whole training step: every way to run it, in one table from one run.

One optimiser step on a resident batch, with all that training does in it. On a GPU: ViT-Tiny at 224 px, bf16. On a CPU:
the model of the digits recipe in float32; the compiled ways are then traced and differentiated, but no code is
generated nor timed. A variant's losses must first agree with the eager reference's. Triton's kernels run only on a GPU:
an interpreted step says nothing.
"""

from __future__ import annotations

import functools
import gc
from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from unittest import mock

import torch

import ibvit
from benchmarks.per_head_loop import per_head_loop
from benchmarks.recording import Benchmark, Case, Row
from benchmarks.timing import GPU, gate, milliseconds, peaks, spread
from ibvit.config import TrainConfig
from ibvit.data.sets.recipes import RECIPES
from ibvit.data.types import Batch
from ibvit.ops.api import why_not_native
from ibvit.training.distributed import Processes
from ibvit.training.entry import make_deterministic
from ibvit.training.step import TrainStep

TABLE_BATCH = 256 if GPU else 32  # where every variant runs; at the others those that decide
MODEL: dict[str, Any] = {} if GPU else {"img_size": 8, **RECIPES["digits"].model_args}
CLASSES = 100
GFLOP = {"full": 7.60, "ib": 8.18}  # per image, forward and backward, as benchmarks/step_graph.py counts them
TOLERANCE = 0.02  # of the loss after the warm-up's steps, bf16 against bf16
PEER = "full, compiled" if GPU else "full, eager"  # the first that is timed
BETTER = {"ratio_to_full": "lower", "share_of_tensor_core_limit": "higher"}

BASE = TrainConfig(epochs=1, lr=1e-3, warmup_epochs=0, beta_warmup_epochs=0, impl="reference")
COMPILED = replace(BASE, compile=True)
VARIANTS = {
    "full, compiled": replace(COMPILED, attention="full"),
    "full, eager": replace(BASE, attention="full"),
    "ib, loop over heads, eager": BASE,
    "ib, reference, eager": BASE,
    "ib, reference, compiled": COMPILED,
}
if not GPU and why_not_native() is None:
    VARIANTS["ib, fused"] = replace(BASE, impl="native")
if GPU:
    FUSED = replace(BASE, impl="triton")
    VARIANTS |= {
        "full, compiled, graph": replace(COMPILED, attention="full", cuda_graph=True),
        "ib, fused": FUSED,
        "ib, fused, graph": replace(FUSED, cuda_graph=True),
        "ib, fused, compiled": replace(FUSED, compile=True),
        "ib, fused, compiled, graph": replace(FUSED, compile=True, cuda_graph=True),
    }
DECIDING = [
    "full, compiled",
    "ib, loop over heads, eager",
    "ib, fused",
    "ib, fused, graph",
    "ib, fused, compiled, graph",
]


def benchmark(full: bool) -> Benchmark:
    batches = (64, TABLE_BATCH, 1024) if GPU and full else (TABLE_BATCH,)
    times: dict[int, float] = {}
    return Benchmark(
        f"one step on a resident batch, {'ViT-Tiny, 224 px, bf16' if GPU else 'digits recipe, float32'}",
        [
            Case(f"{name}, batch {batch}", functools.partial(measure, name, batch, full, times))
            for batch in batches
            for name in VARIANTS
            if batch == TABLE_BATCH or name in DECIDING
        ],
        BETTER,
    )


class Running:
    """A variant's model with its step, on a resident batch."""

    def __init__(self, name: str, batch: int) -> None:
        config = replace(VARIANTS[name], batch_size=batch)
        self.processes = Processes.from_environment("cuda" if GPU else "cpu")
        device = self.processes.device
        make_deterministic(0)
        model = ibvit.create_model(
            "vit_tiny_patch16_224", attention=config.attention, num_classes=CLASSES, impl=config.impl, **MODEL
        ).to(device)
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(batch, 3, *model.image_size, generator=generator)
        labels = torch.randint(CLASSES, (batch,), generator=generator)
        self.batch = Batch(images.to(device), labels.to(device), torch.arange(batch))
        self.patches = ExitStack()
        if "loop" in name:
            self.patches.enter_context(mock.patch("ibvit.ops.bottleneck_write", per_head_loop))
        if not GPU:
            traced = functools.partial(torch.compile, backend="aot_eager")
            self.patches.enter_context(mock.patch("torch.compile", traced))
        self.step = TrainStep(model.train(), config, self.processes)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.patches.close()
        torch.compiler.reset()

    def __call__(self, steps: int = 1) -> None:
        for _ in range(steps):
            self.step(self.batch, lr=1e-3, beta=0.01)

    def loss(self) -> float:
        """Mean cross-entropy of the steps so far."""
        ce, _, steps = self.step.sums.tolist()
        return ce / steps


def warmup(full: bool) -> int:
    """Steps before any is timed, and before the losses are compared."""
    return (15 if GPU else 10) if full else 1


@functools.cache
def reference_loss(attention: str, batch: int, full: bool) -> float:
    name = "full, eager" if attention == "full" else "ib, reference, eager"
    with Running(name, batch) as run:
        run(warmup(full))
        return run.loss()


def measure(name: str, batch: int, full: bool, baseline: dict[int, float]) -> list[Row]:
    """One way at one batch; ``baseline`` gets the peer's time, to which the others are related."""
    expected = reference_loss(VARIANTS[name].attention, batch, full)
    if GPU:
        gc.collect()  # a step and its graph refer to each other
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    rounds, steps = (1, 1) if not full else (7, 10) if GPU else (15, 20)
    with Running(name, batch) as run:
        run(warmup(full))
        gate(name, abs(run.loss() / expected - 1), TOLERANCE)
        if not GPU and VARIANTS[name].compile:
            return []
        times = spread([milliseconds(lambda: run(steps)) / steps for _ in range(rounds)], "ms")
        if name == PEER:
            baseline[batch] = times["median_ms"]
        row: Row = {
            "variant": name, "batch": batch, **times, "images_per_s": 1e3 * batch / times["median_ms"],
            "ratio_to_full": times["median_ms"] / baseline[batch] if batch in baseline else None,
        }  # fmt: skip
        if GPU:
            gflop_per_s = row["images_per_s"] * GFLOP[VARIANTS[name].attention]
            row |= {
                "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
                "kernels_per_step": len(kernels(run)),
                "share_of_tensor_core_limit": 1e9 * gflop_per_s / peaks().flop_per_s,
            }
    return [row]


def kernels(run: Running) -> list[Any]:
    """The device's events of one step (the processor's operators where there is no GPU)."""
    if GPU:
        torch.cuda.synchronize()
    activity = torch.profiler.ProfilerActivity.CUDA if GPU else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as profile:
        run()
    wanted = torch.autograd.DeviceType.CUDA if GPU else torch.autograd.DeviceType.CPU
    return [event for event in profile.events() if event.device_type == wanted]
