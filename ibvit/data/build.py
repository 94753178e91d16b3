"""From ``--data`` to loaders."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from ibvit.config import CacheName, LoaderName, RunConfig
from ibvit.data.files.bad_files import BadFiles
from ibvit.data.identity import Identity
from ibvit.data.loaders.memory import MemoryLoader
from ibvit.data.plans.augment import Augmentation
from ibvit.data.plans.schedule import Training, Validation
from ibvit.data.sets.built_in import BUILT_IN, BuiltIn, is_built_in
from ibvit.data.types import Loader
from ibvit.run_folder import BAD_IMAGES

_MEMORY_EVAL_BATCH = 512  # images per validation step
_FOLDER_EVAL_BATCH = 256


@dataclass(frozen=True)
class DataSet:
    """One rank's loaders of a data set."""

    train: Loader
    val: Loader
    classes: tuple[str, ...]
    sizes: tuple[int, int]  # images in train and val
    identity: Callable[[Sequence[str]], Identity]  # of splits, "train" and "val"; looks at every file of a folder's
    bad: BadFiles | None = None  # the broken files of an image folder that were met so far

    def close(self) -> None:
        self.train.close()
        self.val.close()


@dataclass(frozen=True)
class DataSpec:
    """What the loaders of a data set depend on.

    Attributes:
        data: a built-in data set, or a folder.
        image_size: pixels per side.
        batch_size: images per optimiser step, over all processes; a multiple of processes × accumulate.
        seed: of order and augmentation.
        loader, cache, workers: as in :class:`ibvit.config.TrainConfig`.
        bad_images: file in which the ranks of a run note broken files; None: the log alone.
    """

    data: str
    image_size: int
    batch_size: int = 1
    accumulate: int = 1
    seed: int = 0
    loader: LoaderName = "torchvision"
    cache: CacheName = "off"
    workers: int | None = 0
    bad_images: Path | None = None

    @classmethod
    def of(cls, run: RunConfig) -> Self:
        return cls(
            run.data, run.image_size, run.batch_size, run.accumulate, run.seed, run.loader, run.cache, run.workers,
            run.out / BAD_IMAGES,
        )  # fmt: skip


def build_data(spec: DataSpec, *, rank: int, world_size: int, device: torch.device) -> DataSet:
    """One rank's loaders.

    Raises:
        ValueError: the batch cannot be shared by the ranks, the image size does not fit, or a folder is not usable.
    """
    if spec.batch_size % (world_size * spec.accumulate):
        raise ValueError(
            f"batch_size: expected a multiple of processes × accumulate = {world_size} × {spec.accumulate}, "
            f"got {spec.batch_size}"
        )
    if is_built_in(spec.data):
        return _in_memory(spec, rank, world_size)
    return _folder(spec, rank, world_size, device)


def _in_memory(spec: DataSpec, rank: int, world_size: int) -> DataSet:
    data = BUILT_IN[spec.data]
    val = data.validation_images()

    def training_images(epoch: int) -> tuple[Tensor, Tensor]:
        return data.training_images(spec.seed, epoch)

    side = val[0].shape[-1]
    if spec.image_size != side:
        raise ValueError(f"image_size: expected {side}, the size of the {spec.data} images, got {spec.image_size}")
    augmentation = Augmentation(side, num_ops=0)
    training = Training(augmentation, data.TRAIN_SIZE, spec.seed, spec.batch_size, rank, world_size)
    validation = Validation(augmentation, len(val[1]), _MEMORY_EVAL_BATCH, rank, world_size)
    return DataSet(
        MemoryLoader(training, training_images),
        MemoryLoader(validation, lambda epoch: val),
        data.CLASSES,
        (data.TRAIN_SIZE, len(val[1])),
        lambda splits: _identity(spec.data, data, len(val[1]), splits),
    )


def _identity(name: str, data: BuiltIn, val_images: int, splits: Sequence[str]) -> Identity:
    """A built-in data set is its definition."""
    images = {"train": data.TRAIN_SIZE, "val": val_images}
    digests = {split: sha256(f"{name} {data.VERSION} {split}".encode()).hexdigest() for split in splits}
    return Identity(data.CLASSES, {split: images[split] for split in splits}, digests)


def _folder(spec: DataSpec, rank: int, world_size: int, device: torch.device) -> DataSet:
    from ibvit.data.sets.folder import folder_loaders

    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    workers = spec.workers if spec.workers is not None else max(1, len(os.sched_getaffinity(0)) // local_ranks)
    loaders = folder_loaders(
        Path(spec.data),
        image_size=spec.image_size,
        global_batch=spec.batch_size,
        eval_batch=_FOLDER_EVAL_BATCH,
        seed=spec.seed,
        rank=rank,
        world_size=world_size,
        workers=workers,
        loader=spec.loader,
        cache=spec.cache,
        device=device,
        record=spec.bad_images,
    )
    return DataSet(loaders.train, loaders.val, loaders.classes, loaders.sizes, loaders.identity, loaders.bad)
