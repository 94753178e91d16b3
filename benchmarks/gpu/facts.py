"""The card, what is installed, and the peaks from which floors are computed: measured here, never another card's."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu import cache
from benchmarks.gpu.lines import Record, cases
from benchmarks.recording import device_name, git, versions
from benchmarks.timing import GPU, peaks

QUERY = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.draw,power.limit,temperature.gpu"


def measure(record: Record, folder: Path, dry: bool) -> None:
    cases(
        record,
        [
            ("versions", partial(installed, record)),
            ("peaks", partial(measured_peaks, record, dry)),
            ("card", partial(card, record)),
        ],
    )


def installed(record: Record) -> None:
    revision = git("rev-parse", "--short=12", "HEAD") or os.environ.get(cache.REVISION) or None
    changes = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":!results")
    dirty = None if changes is None else bool(changes)
    record("device", device=device_name(), git_revision=revision, git_dirty=dirty, threads=torch.get_num_threads())
    record("versions", **versions(), cuda=torch.version.cuda, system=platform.platform())
    record("tools", **{tool: shutil.which(tool) is not None for tool in ("make", "nvcc", "ncu", "compute-sanitizer")})


def measured_peaks(record: Record, dry: bool) -> None:
    found = peaks(toy=dry)
    record(
        copy_gb_per_s=found.bytes_per_s / 1e9, bf16_product_tflop_per_s=found.flop_per_s / 1e12,
    )  # fmt: skip


def card(record: Record) -> None:
    """After the peaks, so that clocks are those of a card at work."""
    if GPU:
        card = torch.cuda.get_device_properties(0)
        record(
            name=card.name, compute_capability=f"{card.major}.{card.minor}", multiprocessors=card.multi_processor_count,
            memory_gib=card.total_memory / 2**30, l2_mb=card.L2_cache_size / 1e6,
        )  # fmt: skip
    if shutil.which("nvidia-smi") is None:
        record("note", note="no nvidia-smi: clocks and driver unknown")
        return
    query = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    values = [value.strip() for value in done.stdout.splitlines()[0].split(",")] if done.stdout else []
    keys = QUERY.replace(".", "_").split(",")
    record("card", **dict(zip(keys, values, strict=False)))
