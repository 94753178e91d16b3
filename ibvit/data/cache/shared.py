"""Packs in this machine's memory, shared by all processes of a user that read the same files.

They lie in a folder that no other user can enter. Others may put any folder beside it: what is not this user's
own, or not closed to others, is passed over and never read.

Each process that uses a pack holds a lock on it, which the system releases when the process ends, however it ends. The
last process that leaves removes the pack; what killed processes left is used again or removed by the next. Packs are
made and cleared away by one process at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import os
import shutil
import stat
import tempfile
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from ibvit.data.cache.lock import alone, locked
from ibvit.data.cache.making import create_pack
from ibvit.data.cache.pack import FOLDER, PIXELS, Pack, PackError
from ibvit.data.files.fingerprint import Contents
from ibvit.data.files.tree import ImageFolder
from ibvit.data.plans.augment import Ints

HOME = Path("/dev/shm") if os.path.isdir("/dev/shm") else Path(tempfile.gettempdir())
_LOCK = "lock"


def memory_pack(folder: ImageFolder, made_from: Contents, sizes: Ints) -> Pack:
    """The pack of these files, made if there is none; it goes with the last process that has it open.

    Args:
        made_from: the fingerprint of the files, taken before their sizes were.

    Raises:
        NoRoomError: there is no room.
    """
    own = _own_folder()
    pack_dir = own / _name(folder, made_from)
    with alone(own / _LOCK):
        try:
            lock = locked(pack_dir / FOLDER, fcntl.LOCK_SH)
            pack = Pack(pack_dir, folder, made_from)
        except (OSError, PackError):  # absent, or left by a process that was killed
            shutil.rmtree(pack_dir, ignore_errors=True)
            pack = create_pack(pack_dir, folder, made_from, sizes)
            lock = locked(pack_dir / FOLDER, fcntl.LOCK_SH)
    weakref.finalize(pack, _leave, pack_dir, lock, os.getpid())
    return pack


def occupied(folder: ImageFolder, made_from: Contents) -> int:
    """Bytes of memory that the pack of these files takes already."""
    name = _name(folder, made_from)
    for own in _own_folders():
        with contextlib.suppress(OSError):
            return 512 * os.stat(own / name / PIXELS).st_blocks
    return 0


def remove_abandoned(exceptions: Iterable[tuple[ImageFolder, Contents]] = ()) -> None:
    """Remove the packs that no process has open, except those of some files."""
    names = {_LOCK, *(_name(folder, made_from) for folder, made_from in exceptions)}
    for own in _own_folders():
        with alone(own / _LOCK):
            for pack_dir in own.iterdir():
                if pack_dir.name not in names:
                    _remove_unused(pack_dir)


def _remove_unused(pack_dir: Path) -> None:
    try:
        lock = locked(pack_dir / FOLDER, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # in use
        return
    except OSError:  # half made, or half removed
        shutil.rmtree(pack_dir, ignore_errors=True)
        return
    with lock:
        shutil.rmtree(pack_dir, ignore_errors=True)


def _own_folders() -> list[Path]:
    """This user's folders in memory; there are several if another user had the first name for a while."""
    return [folder for folder in sorted(HOME.glob(f"ibvit-{os.geteuid()}*")) if _is_private(folder)]


def _own_folder() -> Path:
    names = (f"ibvit-{os.geteuid()}{f'-{number}' if number else ''}" for number in itertools.count())
    own = _own_folders()
    return own[0] if own else next(HOME / name for name in names if _is_claimed(HOME / name))


def _is_claimed(folder: Path) -> bool:
    """Whether a folder is this user's own, created here if there was none; False if another user has it."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        folder.chmod(0o700)  # whatever the umask
    return _is_private(folder)


def _is_private(folder: Path) -> bool:
    """A folder of this user, not a link to one, that no other user can enter."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077


def _name(folder: ImageFolder, made_from: Contents) -> str:
    key = os.fsencode(folder.root.resolve()) + b"\0" + made_from.fingerprint.encode()
    return hashlib.sha256(key).hexdigest()[:32]


def _leave(pack_dir: Path, lock: IO[str], owner: int) -> None:
    if os.getpid() != owner:  # a worker forked from it
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # gives the shared lock up first: one of many succeeds
            if not os.path.samestat(os.stat(pack_dir / FOLDER), os.fstat(lock.fileno())):
                return  # another pack lies there by now
        except (BlockingIOError, FileNotFoundError):
            return
        removed = pack_dir.with_name(f"{pack_dir.name}-{owner}")
        pack_dir.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)
