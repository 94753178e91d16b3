"""Locks that the system releases when their holder ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO


def locked(path: Path, how: int) -> IO[str]:
    """An existing file, locked as ``fcntl.flock`` says, until it is closed.

    Raises:
        BlockingIOError: another process has locked it, and ``how`` says not to wait.
        FileNotFoundError: it is not there, or was removed meanwhile.
    """
    lock = open(path, "r+")  # noqa: SIM115 -- held open
    try:
        fcntl.flock(lock, how)
        if not os.path.samestat(os.stat(path), os.fstat(lock.fileno())):
            raise FileNotFoundError(f"{path} was removed and made again")
    except BaseException:
        lock.close()
        raise
    return lock


@contextlib.contextmanager
def alone(path: Path, wait: bool = True) -> Iterator[None]:
    """The block runs in one process at a time; ``path`` is there meanwhile.

    Raises:
        BlockingIOError: it runs in another one, and this one does not wait.
    """
    while True:
        with contextlib.suppress(FileExistsError):
            handle = os.open(path, os.O_CREAT | os.O_EXCL, 0o600)
            os.fchmod(handle, 0o600)  # whatever the umask
            os.close(handle)
        try:
            lock = locked(path, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except FileNotFoundError:  # its last holder removed it in between
            continue
        break
    with lock:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
