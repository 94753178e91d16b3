"""The twenty kernels that take most of a training step: the best variant's on a GPU, else the reference's operators."""

from __future__ import annotations

from functools import partial

from benchmarks.recording import Benchmark, Case, Row
from benchmarks.timing import GPU
from benchmarks.train import TABLE_BATCH, Running, kernels, warmup

VARIANT = "ib, fused, compiled, graph" if GPU else "ib, reference, eager"
SHOWN = 20
BETTER = {"share_of_step": "lower"}


def benchmark(full: bool) -> Benchmark:
    what = f"one step of {VARIANT}, batch {TABLE_BATCH}, under the profiler"
    return Benchmark(what, [Case("kernels", partial(measure, full))], BETTER)


def measure(full: bool) -> list[Row]:
    times: dict[str, list[float]] = {}
    with Running(VARIANT, TABLE_BATCH) as run:
        run(warmup(full))
        for event in kernels(run):
            microseconds = event.self_device_time_total if GPU else event.self_cpu_time_total
            times.setdefault(event.name, []).append(microseconds)
    total = sum(map(sum, times.values()))
    longest = sorted(times.items(), key=lambda item: -sum(item[1]))[:SHOWN]
    return [
        {"kernel": kernel, "launches": len(each), "sum_ms": sum(each) / 1e3, "share_of_step": sum(each) / total}
        for kernel, each in longest
    ]
