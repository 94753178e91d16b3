"""From ``--data`` to loaders."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ibvit.config import TrainConfig
from ibvit.data.augment import Augmentation
from ibvit.data.bad_files import BadFiles
from ibvit.data.built_in import BUILT_IN
from ibvit.data.memory import MemoryLoader
from ibvit.data.schedule import Training, Validation
from ibvit.data.types import Loader
from ibvit.run_folder import BAD_IMAGES

_MEMORY_EVAL_BATCH = 512  # images a validation step
_FOLDER_EVAL_BATCH = 256


@dataclass(frozen=True)
class DataSet:
    """One rank's loaders of a data set."""

    train: Loader
    val: Loader
    classes: tuple[str, ...]
    sizes: tuple[int, int]  # images in train and val
    bad: BadFiles | None = None  # broken files met so far, of an image folder

    def close(self) -> None:
        self.train.close()
        self.val.close()


def build_data(config: TrainConfig, *, rank: int, world_size: int, device: torch.device) -> DataSet:
    """Loaders for a resolved configuration (see :func:`ibvit.data.recipes.apply_recipe`).

    Raises:
        ValueError: the batch cannot be shared by the ranks, the image size does not fit, or a folder is not usable.
    """
    assert config.batch_size is not None
    assert config.image_size is not None
    if config.batch_size % (world_size * config.accumulate):
        raise ValueError(
            f"batch_size: expected a multiple of processes × accumulate = {world_size} × {config.accumulate}, "
            f"got {config.batch_size}"
        )
    if Path(config.data).is_dir():
        return _folder(config, rank, world_size, device)
    return _in_memory(config, rank, world_size)


def _in_memory(config: TrainConfig, rank: int, world_size: int) -> DataSet:
    assert config.batch_size is not None
    data = BUILT_IN[config.data]
    val = data.validation_images()

    def train(epoch: int) -> tuple[Tensor, Tensor]:
        return data.training_images(config.seed, epoch)

    side = val[0].shape[-1]
    if config.image_size != side:
        raise ValueError(f"image_size: expected {side}, the size of the {config.data} images, got {config.image_size}")
    augmentation = Augmentation(side, num_ops=0)
    return DataSet(
        MemoryLoader(Training(augmentation, data.TRAIN_SIZE, config.seed, config.batch_size, rank, world_size), train),
        MemoryLoader(Validation(augmentation, len(val[1]), _MEMORY_EVAL_BATCH, rank, world_size), lambda epoch: val),
        data.CLASSES,
        (data.TRAIN_SIZE, len(val[1])),
    )


def _folder(config: TrainConfig, rank: int, world_size: int, device: torch.device) -> DataSet:
    from ibvit.data.folder import folder_loaders

    assert config.batch_size is not None
    assert config.image_size is not None
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    workers = config.workers if config.workers is not None else max(1, len(os.sched_getaffinity(0)) // local_ranks)
    made = folder_loaders(
        Path(config.data),
        image_size=config.image_size,
        global_batch=config.batch_size,
        eval_batch=_FOLDER_EVAL_BATCH,
        seed=config.seed,
        rank=rank,
        world_size=world_size,
        workers=workers,
        loader=config.loader,
        cache=config.cache,
        device=device,
        record=config.run_dir / BAD_IMAGES,
    )
    return DataSet(made.train, made.val, made.classes, made.sizes, made.bad)
