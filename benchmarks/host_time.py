"""The host's time for one eager call of the Triton op: validation, dispatch, autograd and allocation.

Triton's launcher is not in it: the kernels are replaced by some that do nothing, on CPU tensors.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any
from unittest import mock

import torch

from benchmarks.problems import make_problem
from benchmarks.recording import Benchmark, Case, Row
from benchmarks.timing import milliseconds, spread
from ibvit.ops import api, bottleneck_write

KERNELS = ("pack_kernel", "forward_kernel", "backward_kernel", "unmerge_kernel")


def benchmark(full: bool) -> Benchmark:
    rounds, calls = (300, 5) if full else (2, 1)
    return Benchmark(
        "one eager call of bottleneck_write on a tiny problem, launches left out",
        [Case(what, partial(measure, what, rounds, calls)) for what in ("forward", "forward and backward")],
    )


class NoLaunch:
    """A kernel that does nothing, so that what remains is the host's own work."""

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *args, **kwargs: None


def measure(what: str, rounds: int, calls: int) -> list[Row]:
    problem = make_problem(1, 32, 16, 8, 8, 1, 3).cast(torch.float32)
    leaves = [t.requires_grad_(what != "forward") for t in (problem.y, *problem.params, *problem[2:4])]

    def call() -> None:
        for _ in range(calls):
            update, kl = bottleneck_write(*problem, impl="triton")
            if what != "forward":
                torch.autograd.grad((update, kl), leaves, (update, kl))

    with ExitStack() as patches:
        patches.enter_context(mock.patch.dict(os.environ, TRITON_INTERPRET="1"))  # the op takes CPU tensors then
        for kernel in KERNELS:
            patches.enter_context(mock.patch(f"ibvit_kernels.bottleneck.host.{kernel}", NoLaunch()))
        api._decide.cache_clear()
        for _ in range(min(rounds, 20)):
            call()
        times = [1e3 * milliseconds(call) / calls for _ in range(rounds)]
        api._decide.cache_clear()
    return [{"pass": what, **spread(times, "us")}]
