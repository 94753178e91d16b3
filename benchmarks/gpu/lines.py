"""The lines of a prepared run: one JSON object each, on disk before the next is measured."""

from __future__ import annotations

import json
import math
import os
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.recording import rounded

NAME = "results.jsonl"
LONGEST_ERROR = 600  # characters of an error that are kept

Record = Callable[..., None]


def recorder(folder: Path, part: str) -> Record:
    """A function that appends ``{"part", "kind", "at", **row}`` to the file of the folder.

    Each line is one write to a file opened for appending, flushed to the disk: a kill at any second leaves whole lines,
    but perhaps for the last.
    """

    def record(kind: str = "row", **row: Any) -> None:
        line = {"part": part, "kind": kind, "at": datetime.now(UTC).isoformat(timespec="milliseconds")}
        line |= {key: plain(value) for key, value in row.items()}
        append(folder / NAME, (json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n").encode())

    return record


def append(path: Path, text: bytes) -> None:
    """One write that is on the disk when this returns; on a line of its own, if a kill cut the one before."""
    descriptor = os.open(path, os.O_CREAT | os.O_APPEND | os.O_RDWR, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            text = b"\n" + text
        os.write(descriptor, text)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def plain(value: Any) -> Any:
    """Finite numbers to six digits; what is not finite becomes a string, which JSON has."""
    if isinstance(value, float):
        return rounded(value) if math.isfinite(value) else str(value)
    return value


def read(folder: Path) -> list[dict[str, Any]]:
    """All whole lines; one that a kill cut is left out."""
    path = folder / NAME
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def cases(record: Record, todo: Sequence[tuple[str, Callable[[], None]]]) -> None:
    """Run the cases in order. One that fails is recorded, and the next one runs unless the device is lost."""
    failed = []
    for label, run in todo:
        try:
            run()
        except Exception as error:
            traceback.print_exc()
            record("case failed", case=label, error=short(error))
            failed.append(label)
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # raises again where the error has ended the CUDA context
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(todo)} cases failed: {', '.join(failed)}")


def short(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text[:LONGEST_ERROR]
