"""scikit-learn's handwritten digits: 1,797 real 8×8 images that come with the dependencies.

They are the test part of the UCI "Optical Recognition of Handwritten Digits" set (Alpaydin & Kaynak 1998). The split
is fixed and stratified: 1,437 to train, 360 to validate.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CLASSES = tuple(str(digit) for digit in range(10))
_MEAN, _STD = 4.88, 6.02  # of the grey values 0 … 16
_REACH = 1  # pixels that a training image is moved by, at most


def load() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(train images, labels), (validation images, labels): float32 ``[M, 3, 8, 8]`` normalised, int64 ``[M]``."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    train, val = train_test_split(range(len(digits.target)), test_size=360, stratify=digits.target, random_state=0)

    def part(index: list[int]) -> tuple[Tensor, Tensor]:
        grey = (torch.from_numpy(digits.images[index]).float() - _MEAN) / _STD
        return grey[:, None].expand(-1, 3, -1, -1).contiguous(), torch.from_numpy(digits.target[index]).long()

    return part(train), part(val)


def shifted(images: Tensor, seed: int, epoch: int) -> Tensor:
    """The training augmentation: each image moved by up to one pixel in each direction, drawn anew each epoch.

    Args:
        images: ``[M, channels, height, width]``; what moves in repeats the edge.
    """
    count, channels, height, width = images.shape
    padded = F.pad(images, [_REACH] * 4, mode="replicate")
    # Every rank draws for the whole set, so a sample's shift depends on (seed, epoch, index) alone.
    draw = torch.Generator().manual_seed((seed << 20) + epoch)
    top, left = torch.randint(0, 2 * _REACH + 1, (2, count, 1), generator=draw)
    rows = (top + torch.arange(height)).view(count, 1, height, 1)
    columns = (left + torch.arange(width)).view(count, 1, 1, width)
    return padded[torch.arange(count).view(-1, 1, 1, 1), torch.arange(channels).view(1, -1, 1, 1), rows, columns]
