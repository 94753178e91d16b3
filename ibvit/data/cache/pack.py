"""Decoded pictures in a folder that is memory-mapped: they are kept at full size, so that crops have the distribution
that they have from files.

A pack is four plain files: ``pixels.bin`` (all pictures, one after another), ``sizes.npy`` (int32 ``[n, 2]`` height and
width, 0 for broken files), ``state.npy`` (uint8 ``[n]``: 0 not yet decoded, 1 decoded, 2 broken), ``folder.json``. It
is filled as pictures are first asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from ibvit.data.files.bad_files import BadFile
from ibvit.data.files.images import BadImageError, Pixels, stored_size
from ibvit.data.files.tree import ImageFolder, Stored, scan_tree
from ibvit.data.plans.augment import Ints
from ibvit.progress import for_all

_NEW, _DECODED, _BROKEN = 0, 1, 2


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


def digest(folder: ImageFolder) -> str:
    return hashlib.sha256("\n".join(folder.paths).encode()).hexdigest()


class Pack:
    """A folder of decoded pictures, memory-mapped: a :class:`~ibvit.data.files.tree.Source`.

    Args:
        path: the pack, made by :func:`create_pack`.
        folder: the image files it is made from.

    Raises:
        ValueError: the pack was made from other files.
    """

    stored: ClassVar[Stored] = "memory"

    def __init__(self, path: Path, folder: ImageFolder) -> None:
        made_from = json.loads((path / "folder.json").read_text())["paths_sha256"]
        if made_from != digest(folder):
            raise ValueError(
                f"cache: expected {path} to be made from the {len(folder)} images in {folder.root}, it is made from "
                "others; delete it and run `ibvit data pack` again"
            )
        self.place, self.folder, self.labels, self.bad = path, folder, folder.labels, folder.bad
        self._writable = os.access(path / "pixels.bin", os.W_OK)
        mode: Literal["r+", "r"] = "r+" if self._writable else "r"
        self.sizes: Ints = np.load(path / "sizes.npy").astype(np.int64)
        self.state = np.load(path / "state.npy", mmap_mode=mode)
        self._offsets = offsets(self.sizes)
        self._pixels = np.memmap(path / "pixels.bin", dtype=np.uint8, mode=mode)

    def __reduce__(self) -> tuple[type[Pack], tuple[Path, ImageFolder]]:
        return Pack, (self.place, self.folder)

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

        found = for_all(decode, len(self), workers, f"decoding {self.folder.root.name}", "images")
        return [bad for bad in found if bad is not None]


def create_pack(path: Path, folder: ImageFolder, sizes: Ints) -> Pack:
    """An empty pack for pictures of these sizes; one that is already there, from the same files, is opened.

    Raises:
        OSError: there is no room.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        np.save(made / "sizes.npy", sizes.astype(np.int32))
        np.save(made / "state.npy", np.zeros(len(folder), dtype=np.uint8))
        with open(made / "pixels.bin", "wb") as file:
            file.truncate(max(1, decoded_bytes(sizes)))
        (made / "folder.json").write_text(
            json.dumps({"root": str(folder.root), "paths_sha256": digest(folder), "classes": folder.classes})
        )
        made.chmod(0o755)
        try:
            made.rename(path)
        except OSError:  # another rank was first
            shutil.rmtree(made)
            if not path.exists():
                raise
    return Pack(path, folder)


def disk_pack(folder: ImageFolder) -> Path:
    """Where ``ibvit data pack`` puts a split's pack: DIR/train.pack beside DIR/train.

    Example:
        >>> disk_pack(ImageFolder(Path("data/train"), (), (), ())).as_posix()
        'data/train.pack'
    """
    return folder.root.with_name(f"{folder.root.name}.pack")


def pack_tree(root: Path, workers: int | None = None) -> tuple[Pack, Pack]:
    """Decode DIR/train and DIR/val into DIR/train.pack and DIR/val.pack; an interrupted call resumes where it stopped.

    Raises:
        ValueError: the tree is not one of images, or the disk has no room.
    """
    packs = []
    for folder in scan_tree(root):
        path = disk_pack(folder)
        if path.exists():
            pack = Pack(path, folder)
        else:
            sizes = measure(folder)
            needed, free = decoded_bytes(sizes), shutil.disk_usage(root).free
            print(f"{path}: {len(folder)} images, {needed / 1e9:.2f} GB decoded, {free / 1e9:.1f} GB free on the disk")
            if needed > 0.95 * free:
                raise ValueError(f"pack: expected {needed / 1e9:.1f} GB free at {root}, there are {free / 1e9:.1f} GB")
            pack = create_pack(path, folder, sizes)
        broken = pack.fill(workers)
        for file, reason in broken:
            print(f"{file}: {reason}")
        if broken:
            print(f"{path}: {len(broken)} broken, others take their place; if you mend them, delete {path}, pack again")
        packs.append(pack)
    return packs[0], packs[1]
