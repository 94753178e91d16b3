"""Broken image files: a neighbour replaces each of them, and each is named once in a run."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, TypeVar

from ibvit.data.files.images import BadImageError

logger = logging.getLogger(__name__)
Loaded = TypeVar("Loaded")

_TRIED = 256  # files in a row; if so many are broken, the folder is taken as unreadable


class NoImageError(ValueError):
    """So many files are broken that no neighbour can replace them; the message names the first."""


class BadFile(NamedTuple):
    """A file that was replaced, and why."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{printable(self.path)}: {self.reason}"


def printable(path: str) -> str:
    """A path in one line of text: line breaks, and bytes that are no text, are escaped.

    Example:
        >>> print(printable(os.fsdecode(b"caf\\xe9.jpg")))
        caf\\xe9.jpg
    """
    return os.fsencode(path).decode(errors="backslashreplace").replace("\n", "\\n")


def nearest_readable(
    load: Callable[[int], Loaded], path: Callable[[int], str], index: int, count: int
) -> tuple[int, Loaded, list[BadFile]]:
    """The first of ``index``, ``index + 1``, … (cyclically) that loads, its content, and the bad files passed over.

    Raises:
        NoImageError: many in a row do not load, or none at all.
    """
    bad: list[BadFile] = []
    for offset in range(min(count, _TRIED)):
        position = (index + offset) % count
        try:
            return position, load(position), bad
        except BadImageError as error:
            bad.append(BadFile(path(position), str(error)))
    those = "all" if len(bad) == count else f"{len(bad)} in a row"
    raise NoImageError(
        f"data: expected readable images, {those} of {count} are broken (`ibvit data check` names them); the first: "
        f"{bad[0]}"
    )


class BadFiles:
    """Counts the replaced images, and names each file once in the log, whichever process meets it in whichever epoch.

    Args:
        record: a text file that the processes of a run share, a line for each file that was named; None: this process
            is alone.
    """

    def __init__(self, record: Path | None = None) -> None:
        self.replaced = 0  # how many times a neighbour replaced a broken image, on this rank
        self._record = record
        self._named: set[str] = set()

    def replace(self, bad: Iterable[BadFile]) -> None:
        """Count and name files that were passed over."""
        for path, reason in bad:
            self.replaced += 1
            self.name(path, f"{reason}; its neighbour in the data set replaces it")

    def name(self, path: str, what: str) -> None:
        """Log ``what`` about a file, unless it was logged before."""
        path = printable(path)
        if path not in self._named:
            self._named.add(path)
            if self._is_first(path, what):
                logger.warning("%s: %s", path, what)

    def _is_first(self, path: str, what: str) -> bool:
        if self._record is None:
            return True
        self._record.parent.mkdir(parents=True, exist_ok=True)
        with open(self._record, "a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            if any(line.startswith(f"{path}: ") for line in file):
                return False
            file.write(f"{path}: {what}\n")
        return True
