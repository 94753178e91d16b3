"""The data sets that come with the software: one module each, one row each."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ibvit.data.sets import digits, repetition


class BuiltIn(Protocol):
    """A module of a built-in data set. Images are float32 ``[M, 3, side, side]``, labels int64 ``[M]``."""

    CLASSES: tuple[str, ...]
    TRAIN_SIZE: int

    def training_images(self, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        """The TRAIN_SIZE images of an epoch and their labels, normalised."""

    def validation_images(self) -> tuple[Tensor, Tensor]:
        """The same for validation, the same for every run."""


BUILT_IN: dict[str, BuiltIn] = {"digits": digits, "repetition": repetition}
