"""Synthetic images whose class no patch can tell: does any texture occur more than once?

An image is a grid of 36 patches, each one of 256 fixed random textures. In class "distinct" all 36 differ; in class
"repeated" one of them stands at several random positions. Training images have 4 to 24 copies (many copies make the
task easy to discover); validation images have 6. Every single patch has the same distribution in both classes, so a
model without attention can only profit from the larger spread of a repeated patch's vote, which is little at 6 copies;
a model with attention has to move information between patches. This is the smallest task that needs the repetition
tag of the paper's first active heads (§4.2, Figs. 4-5).
"""

from __future__ import annotations

import torch
from torch import Tensor

CLASSES: tuple[str, ...] = ("distinct", "repeated")
GRID, PATCH = 6, 4  # patches and pixels of a side
IMAGE_SIZE = GRID * PATCH
TRAIN_SIZE, VAL_SIZE = 6400, 2000
VERSION = 1
TEXTURES = 256
TRAIN_COPIES, VAL_COPIES = (4, 24), (6, 6)  # fewest and most, drawn for each image
_TEXTURE_SEED, _VALIDATION_SEED = 1, 1 << 40


def textures() -> Tensor:
    """The alphabet: ``[256, 3, 4, 4]`` of ±1, the same for every run."""
    draw = torch.Generator().manual_seed(_TEXTURE_SEED)
    return torch.randint(0, 2, (TEXTURES, 3, PATCH, PATCH), generator=draw) * 2.0 - 1


def images(count: int, seed: int, copies: tuple[int, int] = VAL_COPIES) -> tuple[Tensor, Tensor]:
    """``count`` images float32 ``[count, 3, 24, 24]`` of ±1 and their labels ``[count]``, every other one repeated.

    Args:
        copies: fewest and most positions of the repeated texture.

    Example:
        >>> pixels, labels = images(4, seed=0)
        >>> pixels.shape, labels.tolist()
        (torch.Size([4, 3, 24, 24]), [0, 1, 0, 1])
    """
    draw = torch.Generator().manual_seed(seed)
    patches = GRID * GRID
    codes = torch.rand(count, TEXTURES, generator=draw).argsort(dim=1)[:, :patches]  # distinct
    order = torch.rand(count, patches, generator=draw).argsort(dim=1)
    number = torch.randint(copies[0], copies[1] + 1, (count, 1), generator=draw)
    labels = torch.arange(count) % 2
    repeated = (order < number) & (labels[:, None] == 1)
    codes = torch.where(repeated, codes.gather(1, order.argmin(dim=1, keepdim=True)), codes)
    tiles = textures()[codes].view(count, GRID, GRID, 3, PATCH, PATCH)
    return tiles.permute(0, 3, 1, 4, 2, 5).reshape(count, 3, IMAGE_SIZE, IMAGE_SIZE), labels


def training_images(seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    """A new training set each epoch: there is nothing to memorise but the alphabet."""
    return images(TRAIN_SIZE, (seed << 20) + epoch, TRAIN_COPIES)


def validation_images() -> tuple[Tensor, Tensor]:
    """The fixed validation set."""
    return images(VAL_SIZE, _VALIDATION_SEED)
