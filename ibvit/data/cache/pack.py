"""Decoded pictures in a folder that is memory-mapped: they are kept at full size, so that crops have the distribution
that they have from files.

A pack is four plain files: ``pixels.bin`` (all pictures, one after another), ``sizes.npy`` (int32 ``[n, 2]`` height and
width, 0 for broken files), ``state.npy`` (uint8 ``[n]``: 0 not yet decoded, 1 decoded, 2 broken), ``folder.json`` (what
it was made from). It is filled as pictures are first asked for. :mod:`ibvit.data.cache.making` makes packs.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from ibvit.data.files.bad_files import BadFile
from ibvit.data.files.fingerprint import Contents, contents, differences
from ibvit.data.files.images import BadImageError, Pixels, stored_size
from ibvit.data.files.room import NoRoomError, reserve
from ibvit.data.files.tree import ImageFolder, Stored
from ibvit.data.plans.augment import Ints
from ibvit.progress import for_all

PIXELS, SIZES, STATE, FOLDER = FILES = ("pixels.bin", "sizes.npy", "state.npy", "folder.json")
_NEW, _DECODED, _BROKEN = 0, 1, 2


class PackError(ValueError):
    """A pack that cannot be used: damaged, or made from other files than there are now."""


def measure(folder: ImageFolder, workers: int = 16) -> Ints:
    """(height, width) of every image from its header, int64 ``[n, 2]``; (0, 0) for a broken file."""

    def size(index: int) -> tuple[int, int]:
        try:
            return stored_size(folder.path(index))
        except BadImageError:
            return 0, 0

    name = f"measuring {folder.root.name}"
    return np.array(list(for_all(size, len(folder), workers, name, "images")), dtype=np.int64)


def decoded_bytes(sizes: Ints) -> int:
    """What pictures of these sizes take as uint8 RGB.

    Example:
        >>> decoded_bytes(np.array([[375, 500], [0, 0]]))
        562500
    """
    return int(3 * sizes.prod(axis=1).sum())


def offsets(sizes: Ints) -> Ints:
    """Where each picture begins when they lie one after another, and where the last one ends: bytes, ``[n + 1]``."""
    return np.concatenate([[0], np.cumsum(3 * sizes.prod(axis=1))])


class Pack:
    """A folder of decoded pictures, memory-mapped: a :class:`~ibvit.data.files.tree.Source`.

    Args:
        path: the pack, made by :func:`ibvit.data.cache.making.create_pack`.
        folder: the image files it is made from.
        made_from: their fingerprint, if it is known already.

    Raises:
        PackError: the pack is damaged, or the files have changed since it was made.
    """

    stored: ClassVar[Stored] = "memory"

    def __init__(self, path: Path, folder: ImageFolder, made_from: Contents | None = None) -> None:
        self.pack_dir, self.folder, self.labels, self.bad = path, folder, folder.labels, folder.bad
        self.made_from = made_from or contents(folder)
        try:
            self._open()
        except PackError:
            raise
        except (OSError, ValueError, TypeError, KeyError, EOFError) as error:
            raise PackError(f"{path}: expected a pack of {folder.root}, it is damaged ({error})") from error

    def _open(self) -> None:
        made_from = Contents(**json.loads((self.pack_dir / FOLDER).read_text())["made_from"])
        if made_from.fingerprint != self.made_from.fingerprint:
            what = differences(made_from, self.made_from)
            raise PackError(f"{self.pack_dir}: {self.folder.root} has changed since it was packed: {what}")
        self.sizes: Ints = np.load(self.pack_dir / SIZES).astype(np.int64)
        self._offsets = offsets(self.sizes)
        state = np.load(self.pack_dir / STATE)
        pixels, size = self.pack_dir / PIXELS, max(1, decoded_bytes(self.sizes))
        status = pixels.stat()
        for what, expected, got in (
            (SIZES, (len(self.folder), 2), self.sizes.shape),
            (STATE, (len(self.folder),), state.shape),
            (PIXELS, size, status.st_size),
        ):
            if expected != got:
                raise ValueError(f"{what}: expected {expected}, got {got}")
        self._writable = bool((state == _NEW).any()) and all(
            os.access(self.pack_dir / name, os.W_OK) for name in (PIXELS, STATE)
        )
        if self._writable and 512 * status.st_blocks < size:  # a sparse copy of a pack
            try:
                reserve(pixels, size)
            except NoRoomError:
                self._writable = False
        mode: Literal["r+", "r"] = "r+" if self._writable else "r"
        self.state = np.load(self.pack_dir / STATE, mmap_mode=mode)
        self._pixels = np.memmap(pixels, dtype=np.uint8, mode=mode)

    def __reduce__(self) -> tuple[type[Pack], tuple[Path, ImageFolder, Contents]]:
        return Pack, (self.pack_dir, self.folder, self.made_from)

    def __len__(self) -> int:
        return len(self.folder)

    def path(self, index: int) -> str:
        return self.folder.path(index)

    def pixels(self, index: int) -> Pixels:
        """uint8 ``[height, width, 3]``; raises :class:`~ibvit.data.files.images.BadImageError`."""
        if self.state[index] == _BROKEN:
            raise BadImageError("broken when it was decoded")
        height, width = self.sizes[index]
        stored = self._pixels[self._offsets[index] : self._offsets[index + 1]].reshape(height, width, 3)
        if self.state[index] == _DECODED:
            return stored
        try:
            decoded = self.folder.pixels(index)
            if decoded.shape != stored.shape:
                raise BadImageError("changed since it was measured, or broken then")
        except BadImageError:
            if self._writable:
                self.state[index] = _BROKEN
            raise
        if self._writable:
            stored[:] = decoded
            self.state[index] = _DECODED  # after the pixels: another process may be reading
        return decoded

    def fill(self, workers: int | None = None) -> list[BadFile]:
        """Decode all that is not decoded yet; returns the broken files."""

        def decode(index: int) -> BadFile | None:
            try:
                self.pixels(index)
            except BadImageError as error:
                return BadFile(self.path(index), str(error))
            return None

        results = for_all(decode, len(self), workers, f"decoding {self.folder.root.name}", "images")
        return [bad for bad in results if bad is not None]

    def mended(self) -> int:
        """How many pictures that were broken when they were decoded can be decoded now."""

        def is_readable(index: int) -> bool:
            try:
                self.folder.pixels(index)
            except BadImageError:
                return False
            return True

        return sum(map(is_readable, np.flatnonzero(self.state == _BROKEN).tolist()))
