"""The whole training step: every way to run it, in one table from one run.

    PYTHONPATH=.:kernels python -m pytest -s benchmarks/test_train.py                    # table
    IBVIT_PROFILE=1 PYTHONPATH=.:kernels python -m pytest -s benchmarks/test_train.py    # and the top kernels by time

ViT-Tiny at 224 px on a resident batch, bf16, one optimiser step with all that training does in it. On a GPU, writes
results/<gpu>-train.json (and <gpu>-profile.json). Without one, two small blocks run the same code and write nothing;
there torch.compile traces and differentiates, but generates no code. A variant's losses must first agree with the
eager reference's. The fused kernels run only on a GPU: an interpreted step says nothing.
"""

from __future__ import annotations

import functools
import os
import platform
import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch

import ibvit
from benchmarks.per_head_loop import per_head_loop
from benchmarks.recording import TENSOR_FLOPS, write_results
from benchmarks.step_graph import eager_launches, fused_launches, trace
from ibvit.config import TrainConfig
from ibvit.data.types import Batch
from ibvit.training import make_deterministic
from ibvit.training.distributed import Processes
from ibvit.training.step import TrainStep

GPU = torch.cuda.is_available()
BATCHES = (64, 256, 1024) if GPU else (4,)
TABLE_BATCH = 256 if GPU else 4  # where every variant runs; at the others those that decide
MODEL: dict[str, Any] = {} if GPU else {"depth": 2, "img_size": 32}
CLASSES = 100
WARMUP, ROUNDS, STEPS = (15, 7, 20) if GPU else (1, 1, 1)
GFLOP = {"full": 7.60, "ib": 8.18}  # an image, forward and backward, as benchmarks/step_graph.py counts them
TOLERANCE = 0.02  # of the loss after the warm-up's steps, bf16 against bf16

BASE = TrainConfig(epochs=1, lr=1e-3, warmup_epochs=0, beta_warmup_epochs=0, impl="reference")
COMPILED = replace(BASE, compile=True)
VARIANTS = {
    "full, compiled": replace(COMPILED, attention="full"),
    "full, eager": replace(BASE, attention="full"),
    "ib, loop over heads, eager": BASE,
    "ib, reference, eager": BASE,
    "ib, reference, compiled": COMPILED,
}
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
CASES = [(name, batch) for batch in BATCHES for name in VARIANTS if batch == TABLE_BATCH or name in DECIDING]


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


@pytest.fixture(scope="module")
def record() -> Iterator[dict[str, Any]]:
    found: dict[str, Any] = {
        "what": "one optimiser step of ViT-Tiny, 224 px, bf16, resident batch",
        "device": torch.cuda.get_device_name() if GPU else platform.processor(),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "results": [],
    }
    yield found
    if not GPU:
        return
    baseline = {row["batch"]: row["ms"] for row in found["results"] if row["name"] == "full, compiled"}
    for row in found["results"]:
        row["ratio to full, compiled"] = row["ms"] / baseline[row["batch"]]
        print("  ".join(f"{key} {value:.4g}" if isinstance(value, float) else str(value) for key, value in row.items()))
    write_results(found, "train")


@functools.cache
def reference_loss(attention: str, batch: int) -> float:
    name = "full, eager" if attention == "full" else "ib, reference, eager"
    with Running(name, batch) as run:
        run(WARMUP)
        return run.loss()


@pytest.mark.parametrize(("name", "batch"), CASES)
def test_step(name: str, batch: int, record: dict[str, Any]) -> None:
    expected = reference_loss(VARIANTS[name].attention, batch)
    if GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with Running(name, batch) as run:
        run(WARMUP)
        assert run.loss() == pytest.approx(expected, rel=TOLERANCE)
        if not GPU:
            return
        milliseconds = statistics.median(milliseconds_of(lambda: run(STEPS)) / STEPS for _ in range(ROUNDS))
        rate = 1e3 * batch / milliseconds
        record["results"].append({
            "name": name, "batch": batch, "ms": milliseconds, "images/s": rate,
            "peak GiB": torch.cuda.max_memory_allocated() / 2**30, "kernels a step": len(kernels(run)),
            "share of the tensor-core limit": rate * 1e9 * GFLOP[VARIANTS[name].attention] / TENSOR_FLOPS,
        })  # fmt: skip


def milliseconds_of(work: Callable[[], None]) -> float:
    """Time on the device between two events."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def kernels(run: Running) -> list[Any]:
    """The device's events of one step (the processor's operators where there is no GPU)."""
    activity = torch.profiler.ProfilerActivity.CUDA if GPU else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as profile:
        run()
    wanted = torch.autograd.DeviceType.CUDA if GPU else torch.autograd.DeviceType.CPU
    return [event for event in profile.events() if event.device_type == wanted]


def test_counts_are_those_of_the_definition() -> None:
    """One block: FLOP as worked out by hand, fusing moves less, and the fused kernels less again."""
    tokens, width, mlp, patch = 196, 192, 768, 768
    products = tokens * (3 * width * width + width * width + 2 * width * mlp)
    attention = tokens * tokens * width
    embedding, head = tokens * patch * width, width * CLASSES
    expected = 2.0 * (3 * products + (2 + 5) * attention + 2 * embedding + 3 * head)
    eager = eager_launches(trace("full", 2, fuse=False, depth=1))
    assert sum(launch.flops for launch in eager) == pytest.approx(2 * expected, rel=1e-6)
    fused = fused_launches(trace("full", 2, fuse=True, depth=1))
    assert sum(launch.flops for launch in fused) == sum(launch.flops for launch in eager)
    assert sum(launch.bytes for launch in fused) < sum(launch.bytes for launch in eager)
    plain, ours = (fused_launches(trace("ib", 2, fuse=True, depth=1, impl=impl)) for impl in ("reference", "triton"))
    assert sum(launch.bytes for launch in ours) < sum(launch.bytes for launch in plain)


def test_profile(record: dict[str, Any]) -> None:
    """The twenty kernels that take most of the best variant's step."""
    name = "ib, fused, compiled, graph" if GPU else "ib, reference, eager"
    times: dict[str, list[float]] = {}
    with Running(name, TABLE_BATCH) as run:
        run(WARMUP)
        for event in kernels(run):
            times.setdefault(event.name, []).append(event.self_device_time_total if GPU else event.self_cpu_time_total)
    total = sum(map(sum, times.values()))
    rows = [
        {"kernel": kernel, "launches": len(each), "ms": sum(each) / 1e3, "share": sum(each) / total}
        for kernel, each in sorted(times.items(), key=lambda item: -sum(item[1]))[:20]
    ]
    assert rows
    assert sum(row["share"] for row in rows) > 0.5
    if "IBVIT_PROFILE" in os.environ:
        for row in rows:
            print(f"  {row['ms']:8.3f} ms  {row['share']:5.1%}  {row['launches']:4d} x  {row['kernel'][:90]}")
        if GPU:
            write_results({**record, "what": f"one step of {name}", "results": rows}, "profile")
