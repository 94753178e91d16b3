"""Packs in this machine's memory, shared by all processes that read the same files.

Each process that uses a pack holds a lock on it, which the system lets go when the process ends, however it ends. The
last process that leaves removes the pack; what killed processes left is used again or removed by the next.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from ibvit.data.cache.pack import Pack, create_pack, digest
from ibvit.data.files.tree import ImageFolder
from ibvit.data.plans.augment import Ints

HOME = Path("/dev/shm") if os.path.isdir("/dev/shm") else Path(tempfile.gettempdir())
_PREFIX = f"ibvit-{os.getuid()}-"


def memory_pack(folder: ImageFolder, sizes: Ints) -> Pack:
    """The pack of these files, made if there is none; it goes with the last process that has it open.

    Raises:
        OSError: there is no room.
    """
    place = _place(folder)
    while True:
        try:
            create_pack(place, folder, sizes)
            lock = _locked(place)
            break
        except FileNotFoundError:  # its last user removed it in between
            continue
    pack = Pack(place, folder)
    weakref.finalize(pack, _leave, place, lock, os.getpid())
    return pack


def occupied(folder: ImageFolder) -> int:
    """Bytes of memory that the pack of these files takes already."""
    try:
        return 512 * os.stat(_place(folder) / "pixels.bin").st_blocks
    except FileNotFoundError:
        return 0


def remove_abandoned(kept: Iterable[ImageFolder]) -> None:
    """Remove the packs that no process has open, but for those of some files."""
    for place in set(HOME.glob(f"{_PREFIX}*")) - {_place(folder) for folder in kept}:
        try:
            _leave(place, _locked(place), os.getpid())
        except FileNotFoundError:  # somebody else removes it
            continue


def _place(folder: ImageFolder) -> Path:
    stamps = [str(os.stat(folder.root / name).st_mtime_ns) for name in folder.classes]
    key = "\n".join([str(folder.root.resolve()), digest(folder), *stamps])
    return HOME / (_PREFIX + hashlib.sha256(key.encode()).hexdigest()[:16])


def _locked(place: Path) -> IO[str]:
    lock = open(place / "folder.json")  # noqa: SIM115 -- held open
    fcntl.flock(lock, fcntl.LOCK_SH)
    if not os.path.samestat(os.stat(place / "folder.json"), os.fstat(lock.fileno())):
        raise FileNotFoundError(f"{place} was removed and made again")
    return lock


def _leave(place: Path, lock: IO[str], owner: int) -> None:
    if os.getpid() != owner:  # a worker forked from it
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # gives the shared lock up first: one of many succeeds
        except BlockingIOError:
            return
        gone = place.with_name(f"{place.name}-{owner}")
        place.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
