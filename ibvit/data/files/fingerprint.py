"""Which files a split is made of: one number that changes when they do.

It holds the classes in order and, for each file, its path in the split, its size and the time of its last change. File
contents are not read. A copy that keeps times (``cp -a``, ``rsync -a``) has the same fingerprint, wherever it lies.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from typing import NamedTuple

from ibvit.data.files.tree import ImageFolder

_THREADS = 16  # a network file system answers that many questions at a time
_CHUNK = 512  # files per task: few tasks, as a local file system answers within microseconds
_ABSENT = (-1, 0)


class Contents(NamedTuple):
    """A split's fingerprint, and what helps to say how two of them differ."""

    fingerprint: str  # sha256, hexadecimal
    classes: int
    images: int
    size: int  # bytes, of all files
    changed_ns: int  # when the last changed file changed, nanoseconds since 1970


def fingerprint(folder: ImageFolder) -> str:
    """The sha256 of a split's classes, paths, sizes and times, hexadecimal.

    Example:
        >>> from pathlib import Path
        >>> fingerprint(ImageFolder(Path("nowhere"), ("cat",), ("cat/1.jpg",), (0,)))[:8]
        '382c2f8f'
    """
    return contents(folder).fingerprint


def contents(folder: ImageFolder) -> Contents:
    """A split's fingerprint and its counts; each file is asked once for its size and time."""
    starts = range(0, len(folder), _CHUNK)
    with ThreadPoolExecutor(_THREADS) as pool:
        chunks = list(pool.map(partial(_sizes_and_times, folder), starts))
    sizes_and_times = [pair for chunk in chunks for pair in chunk]
    summed = hashlib.sha256()
    for line in _lines(folder, sizes_and_times):
        summed.update(line)
    return Contents(
        summed.hexdigest(),
        len(folder.classes),
        len(folder),
        sum(max(0, size) for size, _ in sizes_and_times),
        max((changed for _, changed in sizes_and_times), default=0),
    )


def _sizes_and_times(folder: ImageFolder, start: int) -> list[tuple[int, int]]:
    """(bytes, nanoseconds) of each file of a chunk; what cannot be read as a file counts as absent."""
    sizes_and_times = []
    for index in range(start, min(start + _CHUNK, len(folder))):
        try:
            status = os.stat(folder.path(index))
        except OSError:
            sizes_and_times.append(_ABSENT)
            continue
        regular = stat.S_ISREG(status.st_mode)
        sizes_and_times.append((status.st_size, status.st_mtime_ns) if regular else _ABSENT)
    return sizes_and_times


def _lines(folder: ImageFolder, sizes_and_times: list[tuple[int, int]]) -> Iterator[bytes]:
    """What is summed: names end with a zero byte, which no name can hold."""
    yield b"%d\0" % len(folder.classes)
    for name in folder.classes:
        yield os.fsencode(name) + b"\0"
    for path, pair in zip(folder.paths, sizes_and_times, strict=True):
        yield os.fsencode(path) + b"\0%d %d\0" % pair


def differences(old: Contents, new: Contents) -> str:
    """How two splits differ, in a few words.

    Example:
        >>> old = Contents("a", 2, 20, 4000, 0)
        >>> differences(old, old._replace(fingerprint="b", images=19, size=3800))
        '19 images instead of 20, 3800 bytes instead of 4000'
        >>> differences(old, old._replace(fingerprint="b"))
        'names or times of files differ'
    """
    parts = [
        f"{after} {unit} instead of {before}"
        for unit, before, after in (
            ("classes", old.classes, new.classes),
            ("images", old.images, new.images),
            ("bytes", old.size, new.size),
        )
        if before != after
    ]
    if old.changed_ns != new.changed_ns:
        parts.append(f"last changed {_moment(new.changed_ns)} instead of {_moment(old.changed_ns)}")
    return ", ".join(parts) or "names or times of files differ"


def _moment(nanoseconds: int) -> str:
    try:
        return datetime.fromtimestamp(nanoseconds / 1e9).isoformat(" ", "milliseconds")
    except (ValueError, OverflowError, OSError):  # a file of the year 10000
        return f"{nanoseconds / 1e9:.3f} seconds after 1970"
