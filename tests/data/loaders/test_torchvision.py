"""torchvision's executor does what torchvision's own transforms do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import CenterCrop, Compose, InterpolationMode, RandAugment, Resize
from torchvision.transforms.v2 import functional as F

from ibvit.data.files.tree import scan
from ibvit.data.loaders.torchvision import TorchvisionLoader, cut, finish, operate
from ibvit.data.plans.augment import OPERATIONS, Augmentation, magnitudes, train_plan, val_plan
from ibvit.data.plans.schedule import Training, Validation

AUGMENTATION = Augmentation(48)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_randaugments(pictures, name, sign):
    magnitude = sign * float(magnitudes(AUGMENTATION)[OPERATIONS.index(name)])
    if name in ("Posterize", "Solarize"):
        magnitude = abs(magnitude)
    given = magnitude / 255 if name == "Solarize" else magnitude  # torchvision's is a share of the white level
    for picture in pictures[:3]:
        expected = RandAugment()._apply_image_or_video_transform(
            picture, name, given, interpolation=InterpolationMode.NEAREST, fill={Image.Image: None}
        )
        np.testing.assert_array_equal(np.asarray(operate(picture, name, magnitude)), np.asarray(expected))


def test_validation_is_resize_and_centre_crop(pictures):
    arrays = [np.array(picture.convert("RGB")) for picture in pictures]
    plan = val_plan(AUGMENTATION, np.array([array.shape[:2] for array in arrays]))
    transform = Compose(
        [Resize(AUGMENTATION.resize_size, InterpolationMode.BICUBIC), CenterCrop(AUGMENTATION.image_size)]
    )
    for row, array in enumerate(arrays):
        ours = finish(cut(array, plan.window[row]), plan, row, AUGMENTATION.image_size)
        expected = np.asarray(transform(Image.fromarray(array)))
        assert np.abs(ours.astype(int) - expected).mean() < 0.5


def test_training_is_resized_crop_flip_and_operations(pictures):
    arrays = [np.array(picture.convert("RGB")) for picture in pictures] * 4
    sizes = np.array([array.shape[:2] for array in arrays])
    plan = train_plan(AUGMENTATION, 0, 0, np.arange(len(arrays)), sizes)._replace(
        ops=np.zeros((len(arrays), 0), dtype=int)
    )
    plan = plan._replace(magnitude=np.zeros((len(arrays), 0)))
    for row, array in enumerate(arrays):
        expected = F.resized_crop(
            Image.fromarray(array), *plan.window[row].tolist(), [48, 48], InterpolationMode.BICUBIC
        )
        if plan.flip[row]:
            expected = F.horizontal_flip(expected)
        ours = finish(cut(array, plan.window[row]), plan, row, 48)
        assert np.abs(ours.astype(int) - np.asarray(expected)).mean() < 0.5


@pytest.fixture
def loaders(make_tree):
    folder = scan(make_tree() / "train")
    opened = []

    def make(workers: int = 0, rank: int = 0, world_size: int = 1, train: bool = True) -> TorchvisionLoader:
        schedule = (
            Training(AUGMENTATION, len(folder), 0, 6, rank, world_size)
            if train
            else Validation(AUGMENTATION, len(folder), 6, rank, world_size)
        )
        opened.append(TorchvisionLoader(folder, schedule, workers, torch.device("cpu")))
        return opened[-1]

    yield make
    for loader in opened:
        loader.close()


def test_workers_ranks_and_resuming_change_nothing(loaders):
    whole = list(loaders().epoch(2))
    assert [len(batch.labels) for batch in whole] == [6, 6, 6]
    in_processes = loaders(workers=2)
    for start in (0, 2):
        for ours, theirs in zip(in_processes.epoch(2, start), whole[start:], strict=True):
            for left, right in zip(ours, theirs, strict=True):
                assert torch.equal(left, right)
    ranks = [list(loaders(rank=rank, world_size=2).epoch(2)) for rank in range(2)]
    for step, batch in enumerate(whole):
        assert torch.equal(batch.images, torch.cat([rank[step].images for rank in ranks]))


def test_epochs_differ_and_labels_belong_to_images(loaders):
    loader = loaders()
    first, second = list(loader.epoch(0)), list(loader.epoch(1))
    assert not torch.equal(torch.cat([b.index for b in first]), torch.cat([b.index for b in second]))
    for batch in first:
        assert torch.equal(batch.labels, (batch.index >= 10).long())
        assert batch.images.shape == (6, 3, 48, 48)
        assert batch.images.dtype == torch.float32


def test_abandoned_epoch_leaves_no_trace(loaders):
    loader = loaders(workers=2)
    next(iter(loader.epoch(0)))
    ours, theirs = list(loader.epoch(1)), list(loaders().epoch(1))
    assert all(torch.equal(left.images, right.images) for left, right in zip(ours, theirs, strict=True))


def test_validation_shows_every_image_once(loaders):
    shown = torch.cat([batch.index for batch in loaders(train=False).epoch(0)])
    assert torch.equal(shown, torch.arange(20))


def test_closed_loader_says_so(loaders):
    loader = loaders()
    loader.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(iter(loader.epoch(0)))
