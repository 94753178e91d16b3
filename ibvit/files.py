"""Files that are whole or absent, and folders that one process writes at a time."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ibvit.errors import UserError

logger = logging.getLogger(__name__)
_HOST = socket.gethostname()


class InUseError(UserError):
    """Another process writes to the same folder; the message names it."""


@contextlib.contextmanager
def written_aside(path: Path, earlier: Path | None = None) -> Iterator[Path]:
    """A file to write in place of ``path``, which it becomes once it is whole and on disk.

    The file lies beside ``path``, under a name of its own with the same suffix. After an error it is removed, and
    ``path`` is what it was; :func:`remove_abandoned` removes what a killed process leaves.

    Args:
        earlier: what the file that was there is renamed to; None: it is lost.

    Raises:
        OSError: it cannot be written; names ``path``.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "result.txt"
        >>> with written_aside(path) as partial:
        ...     _ = partial.write_text("whole")
        >>> path.read_text(), [file.name for file in path.parent.iterdir()]
        ('whole', ['result.txt'])
    """
    partial = path.with_name(f".{path.stem}.{_HOST}-{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        if earlier is not None and path.exists():
            path.replace(earlier)
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise type(error)(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def remove_abandoned(folder: Path) -> None:
    """Remove the files that processes of this host were writing in a folder when they were killed."""
    for path in folder.glob(f".*.{glob.escape(_HOST)}-*.partial*"):
        if not _is_alive(path.name.rpartition(".partial")[0].rpartition("-")[2]):
            path.unlink(missing_ok=True)


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with written_aside(path) as partial:
        partial.write_text(text)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def lock(folder: Path, name: str, argument: str) -> Iterator[None]:
    """Hold a folder for this process; it ends with the process, however that ends.

    The lock is the system's, on the file ``name`` (POSIX record locks: they also hold between the hosts of a shared
    file system, and a forked child does not inherit them). The file's text names the holder.

    Args:
        argument: what the caller's user calls the folder, for messages.

    Raises:
        InUseError: another process holds it.
    """
    path = folder / name
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise InUseError(f"{argument}: {folder} is in use by {_holder(path)}") from error
        except OSError as error:  # a file system without locks
            logger.warning("%s: cannot be locked (%s); let only one process write to it", folder, error.strerror)
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps({"pid": os.getpid(), "host": _HOST, "since": now}).encode(), 0)
        yield
        os.ftruncate(handle, 0)
    finally:
        os.close(handle)


def _holder(path: Path) -> str:
    try:
        holder: dict[str, Any] = json.loads(path.read_text())
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
