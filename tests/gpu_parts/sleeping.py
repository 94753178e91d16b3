"""A part of a prepared run: a row, then nothing for longer than any test waits."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.gpu.lines import Record


def measure(record: Record, folder: Path, dry: bool) -> None:
    record(ms=3.0)
    time.sleep(600)
