"""``ibvit data check`` and ``ibvit data pack``: find broken files beforehand, decode beforehand."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ibvit.data.cache import Pack, create_pack, decoded_bytes, disk_pack, measure
from ibvit.data.images import BadFile, BadImageError, loaded
from ibvit.data.progress import for_all
from ibvit.data.tree import ImageFolder, scan_tree

_ORDINARY = ("RGB", "L", "P")  # PIL's modes that need no mention


class Report(NamedTuple):
    """What :func:`check_tree` found."""

    images: int
    classes: int
    bad: tuple[BadFile, ...]  # would be replaced in training
    odd: tuple[BadFile, ...]  # will be converted: another format than the name says, CMYK, 16 bits, …
    grey: int  # will be converted: one component


def check(folder: ImageFolder, workers: int) -> Report:
    """Decode every file of a split, whole, with PIL."""

    formats = Image.registered_extensions()

    def look(index: int) -> tuple[str, str]:
        try:
            image = loaded(folder.encoded(index))
        except BadImageError as error:
            return "bad", str(error)
        if image.mode not in _ORDINARY or image.format != formats[Path(folder.paths[index]).suffix.lower()]:
            return "odd", f"{image.format}, {image.mode}"
        return image.mode, ""

    found = list(for_all(look, len(folder), workers, f"checking {folder.root.name} images"))

    def named(verdict: str) -> tuple[BadFile, ...]:
        return tuple(BadFile(folder.path(index), why) for index, (kind, why) in enumerate(found) if kind == verdict)

    grey = sum(kind == "L" for kind, _ in found)
    return Report(len(found), len(folder.classes), named("bad"), named("odd"), grey)


def check_tree(root: Path, workers: int | None = None) -> int:
    """Check DIR/train and DIR/val, print each broken file, and return how many there are.

    Raises:
        ValueError: the tree is not one of images, see :func:`ibvit.data.tree.scan_tree`.
    """
    broken = 0
    for folder in scan_tree(root):
        report = check(folder, workers or len(os.sched_getaffinity(0)))
        for path, reason in report.bad:
            print(f"{path}: {reason}")
        for path, kind in report.odd:
            print(f"{path}: will be converted from {kind}")
        print(
            f"{folder.root}: {report.images} images of {report.classes} classes, {len(report.bad)} broken (replaced in "
            f"training), {len(report.odd)} odd and {report.grey} grey (converted)"
        )
        broken += len(report.bad)
    return broken


def pack_tree(root: Path, workers: int | None = None) -> tuple[Pack, Pack]:
    """Decode DIR/train and DIR/val into DIR/train.pack and DIR/val.pack; interrupted, it goes on where it stopped.

    Raises:
        ValueError: the tree is not one of images, or the disk has no room.
    """
    workers = workers or len(os.sched_getaffinity(0))
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
        for file, reason in pack.fill(workers):
            print(f"{file}: {reason}")
        packs.append(pack)
    return packs[0], packs[1]
