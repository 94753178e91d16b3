"""Synthetic images whose class no patch can tell: does any texture occur more than once?

An image is a grid of patches, each a random black-and-white texture. In class "distinct" all textures differ; in class
"repeated" one of them stands at four random places. Every single patch has the same distribution in both classes, so a
model without attention can only profit from the slightly larger spread of a repeated patch's vote and stays near
chance; a model with attention has to move information between patches. This is the smallest task that asks for the
repetition tag of the paper's first active heads (§4.2, Figs. 4-5).
"""

from __future__ import annotations

import torch
from torch import Tensor

CLASSES = ("distinct", "repeated")
GRID, PATCH = 6, 4  # patches and pixels of a side
IMAGE_SIZE = GRID * PATCH
TRAIN_SIZE, VAL_SIZE = 8192, 2048
_COPIES = 4
_VALIDATION_SEED = 1 << 40


def images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """``count`` images float32 ``[count, 3, 24, 24]`` of ±1 and their labels ``[count]``, every other one repeated.

    Example:
        >>> pixels, labels = images(4, seed=0)
        >>> pixels.shape, labels.tolist()
        (torch.Size([4, 3, 24, 24]), [0, 1, 0, 1])
    """
    draw = torch.Generator().manual_seed(seed)
    patches = GRID * GRID
    # 2¹⁶ textures, none twice: a random permutation gives each patch of an image another upper byte.
    codes = torch.rand(count, 1 << 8, generator=draw).argsort(dim=1)[:, :patches] << 8
    codes = codes + torch.randint(0, 1 << 8, (count, patches), generator=draw)
    places = torch.rand(count, patches, generator=draw).argsort(dim=1)[:, :_COPIES]
    labels = torch.arange(count) % 2
    source = codes.gather(1, places[:, :1]).expand(-1, _COPIES)
    codes = torch.where(labels[:, None] == 1, codes.scatter(1, places, source), codes)

    bits = (codes[:, :, None] >> torch.arange(PATCH * PATCH)) & 1
    pixels = bits.view(count, GRID, GRID, PATCH, PATCH).transpose(2, 3).reshape(count, 1, IMAGE_SIZE, IMAGE_SIZE)
    return (2.0 * pixels - 1).expand(-1, 3, -1, -1).contiguous(), labels


def training_images(seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    """A new training set each epoch: there is nothing to memorise."""
    return images(TRAIN_SIZE, (seed << 20) + epoch)


def validation_images() -> tuple[Tensor, Tensor]:
    """The fixed validation set."""
    return images(VAL_SIZE, _VALIDATION_SEED)
