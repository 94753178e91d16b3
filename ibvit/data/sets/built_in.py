"""The data sets that come with the software: one module each, one row each."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from torch import Tensor

from ibvit.data.sets import digits, repetition


class BuiltIn(Protocol):
    """A module of a built-in data set. Images are float32 ``[M, 3, side, side]``, labels int64 ``[M]``."""

    CLASSES: tuple[str, ...]
    TRAIN_SIZE: int
    VERSION: int  # to be raised with any change of the images or labels: runs identify their data set by it

    def training_images(self, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        """The TRAIN_SIZE images of an epoch and their labels, normalised."""

    def validation_images(self) -> tuple[Tensor, Tensor]:
        """The same for validation, the same for every run."""


BUILT_IN: dict[str, BuiltIn] = {"digits": digits, "repetition": repetition}


def is_built_in(data: str) -> bool:
    """Whether ``--data`` names a built-in data set; a folder of the same name is ``./digits``.

    Raises:
        ValueError: it names neither a built-in data set nor a folder.

    Example:
        >>> is_built_in("digits"), is_built_in(".")
        (True, False)
    """
    if data not in BUILT_IN and not Path(data).is_dir():
        raise ValueError(f"data: expected {', '.join(BUILT_IN)}, or an existing folder, got {data!r}")
    return data in BUILT_IN
