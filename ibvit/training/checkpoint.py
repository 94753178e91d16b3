"""Checkpoints that survive: written aside, flushed, renamed; the previous one stays; read without running code."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch

from ibvit.errors import CheckpointError

log = logging.getLogger(__name__)

LAST, PREVIOUS = "last.pt", "previous.pt"


def save_checkpoint(directory: Path, state: dict[str, Any]) -> Path:
    """Write ``state`` to ``directory/last.pt``; what was there becomes ``previous.pt``.

    Raises:
        CheckpointError: the disk is full or not writable; the last good checkpoint is untouched.
    """
    directory.mkdir(parents=True, exist_ok=True)
    last, partial = directory / LAST, directory / (LAST + ".partial")
    try:
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        if last.exists():
            last.replace(directory / PREVIOUS)
        partial.replace(last)
        _sync_directory(directory)
    except (OSError, RuntimeError) as error:  # torch's zip writer reports a full disk as RuntimeError
        partial.unlink(missing_ok=True)
        kept = next((str(path) for path in (last, directory / PREVIOUS) if path.exists()), "none yet")
        raise CheckpointError(f"checkpoint: cannot write {last} ({error}); last good checkpoint: {kept}") from error
    return last


def _sync_directory(directory: Path) -> None:
    """Make the renames themselves durable."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The state in a checkpoint, on the CPU; ``weights_only``, so a pickle with code in it is refused, not run.

    Raises:
        CheckpointError: the file is missing, truncated, or not one of ours.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint: no file {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"checkpoint: {path} is truncated or not a checkpoint ({reason})") from error
    if not isinstance(state, dict) or "model" not in state or "progress" not in state:
        raise CheckpointError(f"checkpoint: {path} is not a training checkpoint of ibvit")
    return state


def latest_checkpoint(directory: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest readable checkpoint of a run: ``last.pt``, else ``previous.pt``; None if there is no file at all.

    Raises:
        CheckpointError: there are files, but none can be read.
    """
    problem: CheckpointError | None = None
    for path in (directory / LAST, directory / PREVIOUS):
        if not path.exists():
            continue
        try:
            return path, read_checkpoint(path)
        except CheckpointError as error:
            log.warning("%s; trying the one before it", error)
            problem = problem or error
    if problem is not None:
        raise problem
    return None
