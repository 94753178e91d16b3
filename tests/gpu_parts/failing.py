"""A part of a prepared run: a row, a case that fails, another row."""

from __future__ import annotations

from pathlib import Path

from benchmarks.gpu.lines import Record, cases


def measure(record: Record, folder: Path, dry: bool) -> None:
    cases(
        record, [("good", lambda: record(ms=1.0)), ("bad", lambda: record(ms=1 / 0)), ("last", lambda: record(ms=2.0))]
    )
