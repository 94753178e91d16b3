"""A tree of image files, DIR/train/<class>/* and DIR/val/<class>/*, as loaders."""

from __future__ import annotations

import importlib.util
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from ibvit.data.augment import Recipe
from ibvit.data.images import BadFiles, Pixels, pixels, read
from ibvit.data.schedule import Schedule, Training, Validation
from ibvit.data.types import Loader

logger = logging.getLogger(__name__)

LOADERS = ("auto", "dali", "torchvision")

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's


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


class FolderLoaders(NamedTuple):
    """What :func:`folder_loaders` gives."""

    train: Loader
    val: Loader
    classes: tuple[str, ...]  # sorted folder names; a label is an index into them
    sizes: tuple[int, int]  # images in train and val
    loader: str  # the one that was chosen: "dali" or "torchvision"
    bad: BadFiles  # grows as broken files are met


def choose_loader(loader: str) -> str:
    """The loader that "auto" means: DALI where it can be imported, else torchvision.

    Raises:
        ValueError: an unknown name, or DALI asked for and absent.

    Example:
        >>> choose_loader("torchvision")
        'torchvision'
    """
    if loader not in LOADERS:
        raise ValueError(f"loader: expected one of {', '.join(LOADERS)}, got {loader!r}")
    dali = importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None
    if loader == "dali" and not dali:
        raise ValueError("loader: dali is not installed here (pip install nvidia-dali-cuda130); torchvision is")
    if loader == "auto":
        loader = "dali" if dali else "torchvision"
        logger.info("loader: %s (%s)", loader, "DALI is installed" if dali else "DALI is not installed")
    return loader


def folder_loaders(
    root: Path,
    *,
    image_size: int,
    global_batch: int,
    eval_batch: int,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 2,
    loader: str = "auto",
    device: torch.device | str = "cpu",
    num_ops: int = 2,
) -> FolderLoaders:
    """Training and validation loaders of ``root/train`` and ``root/val`` for one rank.

    Args:
        image_size: side of the images that the model sees, pixels; validation first resizes the
            shorter side to 256/224 of it.
        global_batch: training images a step, over all ranks.
        eval_batch: validation images a step, on this rank.
        seed: decides order and augmentation, together with the epoch.
        workers: processes (torchvision) or threads (DALI) that prepare images on this rank.
        loader: "dali", "torchvision", or "auto": DALI where it is installed.
        device: where batches go.
        num_ops: RandAugment operations for each training image.

    Raises:
        ValueError: the tree has no images, an empty class, or different classes in train and val; an option is wrong.
    """
    train_folder, val_folder = scan_tree(root)
    loader = choose_loader(loader)
    device = torch.device(device)
    recipe = Recipe(image_size, num_ops)
    bad = BadFiles()

    def build(folder: ImageFolder, schedule: Schedule) -> Loader:
        if loader == "dali":
            from ibvit.data.dali import DaliLoader

            return DaliLoader(folder, "encoded", schedule, workers, device, bad)
        from ibvit.data.torchvision import TorchvisionLoader

        return TorchvisionLoader(folder, schedule, workers, device, bad)

    return FolderLoaders(
        build(train_folder, Training(recipe, len(train_folder), seed, global_batch, rank, world_size)),
        build(val_folder, Validation(recipe, len(val_folder), eval_batch, rank, world_size)),
        train_folder.classes,
        (len(train_folder), len(val_folder)),
        loader,
        bad,
    )
