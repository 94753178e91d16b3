"""The data sets that come with the dependencies: digits and repetition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ibvit.config import TrainConfig
from ibvit.data.build import DataSpec, build_data
from ibvit.data.sets import digits, repetition
from ibvit.data.sets.built_in import BUILT_IN
from ibvit.data.sets.recipes import RECIPES, apply_recipe

CPU = torch.device("cpu")


def load(rank=0, world_size=1, **options):
    config, _ = apply_recipe(TrainConfig(**options))
    return build_data(DataSpec.of(config), rank=rank, world_size=world_size, device=CPU)


def test_digits_split_is_fixed_and_disjoint():
    (train, train_labels), (val, val_labels) = digits.load()
    assert train.shape == (1437, 3, 8, 8)
    assert val.shape == (360, 3, 8, 8)
    assert train_labels.bincount().min() > 130
    assert val_labels.bincount().tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]
    both = torch.cat([train, val])
    assert abs(both.mean()) < 0.01
    assert abs(both.std() - 1) < 0.01


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


def codes(images: torch.Tensor) -> np.ndarray:
    """Which texture each patch is, [images, patches]."""
    grid, patch = repetition.GRID, repetition.PATCH
    tiles = images.view(-1, 3, grid, patch, grid, patch).permute(0, 2, 4, 1, 3, 5).reshape(len(images), grid**2, -1)
    match = tiles @ repetition.textures().flatten(1).T  # 48 where all pixels agree
    assert torch.all((match == 48).sum(-1) == 1)
    return match.argmax(-1).numpy()


def test_repetition_is_the_class():
    images, labels = repetition.images(200, seed=1, copies=(4, 24))
    for row, label in zip(codes(images), labels, strict=True):
        counts = np.sort(np.unique(row, return_counts=True)[1])[::-1]
        copies = counts[0] if label else 1
        assert counts.tolist() == [copies] + [1] * (36 - copies)
        assert 4 <= copies <= 24 or not label


def test_no_patch_tells_the_class():
    """Each place shows each texture equally often in both classes: the largest of 36 × 256 counts is plausible."""
    images, labels = repetition.images(5000, seed=2, copies=(4, 24))
    grid = codes(images)
    for label in (0, 1):
        rows = grid[labels.numpy() == label]
        counts = np.stack([np.bincount(rows[:, place], minlength=256) for place in range(36)])
        deviation = (counts - len(rows) / 256) / np.sqrt(len(rows) / 256)
        assert np.abs(deviation).max() < 5.5
        assert deviation.var() == pytest.approx(1, abs=0.08)


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


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_data_set_has_a_recipe_and_is_named(name):
    data = BUILT_IN[name]
    train, val = data.training_images(0, 0), data.validation_images()
    assert len(train[0]) == len(train[1]) == data.TRAIN_SIZE
    for images, labels in (train, val):
        assert images.shape[1:] == (3, RECIPES[name].image_size, RECIPES[name].image_size)
        assert set(labels.tolist()) == set(range(len(data.CLASSES)))
    source = (Path(__file__).parents[3] / "ibvit" / "config.py").read_text()  # the text of --help
    assert f"{name}, " in source
