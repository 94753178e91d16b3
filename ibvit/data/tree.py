"""The files of an image folder: which there are, and what class each is of."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ibvit.data.images import Pixels, pixels, read

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's


class Source(Protocol):
    """Where pictures come from: files, or some place that holds decoded ones."""

    @property
    def labels(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def path(self, index: int) -> str: ...

    def pixels(self, index: int) -> Any:
        """uint8 ``[height, width, 3]``, an array or a tensor on a device."""


@dataclass(frozen=True)
class ImageFolder:
    """The images of one split; index, labels and class order are torchvision's ``ImageFolder``'s.

    Files are listed by name alone: a broken one has its place, and is replaced when its turn comes.
    """

    root: Path
    classes: tuple[str, ...]
    paths: tuple[str, ...]  # relative to root
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> str:
        """Where image ``index`` lies."""
        return os.path.join(self.root, self.paths[index])

    def encoded(self, index: int) -> bytes:
        """The file's bytes; raises :class:`~ibvit.data.images.BadImageError`."""
        return read(self.path(index))

    def pixels(self, index: int) -> Pixels:
        """uint8 ``[height, width, 3]``; raises :class:`~ibvit.data.images.BadImageError`."""
        return pixels(self.encoded(index))


def scan(root: Path) -> ImageFolder:
    """List a split.

    Raises:
        ValueError: the folder does not exist, has no class folders, or a class folder has no images.
    """
    if not root.is_dir():
        raise ValueError(f"data: expected a folder of class folders at {root}, which does not exist")
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    if not classes:
        raise ValueError(f"data: expected class folders in {root}, which has none")
    paths: list[str] = []
    labels: list[int] = []
    empty: list[str] = []
    for label, name in enumerate(classes):
        before = len(paths)
        for folder, _, files in sorted(os.walk(root / name, followlinks=True)):
            inner = os.path.relpath(folder, root)
            paths += [os.path.join(inner, file) for file in sorted(files) if file.lower().endswith(EXTENSIONS)]
        labels += [label] * (len(paths) - before)
        if len(paths) == before:
            empty.append(str(root / name))
    if empty:
        more = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
        raise ValueError(
            f"data: expected images ({', '.join(EXTENSIONS)}) in every class folder, found none in "
            f"{', '.join(empty[:3])}{more}"
        )
    return ImageFolder(root, tuple(classes), tuple(paths), tuple(labels))


def scan_tree(root: Path) -> tuple[ImageFolder, ImageFolder]:
    """List ``root/train`` and ``root/val``, which must have the same classes.

    Raises:
        ValueError: as :func:`scan`, or the classes differ.
    """
    train, val = scan(root / "train"), scan(root / "val")
    if train.classes != val.classes:
        only_train = sorted(set(train.classes) - set(val.classes))
        only_val = sorted(set(val.classes) - set(train.classes))
        raise ValueError(
            f"data: expected the same classes in {train.root} and {val.root}; "
            f"only in train: {only_train[:5] or 'none'}, only in val: {only_val[:5] or 'none'}"
        )
    return train, val
