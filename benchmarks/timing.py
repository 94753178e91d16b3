"""How benchmarks measure time, and the gate before it."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from benchmarks.recording import cores
from ibvit.training.entry import keep_freed_memory

GPU = torch.cuda.is_available()


@contextmanager
def as_trained(full: bool) -> Iterator[None]:
    """On a CPU at full size: every core and malloc as training has them."""
    if GPU or not full:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(len(cores()))
    keep_freed_memory()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def spread(values: Sequence[float], unit: str) -> dict[str, float | int]:
    """Median and range of the rounds, as a row has them."""
    return {
        f"median_{unit}": statistics.median(values),
        f"min_{unit}": min(values),
        f"max_{unit}": max(values),
        "rounds": len(values),
    }


def milliseconds(work: Callable[[], Any], sleep_cycles: int = 0) -> float:
    """Time on the device between two events; on a CPU as the clock has it.

    sleep_cycles: of the GPU before the work, so that launches queue up and the events see the GPU, not the host.
    """
    if not GPU:
        begin = time.perf_counter()
        work()
        return 1e3 * (time.perf_counter() - begin)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    if sleep_cycles:
        torch.cuda._sleep(sleep_cycles)
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def gate(label: str, error: float, allowed: float) -> None:
    """Stop a case whose result is wrong: its time would say nothing."""
    if not error <= allowed:
        raise ValueError(f"{label}: expected an error of at most {allowed:.1e}, got {error:.1e}")


class Peaks(NamedTuple):
    """What the device here reaches: the most that a share can be of."""

    bytes_per_s: float  # read and written by a large copy
    flop_per_s: float  # of a large bf16 product


@functools.cache
def peaks(toy: bool = False) -> Peaks:
    """Measured once a process, medians of seven rounds; at toy size, only to show that it runs."""
    device = "cuda" if GPU else "cpu"
    size, side = (1 << 20, 64) if toy or not GPU else (1 << 30, 8192)
    source, target = (torch.empty(size, dtype=torch.int8, device=device).random_() for _ in range(2))
    one, other = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    copies = [milliseconds(lambda: target.copy_(source)) for _ in range(10)][3:]
    products = [milliseconds(lambda: one @ other) for _ in range(10)][3:]
    return Peaks(2e3 * size / statistics.median(copies), 2e3 * side**3 / statistics.median(products))
