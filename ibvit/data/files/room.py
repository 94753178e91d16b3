"""Room on a file system, taken before it is used.

A memory-mapped file may be longer than the room it has. The process that then writes into it on a full disk is killed
(SIGBUS) without a word. So room is reserved when such a file is made.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from ibvit.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM)
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
_BLOCK = 1 << 20  # bytes


class NoRoomError(UserError, OSError):
    """A file system is full, or too small; the message names the file, what it needs and what is free."""


def free_bytes(path: Path) -> int:
    """What a user may still write on the file system of ``path``, or of the first folder above it that exists."""
    existing = next((above for above in (path, *path.absolute().parents) if above.exists()), Path("/"))
    status = os.statvfs(existing)
    return status.f_bavail * status.f_frsize


def no_room(path: Path, needed: int, why: str = "") -> NoRoomError:
    """What to raise where ``needed`` bytes do not fit."""
    return NoRoomError(f"{path}: expected {_size(needed)} of room, got {_size(free_bytes(path))}{why and f' ({why})'}")


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.3f} MB"


@contextlib.contextmanager
def writing(path: Path, needed: int) -> Iterator[None]:
    """What the block writes to ``path`` needs so many bytes.

    Raises:
        NoRoomError: there is no room for them.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise no_room(path, needed, error.strerror or "") from error


def reserve(path: Path, size: int) -> None:
    """Give an existing file ``size`` bytes of its own: holes are filled, the rest is added as zeros.

    A file system that cannot reserve room gets zeros written, which takes it as well; a file that has its length there
    is left as it is.

    Raises:
        NoRoomError: there is no room for them; the file keeps the length that it had.
    """
    with open(path, "r+b", buffering=0) as file:
        status = os.fstat(file.fileno())
        with writing(path, size - min(size, 512 * status.st_blocks)):
            try:
                _fill(file.fileno(), status.st_size, size)
            except BaseException:
                file.truncate(status.st_size)
                raise


def _fill(file: int, length: int, size: int) -> None:
    if size == 0:
        return
    if hasattr(os, "posix_fallocate"):  # not on macOS
        try:
            return os.posix_fallocate(file, 0, size)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
    for start in range(length, size, _BLOCK):
        os.pwrite(file, bytes(min(_BLOCK, size - start)), start)
