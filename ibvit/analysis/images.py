"""Validation images by their row in the records, read again from the data set."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ibvit.analysis.records import Records
from ibvit.data.build import DataSet, DataSpec, build_data
from ibvit.data.plans.augment import MEAN, STD
from ibvit.data.sets.built_in import BUILT_IN
from ibvit.data.types import Loader


def open_data(spec: DataSpec) -> DataSet:
    """The data set, for this process alone.

    Raises:
        ValueError: the data set's folder is not where it was.
    """
    if spec.data not in BUILT_IN and not Path(spec.data).is_dir():
        raise ValueError(f"data: the run was trained on {spec.data}, which is not there now")
    return build_data(spec, rank=0, world_size=1, device=torch.device("cpu"))


@lru_cache(maxsize=2)
def _validation(spec: DataSpec) -> Loader:
    return open_data(spec).val


def validation_loader(records: Records) -> Loader:
    """Validation images in order; runs of one data set share the loader."""
    return _validation(DataSpec(records.config["data"], records.config["image_size"]))


def normalised_images(records: Records, rows: np.ndarray) -> Tensor:
    """Images as the model takes them, at `rows` of the records: float32 [rows, 3, height, width]."""
    loader = validation_loader(records)
    size = len(next(iter(loader.epoch(0))).images)
    steps = np.asarray(rows) // size
    images: dict[int, Tensor] = {}
    for step in np.unique(steps):
        batch = next(iter(loader.epoch(0, start=int(step))))
        for row in np.asarray(rows)[steps == step]:
            images[int(row)] = batch.images[int(row) - step * size]
    return torch.stack([images[int(row)] for row in rows])


def to_uint8(records: Records, images: Tensor) -> np.ndarray:
    """Images to look at, uint8 [..., height, width, 3], from normalised ones [..., 3, height, width].

    The grey values of the built-in data sets are spread from black to white.
    """
    if records.config["data"] not in BUILT_IN and Path(records.config["data"]).is_dir():
        pixels = images * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    else:
        low, high = images.min(), images.max()
        pixels = (images - low) / (high - low).clamp_min(1e-6)
    return (pixels.clamp(0, 1) * 255).round().byte().movedim(-3, -1).numpy()


def read_images(records: Records, rows: np.ndarray) -> np.ndarray:
    """Images to look at, at `rows` of the records: uint8 [rows, height, width, 3]."""
    return to_uint8(records, normalised_images(records, rows))
