"""Decode once: pictures kept as uint8 at full size, so that crops have the distribution they have from files.

Three places: the GPU's memory, this machine's memory (shared by all ranks and runs on it), or a *pack*, a folder on
local disk that ``ibvit data pack`` fills beforehand. All are filled as pictures are first asked for. An open pack in
memory belongs to the process that made it, and goes when that process ends.

A pack is four plain files: ``pixels.bin`` (all pictures, one after another), ``sizes.npy`` (int32 ``[n, 2]`` height and
width, 0 for broken files), ``state.npy`` (uint8 ``[n]``: 0 not yet decoded, 1 decoded, 2 broken), ``folder.json``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ibvit.data.augment import Ints
from ibvit.data.images import BadImageError, Pixels, stored_size
from ibvit.data.progress import for_all
from ibvit.data.tree import ImageFolder

logger = logging.getLogger(__name__)

MODES = ("auto", "gpu", "ram", "off")
_NEW, _DECODED, _BROKEN = 0, 1, 2
_SHARE_OF_MEMORY = 0.7  # of what is free, that a cache may take


def measure(folder: ImageFolder, workers: int = 16) -> Ints:
    """(height, width) of every image from its header, int64 ``[n, 2]``; (0, 0) for a broken file."""

    def size(index: int) -> tuple[int, int]:
        try:
            return stored_size(folder.path(index))
        except BadImageError:
            return 0, 0

    what = f"measuring {folder.root.name} images"
    return np.array(list(for_all(size, len(folder), workers, what)), dtype=np.int64)


def decoded_bytes(sizes: Ints) -> int:
    """What pictures of these sizes take as uint8 RGB.

    Example:
        >>> decoded_bytes(np.array([[375, 500], [0, 0]]))
        562500
    """
    return int(3 * sizes.prod(axis=1).sum())


def _offsets(sizes: Ints) -> Ints:
    return np.concatenate([[0], np.cumsum(3 * sizes.prod(axis=1))])


def _digest(folder: ImageFolder) -> str:
    return hashlib.sha256("\n".join(folder.paths).encode()).hexdigest()


class Pack:
    """A folder of decoded pictures, memory-mapped; a source of pixels as :class:`~ibvit.data.tree.ImageFolder` is.

    Args:
        path: the pack, made by :func:`create_pack`.
        folder: the image files it is made from.

    Raises:
        ValueError: the pack was made from other files.
    """

    def __init__(self, path: Path, folder: ImageFolder) -> None:
        made_from = json.loads((path / "folder.json").read_text())["paths_sha256"]
        if made_from != _digest(folder):
            raise ValueError(
                f"cache: expected {path} to be made from the {len(folder)} images in {folder.root}, it is made from "
                "others; delete it, or run `ibvit data pack` again"
            )
        self.place, self.folder, self.labels = path, folder, folder.labels
        self._writable = os.access(path / "pixels.bin", os.W_OK)
        mode: Literal["r+", "r"] = "r+" if self._writable else "r"
        self.sizes: Ints = np.load(path / "sizes.npy").astype(np.int64)
        self.state = np.load(path / "state.npy", mmap_mode=mode)
        self._offsets = _offsets(self.sizes)
        self._pixels = np.memmap(path / "pixels.bin", dtype=np.uint8, mode=mode)

    def __reduce__(self) -> tuple[type[Pack], tuple[Path, ImageFolder]]:
        return Pack, (self.place, self.folder)

    def __len__(self) -> int:
        return len(self.folder)

    def path(self, index: int) -> str:
        return self.folder.path(index)

    def pixels(self, index: int) -> Pixels:
        """uint8 ``[height, width, 3]``; raises :class:`~ibvit.data.images.BadImageError`."""
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

    def fill(self, workers: int) -> list[tuple[str, str]]:
        """Decode all that is not decoded yet; returns (path, reason) of the broken files."""

        def decode(index: int) -> tuple[str, str] | None:
            try:
                self.pixels(index)
            except BadImageError as error:
                return self.path(index), str(error)
            return None

        found = for_all(decode, len(self), workers, f"decoding {self.folder.root.name} images")
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
            json.dumps({"root": str(folder.root), "paths_sha256": _digest(folder), "classes": folder.classes})
        )
        made.chmod(0o755)
        try:
            made.rename(path)
        except OSError:  # another rank was first
            shutil.rmtree(made)
            if not path.exists():
                raise
    return Pack(path, folder)


class DeviceArena:
    """Pictures on a GPU, in one allocation; pixels are views of it.

    Args:
        source: where a picture comes from when it is first asked for.
        sizes: int64 ``[n, 2]`` height and width.
    """

    def __init__(self, source: ImageFolder | Pack, sizes: Ints, device: torch.device) -> None:
        self._source, self._sizes, self.labels = source, sizes, source.labels
        self._offsets = _offsets(sizes)
        self._decoded = np.zeros(len(sizes), dtype=bool)
        self._arena = torch.empty(decoded_bytes(sizes), dtype=torch.uint8, device=device)

    def __len__(self) -> int:
        return len(self._source)

    def path(self, index: int) -> str:
        return self._source.path(index)

    def pixels(self, index: int) -> Tensor:
        """uint8 ``[height, width, 3]`` on the device; raises :class:`~ibvit.data.images.BadImageError`."""
        height, width = self._sizes[index].tolist()
        stored = self._arena[self._offsets[index] : self._offsets[index + 1]].view(height, width, 3)
        if not self._decoded[index]:
            decoded = self._source.pixels(index)
            if decoded.shape != tuple(stored.shape):
                raise BadImageError("changed since it was measured, or broken then")
            stored.copy_(torch.from_numpy(decoded))
            self._decoded[index] = True
        return stored


class Sources(NamedTuple):
    """Where the loaders' pictures come from."""

    train: ImageFolder | Pack | DeviceArena
    val: ImageFolder | Pack | DeviceArena
    stored: str  # "encoded" (files) or "pixels"
    cache: str  # what was chosen: "gpu", "ram", "pack" (on disk) or "off"


def disk_pack(folder: ImageFolder) -> Path:
    """Where ``ibvit data pack`` puts a split's pack: DIR/train.pack beside DIR/train.

    Example:
        >>> disk_pack(ImageFolder(Path("data/train"), (), (), ())).as_posix()
        'data/train.pack'
    """
    return folder.root.with_name(f"{folder.root.name}.pack")


def memory_pack(folder: ImageFolder, sizes: Ints) -> Pack:
    """A pack in this machine's memory, shared with other processes that read the same files."""
    home = Path("/dev/shm") if os.path.isdir("/dev/shm") else Path(tempfile.gettempdir())
    stamps = [str(os.stat(folder.root / name).st_mtime_ns) for name in folder.classes]
    key = hashlib.sha256("\n".join([str(folder.root.resolve()), _digest(folder), *stamps]).encode()).hexdigest()[:16]
    path = home / f"ibvit-{os.getuid()}-{key}"
    pack = create_pack(path, folder, sizes)
    weakref.finalize(pack, _remove, path, os.getpid())
    return pack


def _remove(path: Path, owner: int) -> None:
    if os.getpid() == owner:  # and not a worker forked from it
        shutil.rmtree(path, ignore_errors=True)


def _free_memory() -> int:
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with open("/proc/meminfo") as lines:
        available = [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    memory = available[0] if available else pages
    return min(memory, shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else memory)


def cached(train: ImageFolder, val: ImageFolder, mode: str, device: torch.device, loader: str) -> Sources:
    """The pictures of two splits, decoded once where ``mode`` says.

    Args:
        mode: "gpu": on the device, all of it on each; "ram": in this machine's memory, shared by its ranks, or in packs
            on disk if there are any; "off": decoded each time; "auto": the first of gpu and ram with room
            for it, else off.
        loader: "dali" or "torchvision"; only DALI reads pictures that are on a GPU.

    Raises:
        ValueError: an unknown mode, or one that this machine has no room for.
    """
    if mode not in MODES:
        raise ValueError(f"cache: expected one of {', '.join(MODES)}, got {mode!r}")
    can_gpu = device.type == "cuda" and loader == "dali"
    if mode == "gpu" and not can_gpu:
        raise ValueError(f"cache: gpu needs --loader dali on a CUDA device, got {loader} on {device.type}")
    if mode == "off":
        return Sources(train, val, "encoded", "off")

    packed = disk_pack(train).exists() and disk_pack(val).exists()
    sources: list[ImageFolder | Pack] = [train, val]
    if packed:
        packs = [Pack(disk_pack(split), split) for split in (train, val)]
        sources, sizes = [*packs], [pack.sizes for pack in packs]
    else:
        sizes = [measure(split) for split in (train, val)]
    needed = sum(map(decoded_bytes, sizes))
    room = {"gpu": torch.cuda.mem_get_info(device)[0] if can_gpu else 0, "ram": _free_memory()}
    fits = {place: needed <= _SHARE_OF_MEMORY * free for place, free in room.items()}
    fits["ram"] |= packed
    if mode == "auto":
        mode = next((place for place in ("gpu", "ram") if fits[place]), "off")
    logger.info(
        "cache: %d images are %.2f GB decoded (free: %.1f GB on the GPU, %.1f GB in memory): %s",
        len(train) + len(val), needed / 1e9, room["gpu"] / 1e9, room["ram"] / 1e9,
        "packs on disk" if packed and mode == "ram" else mode,
    )  # fmt: skip
    if mode == "off":
        return Sources(train, val, "encoded", "off")
    if not fits[mode]:
        raise ValueError(
            f"cache: {mode} needs {needed / 1e9:.1f} GB, of the {room[mode] / 1e9:.1f} GB that are free at most "
            f"{_SHARE_OF_MEMORY:.0%} are taken; `ibvit data pack` decodes to disk instead"
        )
    if mode == "gpu":
        arenas = [DeviceArena(source, size, device) for source, size in zip(sources, sizes, strict=True)]
        return Sources(arenas[0], arenas[1], "pixels", "gpu")
    if packed:
        return Sources(sources[0], sources[1], "pixels", "pack")
    return Sources(memory_pack(train, sizes[0]), memory_pack(val, sizes[1]), "pixels", "ram")
