"""Loaders of a tree of image files, DIR/train/<class>/* and DIR/val/<class>/*."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from ibvit.data.cache.choice import cached
from ibvit.data.files.bad_files import BadFiles
from ibvit.data.files.fingerprint import fingerprint
from ibvit.data.files.tree import Source, scan_tree
from ibvit.data.identity import Identity
from ibvit.data.plans.augment import Augmentation
from ibvit.data.plans.schedule import Schedule, Training, Validation
from ibvit.data.types import Loader
from ibvit.errors import MissingExtraError, is_installed

logger = logging.getLogger(__name__)

LOADERS = ("auto", "dali", "torchvision")


class FolderLoaders(NamedTuple):
    """What :func:`folder_loaders` gives."""

    train: Loader
    val: Loader
    classes: tuple[str, ...]  # sorted folder names; a label is an index into them
    sizes: tuple[int, int]  # images in train and val
    identity: Callable[[Sequence[str]], Identity]  # of splits, "train" and "val"; looks at every file
    loader: str  # the one that was chosen: "dali" or "torchvision"
    cache: str  # the one that was chosen: "gpu", "ram", "pack" or "off"
    bad: BadFiles  # of both


def choose_loader(loader: str) -> str:
    """The loader that "auto" means: DALI where it can be imported, else torchvision.

    Raises:
        ValueError: an unknown name.
        MissingExtraError: DALI was asked for and is not installed.

    Example:
        >>> choose_loader("torchvision")
        'torchvision'
    """
    if loader not in LOADERS:
        raise ValueError(f"loader: expected one of {', '.join(LOADERS)}, got {loader!r}")
    dali = is_installed("nvidia.dali")
    if loader == "dali" and not dali:
        raise MissingExtraError("loader: dali", "NVIDIA DALI", "dali", "dali-cuda12")
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
    cache: str = "auto",
    device: torch.device | str = "cpu",
    num_ops: int = 2,
    record: Path | None = None,
) -> FolderLoaders:
    """Training and validation loaders of ``root/train`` and ``root/val`` for one rank.

    Args:
        image_size: side of the images that the model sees, pixels; validation first resizes the
            shorter side to 256/224 of it.
        global_batch: training images per step, over all ranks.
        eval_batch: validation images per step, on this rank.
        seed: decides order and augmentation, together with the epoch.
        workers: processes (torchvision) or threads (DALI) that prepare images on this rank.
        loader: "dali", "torchvision", or "auto": DALI where it is installed.
        cache: "gpu", "ram", "off" or "auto": where decoded pictures are kept (:func:`ibvit.data.cache.choice.cached`).
        device: where batches go.
        num_ops: RandAugment operations for each training image.
        record: file in which the ranks of a run note the files that they have named in the log.

    Raises:
        ValueError: the tree has no images, an empty class, or different classes in train and val; an option is wrong.
    """
    bad = BadFiles(record)
    train_folder, val_folder = scan_tree(root, bad)
    loader = choose_loader(loader)
    device = torch.device(device)
    augmentation = Augmentation(image_size, num_ops)
    sources = cached(train_folder, val_folder, cache, device, loader)

    def build(source: Source, schedule: Schedule) -> Loader:
        if loader == "dali":
            from ibvit.data.loaders.dali import DaliLoader

            return DaliLoader(source, schedule, workers, device)
        from ibvit.data.loaders.torchvision import TorchvisionLoader

        return TorchvisionLoader(source, schedule, workers, device)

    folders = {"train": train_folder, "val": val_folder}
    return FolderLoaders(
        build(sources.train, Training(augmentation, len(train_folder), seed, global_batch, rank, world_size)),
        build(sources.val, Validation(augmentation, len(val_folder), eval_batch, rank, world_size)),
        train_folder.classes,
        (len(train_folder), len(val_folder)),
        lambda splits: Identity(
            train_folder.classes,
            {split: len(folders[split]) for split in splits},
            {split: fingerprint(folders[split]) for split in splits},
        ),
        loader,
        sources.cache,
        bad,
    )
