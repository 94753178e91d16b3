"""The data sets that come with the dependencies: digits and repetition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ibvit.config import TrainConfig
from ibvit.data import digits, repetition
from ibvit.data.build import build_data
from ibvit.data.recipes import apply_recipe

CPU = torch.device("cpu")


def load(rank=0, world_size=1, **options):
    config, _ = apply_recipe(TrainConfig(**options))
    return build_data(config, rank=rank, world_size=world_size, device=CPU)


def test_digits_split_is_fixed_and_disjoint():
    (train, train_labels), (val, val_labels) = digits.load()
    assert train.shape == (1437, 3, 8, 8)
    assert val.shape == (360, 3, 8, 8)
    assert train_labels.bincount().min() > 130
    assert val_labels.bincount().tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]
    both = torch.cat([train, val])
    assert abs(both.mean()) < 0.01
    assert abs(both.std() - 1) < 0.01


def test_shift_moves_whole_images_and_is_a_function_of_the_epoch():
    images = torch.arange(2 * 3 * 8 * 8.0).view(2, 3, 8, 8)
    shifted = digits.shifted(images, seed=0, epoch=1)
    assert torch.equal(shifted, digits.shifted(images, seed=0, epoch=1))
    assert not torch.equal(
        digits.shifted(images.expand(2, 3, 8, 8).repeat(50, 1, 1, 1), 0, 1),
        digits.shifted(images.repeat(50, 1, 1, 1), 0, 2),
    )
    inner = shifted[0, 0, 1:-1, 1:-1]
    places = [
        (dy, dx) for dy in range(3) for dx in range(3) if torch.equal(inner, images[0, 0, dy : dy + 6, dx : dx + 6])
    ]
    assert len(places) == 1


@pytest.mark.parametrize("name", ["digits", "repetition"])
def test_ranks_share_each_global_batch(name):
    whole = load(data=name, batch_size=32)
    step = next(whole.train.epoch(3))
    parts = [next(load(rank, 4, data=name, batch_size=32).train.epoch(3)) for rank in range(4)]
    assert torch.equal(step.index, torch.cat([part.index for part in parts]))
    assert torch.equal(step.images, torch.cat([part.images for part in parts]))
    assert torch.equal(step.labels, torch.cat([part.labels for part in parts]))


def test_an_epoch_resumes_anywhere_and_epochs_differ():
    train = load(data="digits", batch_size=64).train
    steps = list(train.epoch(1))
    assert len(steps) == len(train) == 22
    for late, resumed in zip(steps[5:], train.epoch(1, start=5), strict=True):
        assert torch.equal(late.index, resumed.index)
        assert torch.equal(late.images, resumed.images)
    assert not torch.equal(steps[0].index, next(train.epoch(2)).index)
    seen = torch.cat([step.index for step in steps])
    assert seen.unique().numel() == seen.numel() == 22 * 64


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_validation_sees_every_image_once(world_size):
    seen = torch.cat(
        [batch.index for rank in range(world_size) for batch in load(rank, world_size, batch_size=6).val.epoch(0)]
    )
    assert seen.tolist() == list(range(360))


def textures(images: torch.Tensor) -> np.ndarray:
    """[images, patches] codes of the 4×4 textures."""
    grid, patch = repetition.GRID, repetition.PATCH
    bits = (images[:, 0] > 0).view(-1, grid, patch, grid, patch).transpose(2, 3).reshape(len(images), grid**2, -1)
    return (bits.long() << torch.arange(patch**2)).sum(-1).numpy()


def test_repetition_is_the_class():
    images, labels = repetition.images(400, seed=1)
    distinct = np.array([len(np.unique(row)) for row in textures(images)])
    assert np.all(distinct[labels.numpy() == 0] == 36)
    assert np.all(distinct[labels.numpy() == 1] == 36 - 3)


def test_no_patch_tells_the_class():
    """The share of white pixels and of each bit is the same in both classes and at each place."""
    images, labels = repetition.images(4000, seed=2)
    for label in (0, 1):
        share = (images[labels == label, 0] > 0).float()
        assert abs(share.mean() - 0.5) < 0.005
        assert (share.mean(0) - 0.5).abs().max() < 0.06
    place_of_copy = np.array([np.bincount(np.unique(row, return_inverse=True)[1]).max() for row in textures(images)])
    assert set(place_of_copy[labels.numpy() == 1]) == {4}


def test_repetition_is_new_each_epoch_and_apart_from_validation():
    first, second = repetition.training_images(0, 0)[0], repetition.training_images(0, 1)[0]
    assert not torch.equal(first, second)
    assert not torch.equal(first[: repetition.VAL_SIZE], repetition.validation_images()[0])


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="data: expected digits, repetition, or an existing folder, got 'nowhere'"):
        load(data="nowhere")
    with pytest.raises(ValueError, match="recipe: expected one of digits, repetition, tiny100, imagenet100, got 'x'"):
        load(recipe="x")
    with pytest.raises(ValueError, match=r"batch_size: expected a multiple of processes × accumulate = 3 × 2, got 64"):
        load(0, 3, batch_size=64, accumulate=2)
    with pytest.raises(ValueError, match="image_size: expected 8, the size of the digits images, got 9"):
        load(image_size=9)
