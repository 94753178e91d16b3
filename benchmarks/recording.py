"""What machine this is, where its measurements are written, and the peaks that shares and floors refer to."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ibvit.training.entry import keep_freed_memory

FULL = os.environ.get("IBVIT_BENCHMARK") == "full"
"""Whether to measure on a CPU too, at sizes that mean something; else benchmarks run there at toy size."""
COPY_BANDWIDTH, TENSOR_FLOPS = 4.3e12, 790e12  # an H200's, measured: bytes/s and bf16 FLOP/s
RESULTS = Path(__file__).parent / "results"


def processor() -> str:
    """The model of the processor, where Linux says it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def device_name() -> str:
    """The GPU, else the processor and how many of its cores there are."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{processor()}, {len(os.sched_getaffinity(0))} cores"


@contextmanager
def measured_as_trained() -> Iterator[None]:
    """On a CPU every core and malloc as training has them; at toy size nothing is changed."""
    if torch.cuda.is_available() or not FULL:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    keep_freed_memory()
    yield
    torch.set_num_threads(threads)


def write_results(found: dict[str, Any], what: str) -> None:
    """results/<device>-<what>.json; ``found["device"]`` is the device's name."""
    RESULTS.mkdir(exist_ok=True)
    name = re.sub("[^a-z0-9]+", "-", found["device"].lower().replace("nvidia ", ""))
    (RESULTS / f"{name}-{what}.json").write_text(json.dumps(found, indent=1) + "\n")
