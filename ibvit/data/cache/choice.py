"""Decode once: where the decoded images of a data set are cached between epochs.

They lie in the GPU's memory (:mod:`ibvit.data.cache.device`), in this machine's memory
(:mod:`ibvit.data.cache.shared`), or in a pack on local disk that ``ibvit data pack`` fills beforehand
(:mod:`ibvit.data.cache.pack`). Those in memory are filled as pictures are first asked for.

DALI's decoder has a cache of its own (``decoders.image(device="mixed", cache_size=…)``). It is not used: it does not
hold windows of images (``decoders.image_slice``). It identifies images by the names that DALI's readers give them. It
needs its size before the images are known, and exists on a GPU only. The caches here serve both loaders and the CPU.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from ibvit.data.cache import shared
from ibvit.data.cache.device import DeviceArena
from ibvit.data.cache.making import disk_pack, open_disk_pack
from ibvit.data.cache.pack import Pack, PackError, decoded_bytes, measure
from ibvit.data.files.fingerprint import Contents, contents
from ibvit.data.files.tree import ImageFolder, Source

logger = logging.getLogger(__name__)

MODES = ("auto", "gpu", "ram", "off")
_SHARE_OF_MEMORY = 0.7  # of what is free, that a cache may take


class Sources(NamedTuple):
    """Where the loaders' pictures come from."""

    train: Source
    val: Source
    cache: str  # what was chosen: "gpu", "ram", "pack" (on disk) or "off"


def _free_memory(system: Path = Path("/")) -> int:
    """Bytes that are left to this process: of the machine, of its container, and of the file system in memory."""
    try:
        free = [_numbers(system / "proc/meminfo")["MemAvailable:"] << 10, shutil.disk_usage(shared.HOME).free]
    except (OSError, KeyError):
        return 0  # no Linux: nothing is known
    group = system / "sys/fs/cgroup"
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit ("max")
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        free.append(limit - used + _numbers(group / "memory.stat")["inactive_file"])
    return min(free)


def _numbers(path: Path) -> dict[str, int]:
    """A table of the operating system's kernel: one name and one number per line."""
    return {name: int(number) for name, number, *_ in map(str.split, path.read_text().splitlines())}


def cached(train: ImageFolder, val: ImageFolder, mode: str, device: torch.device, loader: str) -> Sources:
    """The pictures of two splits, decoded once where ``mode`` says.

    Args:
        mode: "gpu": on the device, all of it on each, filled from packs on disk if there are any; "ram": in this
            machine's memory, shared by its ranks, or those packs; "off": decoded each time; "auto": the first of gpu
            and ram with room for it, else off.
        loader: "dali" or "torchvision"; only DALI reads pictures that are on a GPU.

    Packs on disk whose images have changed are not used, and the log says so.

    Raises:
        ValueError: an unknown mode, or one that this machine has no room for.
        NoRoomError: another process took the memory meanwhile.
    """
    if mode not in MODES:
        raise ValueError(f"cache: expected one of {', '.join(MODES)}, got {mode!r}")
    can_gpu = device.type == "cuda" and loader == "dali"
    if mode == "gpu" and not can_gpu:
        raise ValueError(f"cache: gpu needs --loader dali on a CUDA device, got {loader} on {device.type}")
    if mode == "off":
        return Sources(train, val, "off")

    splits = (train, val)
    made_from = [contents(split) for split in splits]
    packs = _disk_packs(splits, made_from)
    packed = bool(packs)
    sizes = [pack.sizes for pack in packs] or [measure(split) for split in splits]
    needed = sum(map(decoded_bytes, sizes))
    splits_with_contents = list(zip(splits, made_from, strict=True))
    shared.remove_abandoned(exceptions=splits_with_contents)
    room = {
        "gpu": torch.cuda.mem_get_info(device)[0] if can_gpu else 0,
        "ram": _free_memory() + sum(shared.occupied(*split) for split in splits_with_contents),
    }
    fits = {name: needed <= _SHARE_OF_MEMORY * free for name, free in room.items()}
    fits["ram"] |= packed
    is_open = mode == "auto"
    if is_open:
        mode = next((name for name in ("gpu", "ram") if fits[name]), "off")
    logger.info(
        "cache: %d images are %.2f GB decoded (free: %.1f GB on the GPU, %.1f GB in memory): %s",
        len(train) + len(val), needed / 1e9, room["gpu"] / 1e9, room["ram"] / 1e9,
        "packs on disk" if packed and mode == "ram" else mode,
    )  # fmt: skip
    if mode == "off":
        return Sources(train, val, "off")
    if not fits[mode]:
        raise ValueError(
            f"cache: {mode} needs {needed / 1e9:.1f} GB, of the {room[mode] / 1e9:.1f} GB that are free at most "
            f"{_SHARE_OF_MEMORY:.0%} are taken; `ibvit data pack` decodes to disk instead"
        )
    if packed and mode == "ram":
        return Sources(packs[0], packs[1], "pack")
    try:
        if mode == "gpu":
            origins: list[ImageFolder | Pack] = [*packs] or [*splits]
            arenas = [DeviceArena(origin, size, device) for origin, size in zip(origins, sizes, strict=True)]
            return Sources(arenas[0], arenas[1], "gpu")
        packs = [shared.memory_pack(*split, size) for split, size in zip(splits_with_contents, sizes, strict=True)]
        return Sources(packs[0], packs[1], "ram")
    except (OSError, torch.OutOfMemoryError) as error:  # another process took the memory meanwhile
        why = str(error).splitlines()[0]
        if is_open:
            logger.warning("cache: off, pictures are decoded each time: %s", why)
            return Sources(train, val, "off")
        if isinstance(error, OSError):
            raise
        raise ValueError(f"cache: expected {needed / 1e9:.1f} GB of room on {device}: {why}") from error


def _disk_packs(splits: Sequence[ImageFolder], made_from: Sequence[Contents]) -> list[Pack]:
    """The packs of all splits, or none if one of them cannot be used."""
    if not any(disk_pack(split).exists() for split in splits):
        return []
    try:
        return [open_disk_pack(*split) for split in zip(splits, made_from, strict=True)]
    except PackError as error:
        if int(os.environ.get("RANK", 0)) == 0:
            root = splits[0].root.parent
            logger.warning("cache: packs on disk are not used; `ibvit data pack %s` makes them again: %s", root, error)
        return []
