"""The files of an image folder: which there are, and what class each is of."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from ibvit.data.files.bad_files import BadFiles
from ibvit.data.files.images import Pixels, oddity, opened, read, rgb

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's

Stored = Literal["encoded", "memory", "device"]


class Source(Protocol):
    """Where decoded images come from: files, or a cache."""

    @property
    def stored(self) -> Stored:
        """As encoded files, or decoded: in the machine's memory, or on the device."""

    @property
    def labels(self) -> tuple[int, ...]: ...

    @property
    def bad(self) -> BadFiles:
        """Gathers the files that had to be replaced or converted."""

    def __len__(self) -> int: ...

    def path(self, index: int) -> str: ...

    def pixels(self, index: int) -> Any:
        """uint8 ``[height, width, 3]``, an array or a tensor on a device."""


@dataclass(frozen=True)
class ImageFolder:
    """The images of one split; index, labels and class order are torchvision's ``ImageFolder``'s.

    Files are listed by name alone: a broken one keeps its index, and is replaced when it is read.
    """

    root: Path
    classes: tuple[str, ...]
    paths: tuple[str, ...]  # relative to root
    labels: tuple[int, ...]
    bad: BadFiles = field(default_factory=BadFiles, repr=False, compare=False)
    stored: Stored = field(default="encoded", init=False, repr=False)

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> str:
        """Where image ``index`` lies."""
        return os.path.join(self.root, self.paths[index])

    def encoded(self, index: int) -> bytes:
        """The file's bytes; raises :class:`~ibvit.data.files.images.BadImageError`."""
        return read(self.path(index))

    def decoded(self, index: int, data: bytes) -> Image.Image:
        """PIL's reading of the file's bytes, in RGB; raises :class:`~ibvit.data.files.images.BadImageError`."""
        image = opened(data)
        what = oddity(image, self.paths[index])
        if what is not None:
            self.bad.name(self.path(index), what)
        return rgb(image)

    def pixels(self, index: int) -> Pixels:
        """uint8 ``[height, width, 3]``; raises :class:`~ibvit.data.files.images.BadImageError`."""
        return np.array(self.decoded(index, self.encoded(index)))


def scan(root: Path, bad: BadFiles | None = None) -> ImageFolder:
    """List a split.

    Args:
        bad: gathers its bad files.

    Raises:
        ValueError: the folder has no class folders, or a class folder has no images.
    """
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    if not classes:
        raise ValueError(f"data: expected class folders in {root}, which has none")
    paths: list[str] = []
    labels: list[int] = []
    empty: list[str] = []
    for label, name in enumerate(classes):
        before = len(paths)
        for folder, names in sorted(_walk(os.path.join(root, name))):
            inner = os.path.relpath(folder, root)
            paths += [os.path.join(inner, file) for file in sorted(names) if file.lower().endswith(EXTENSIONS)]
        labels += [label] * (len(paths) - before)
        if len(paths) == before:
            empty.append(str(root / name))
    if empty:
        more = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
        raise ValueError(
            f"data: expected images ({', '.join(EXTENSIONS)}) in every class folder, found none in "
            f"{', '.join(empty[:3])}{more}"
        )
    return ImageFolder(root, tuple(classes), tuple(paths), tuple(labels), bad or BadFiles())


def _walk(top: str) -> Iterator[tuple[str, list[str]]]:
    """Each folder from ``top`` down, and what is to be read in it.

    A folder named as an image is listed as one. A link to a folder that it lies in has no end and is not followed.
    """
    real_top = Path(top).resolve()
    above = {top: {str(folder) for folder in (real_top, *real_top.parents)}}
    for folder, inner, files in os.walk(top, followlinks=True, onerror=_refuse):
        names = [name for name in inner if name.lower().endswith(EXTENSIONS)]
        real = {name: os.path.realpath(os.path.join(folder, name)) for name in inner if name not in names}
        inner[:] = [name for name, target in real.items() if target not in above[folder]]
        for name in inner:
            above[os.path.join(folder, name)] = above[folder] | {real[name]}
        yield folder, [*files, *names]


def _refuse(error: OSError) -> None:
    raise ValueError(f"data: expected readable folders, got {error.filename}: {error.strerror}") from error


def scan_tree(root: Path, bad: BadFiles | None = None) -> tuple[ImageFolder, ImageFolder]:
    """List ``root/train`` and ``root/val``, which must have the same classes.

    Args:
        bad: gathers the bad files of both.

    Raises:
        ValueError: as :func:`scan`, or one is missing, or the classes differ.
    """
    missing = [name for name in ("train", "val") if not (root / name).is_dir()]
    if missing:
        found = f"{root} holds {', '.join(sorted(os.listdir(root))[:3]) or 'nothing'}" if root.is_dir() else "no folder"
        raise ValueError(f"data: expected folders train and val in {root}; {' and '.join(missing)} missing: {found}")
    bad = bad or BadFiles()
    train, val = scan(root / "train", bad), scan(root / "val", bad)
    if train.classes != val.classes:
        only_train = sorted(set(train.classes) - set(val.classes))
        only_val = sorted(set(val.classes) - set(train.classes))
        raise ValueError(
            f"data: expected the same classes in {train.root} and {val.root}; "
            f"only in train: {only_train[:5] or 'none'}, only in val: {only_val[:5] or 'none'}"
        )
    return train, val
