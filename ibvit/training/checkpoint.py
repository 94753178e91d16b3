"""Checkpoints: written under another name, flushed, renamed; the previous one stays; read without running code."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ibvit.arguments import one_line
from ibvit.errors import CheckpointError
from ibvit.files import written_aside
from ibvit.models.storage import add_tensor

log = logging.getLogger(__name__)

LAST, PREVIOUS = "last.pt", "previous.pt"
_DIGEST = "sha256"


def save_checkpoint(directory: Path, state: dict[str, Any]) -> Path:
    """Write ``state`` to ``directory/last.pt``; what was there becomes ``previous.pt``.

    Raises:
        CheckpointError: the disk is full or not writable; the last good checkpoint is untouched.
    """
    last = directory / LAST
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with written_aside(last, earlier=directory / PREVIOUS) as partial:
            torch.save({**state, _DIGEST: digest_of(state)}, partial)
    except (OSError, RuntimeError) as error:  # torch's zip writer reports a full disk as RuntimeError
        last_good = next((str(path) for path in (last, directory / PREVIOUS) if path.exists()), "none yet")
        raise CheckpointError(
            f"checkpoint: cannot write {last} ({error}); last good checkpoint: {last_good}"
        ) from error
    return last


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
        raise CheckpointError(f"checkpoint: {path} is damaged or not a checkpoint ({reason})") from error
    if not isinstance(state, dict) or "model" not in state or "progress" not in state:
        raise CheckpointError(f"checkpoint: {path} is not a training checkpoint of ibvit")
    if _DIGEST in state and state.pop(_DIGEST) != digest_of(state):  # torch compares no checksum
        raise CheckpointError(f"checkpoint: {path} is damaged: it holds other values than were saved")
    return state


def digest_of(state: Any) -> str:
    """sha256 of nested dictionaries and sequences of tensors and plain values."""
    digest = hashlib.sha256()
    _add(digest, state)
    return digest.hexdigest()


def _add(digest: hashlib._Hash, value: Any) -> None:
    if isinstance(value, Tensor):
        add_tensor(digest, value)
    elif isinstance(value, Mapping):
        digest.update(b"{%d" % len(value))
        for key in sorted(value, key=repr):
            digest.update(repr(key).encode())
            _add(digest, value[key])
    elif isinstance(value, list | tuple):
        digest.update(b"[%d" % len(value))
        for item in value:
            _add(digest, item)
    else:
        digest.update(f"{value!r}\n".encode())


def checkpoints(directory: Path) -> list[Path]:
    """The checkpoints of a run, newest first."""
    return [path for path in (directory / LAST, directory / PREVIOUS) if path.exists()]


def first_usable(paths: Sequence[Path], load: Callable[[dict[str, Any]], None]) -> tuple[Path, dict[str, Any]] | None:
    """The first checkpoint that can be read and that ``load`` takes; None if there are no paths.

    Raises:
        CheckpointError: there are checkpoints, but none is usable; says why the first is not.
    """
    problem: CheckpointError | None = None
    for path in paths:
        try:
            state = read_checkpoint(path)
            try:
                load(state)
            except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                reason = f"it lacks {error}" if isinstance(error, KeyError) else one_line(error)
                raise CheckpointError(f"checkpoint: {path} does not fit this run: {reason}") from error
        except CheckpointError as error:
            if path != paths[-1]:
                log.warning("%s; trying the one before it", error)
            problem = problem or error
        else:
            return path, state
    if problem is not None:
        raise problem
    return None
