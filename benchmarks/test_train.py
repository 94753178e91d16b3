"""The whole training step: every way to run it, in one table from one run.

    python -m pytest -s benchmarks/test_train.py                         # table
    IBVIT_PROFILE=1 python -m pytest -s benchmarks/test_train.py         # and the top kernels
    IBVIT_BENCHMARK=full python -m pytest -s benchmarks/test_train.py    # table of a CPU

One optimiser step on a resident batch, with all that training does in it. On a GPU: ViT-Tiny at 224 px, bf16; writes
results/<gpu>-train.json (and <gpu>-profile.json). On a CPU: the model of the digits recipe in float32, written with
IBVIT_BENCHMARK=full only; the compiled ways are then traced and differentiated, but no code is generated nor timed. A
variant's losses must first agree with the eager reference's. Triton's kernels run only on a GPU: an interpreted step
says nothing.
"""

from __future__ import annotations

import functools
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch

import ibvit
from benchmarks.per_head_loop import per_head_loop
from benchmarks.recording import FULL, TENSOR_FLOPS, device_name, measured_as_trained, write_results
from benchmarks.step_graph import eager_launches, fused_launches, trace
from ibvit.config import TrainConfig
from ibvit.data.sets.recipes import RECIPES
from ibvit.data.types import Batch
from ibvit.ops.api import why_not_native
from ibvit.training.distributed import Processes
from ibvit.training.entry import make_deterministic
from ibvit.training.step import TrainStep

GPU = torch.cuda.is_available()
BATCHES = (64, 256, 1024) if GPU else (32,)
TABLE_BATCH = 256 if GPU else 32  # where every variant runs; at the others those that decide
MODEL: dict[str, Any] = {} if GPU else {"img_size": 8, **RECIPES["digits"].model_args}
CLASSES = 100
WARMUP, ROUNDS, STEPS = (15, 7, 10) if GPU else (10, 15, 20) if FULL else (1, 1, 1)
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
        "what": f"one step on a resident batch, {'ViT-Tiny, 224 px, bf16' if GPU else 'digits recipe, float32'}",
        "device": device_name(),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "results": [],
    }
    with measured_as_trained():
        yield found
    if not (GPU or FULL):
        return
    peer = "full, compiled" if GPU else "full, eager"
    baseline = {row["batch"]: row["ms"] for row in found["results"] if row["name"] == peer}
    for row in found["results"]:
        if row["batch"] in baseline:
            row[f"ratio to {peer}"] = row["ms"] / baseline[row["batch"]]
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
        gc.collect()  # a step and its graph refer to each other
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with Running(name, batch) as run:
        run(WARMUP)
        assert run.loss() == pytest.approx(expected, rel=TOLERANCE)
        if not GPU and (not FULL or VARIANTS[name].compile):
            return
        milliseconds = statistics.median(milliseconds_of(lambda: run(STEPS)) / STEPS for _ in range(ROUNDS))
        row = {"name": name, "batch": batch, "ms": milliseconds, "images/s": 1e3 * batch / milliseconds}
        if GPU:
            row |= {
                "peak GiB": torch.cuda.max_memory_allocated() / 2**30, "kernels a step": len(kernels(run)),
                "share of the tensor-core limit":
                    row["images/s"] * 1e9 * GFLOP[VARIANTS[name].attention] / TENSOR_FLOPS,
            }  # fmt: skip
        record["results"].append(row)


def milliseconds_of(work: Callable[[], None]) -> float:
    """Time on the device between two events; on a CPU as the clock has it."""
    if not GPU:
        begin = time.perf_counter()
        work()
        return 1e3 * (time.perf_counter() - begin)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def kernels(run: Running) -> list[Any]:
    """The device's events of one step (the processor's operators where there is no GPU)."""
    if GPU:
        torch.cuda.synchronize()
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
