"""scikit-learn's handwritten digits: 1,797 real 8×8 images that come with the dependencies.

They are the test part of the UCI "Optical Recognition of Handwritten Digits" set (Alpaydin & Kaynak 1998). The split
is fixed and stratified: 1,437 to train, 360 to validate.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ibvit.errors import MissingExtraError

CLASSES = tuple(str(digit) for digit in range(10))
TRAIN_SIZE, VAL_SIZE = 1437, 360
VERSION = 1
_MEAN, _STD = 4.88, 6.02  # of the grey values 0 … 16


@cache
def load() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(train images, labels), (validation images, labels): float32 ``[M, 3, 8, 8]`` normalised, int64 ``[M]``.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise MissingExtraError("data: digits", "scikit-learn", "digits") from error

    digits = load_digits()
    train, val = train_test_split(range(len(digits.target)), test_size=VAL_SIZE, stratify=digits.target, random_state=0)

    def part(index: list[int]) -> tuple[Tensor, Tensor]:
        grey = (torch.from_numpy(digits.images[index]).float() - _MEAN) / _STD
        return grey[:, None].expand(-1, 3, -1, -1).contiguous(), torch.from_numpy(digits.target[index]).long()

    return part(train), part(val)


def training_images(seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    """The training set, the same in every epoch."""
    return load()[0]


def validation_images() -> tuple[Tensor, Tensor]:
    """The fixed validation set."""
    return load()[1]
