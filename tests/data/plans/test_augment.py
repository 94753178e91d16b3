"""The drawn augmentation has torchvision's distribution and depends on nothing but seed, epoch and sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms.v2 import RandAugment, RandomResizedCrop

from ibvit.data.plans.augment import OPERATIONS, Augmentation, magnitudes, normalised, shuffled, train_plan, val_plan

AUGMENTATION = Augmentation(224)
DRAWS = 4000


def draw(count: int = DRAWS, height: int = 375, width: int = 500, seed: int = 0, epoch: int = 0):
    return train_plan(AUGMENTATION, seed, epoch, np.arange(count), np.tile([[height, width]], (count, 1)))


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 100)], ids=["landscape", "narrow"])
def test_windows_have_torchvisions_distribution(height, width):
    window = draw(height=height, width=width).window
    torch.manual_seed(0)
    crop = RandomResizedCrop(224)
    image = torch.empty(3, height, width)
    expected = [crop.make_params([image]) for _ in range(DRAWS)]
    for column, name in enumerate(("top", "left", "height", "width")):
        ours, theirs = window[:, column], [params[name] for params in expected]
        assert stats.ks_2samp(ours, theirs).pvalue > 1e-3, name
    corners = window[:, :2] + window[:, 2:]
    assert (window[:, :2] >= 0).all()
    assert (window[:, 2:] > 0).all()
    assert (corners <= [height, width]).all()


def test_impossible_windows_fall_back_to_the_centre():
    # no aspect in [3/4, 4/3] with 8 % of the area fits 1000 x 10: torchvision's fallback is the central 13 x 10
    window = draw(count=50, height=1000, width=10).window
    assert (window == [493, 0, 13, 10]).all()


def test_flips_and_operations_have_torchvisions_frequencies():
    plan = draw()
    assert stats.binomtest(int(plan.flip.sum()), DRAWS).pvalue > 1e-3
    counts = np.bincount(plan.ops.ravel(), minlength=len(OPERATIONS))
    assert stats.chisquare(counts).pvalue > 1e-3
    pairs = np.bincount(plan.ops[:, 0] * len(OPERATIONS) + plan.ops[:, 1], minlength=len(OPERATIONS) ** 2)
    assert stats.chisquare(pairs).pvalue > 1e-3  # the two operations are independent
    signed = (plan.ops >= OPERATIONS.index("ShearX")) & (plan.ops <= OPERATIONS.index("Sharpness"))
    negative = plan.magnitude < 0
    assert not negative[~signed].any()
    assert stats.binomtest(int(negative[signed].sum()), int(signed.sum())).pvalue > 1e-3


@pytest.mark.parametrize("side", [224, 64])
@pytest.mark.parametrize("magnitude", [0, 9, 30])
def test_magnitudes_are_torchvisions(side, magnitude):
    space = RandAugment._AUGMENTATION_SPACE
    assert tuple(space) == OPERATIONS
    for name, ours in zip(OPERATIONS, magnitudes(Augmentation(side, magnitude=magnitude)), strict=True):
        values = space[name][0](31, side, side)
        theirs = 0.0 if values is None else float(values[magnitude])
        if name == "Solarize":
            theirs *= 255
        if name.startswith("Translate"):
            theirs = int(theirs)
        assert ours == pytest.approx(theirs, abs=1e-4), name


def test_a_sample_does_not_depend_on_its_batch():
    whole = draw(count=40)
    some = np.array([39, 3, 17])
    part = train_plan(AUGMENTATION, 0, 0, some, np.tile([[375, 500]], (3, 1)))
    for ours, theirs in zip(part, whole, strict=True):
        np.testing.assert_array_equal(ours, theirs[some])


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"epoch": 1}, {"seed": 1 << 40}], ids=["seed", "epoch", "high seed bits"]
)
def test_seed_and_epoch_change_every_draw(change):
    first, second = draw(count=200), draw(count=200, **change)
    assert (first.window != second.window).any(axis=1).mean() > 0.95
    assert 0.3 < (first.flip != second.flip).mean() < 0.7
    assert (first.ops == second.ops).mean() < 0.2


def test_orders():
    first = shuffled(0, 0, 1000)
    np.testing.assert_array_equal(np.sort(first), np.arange(1000))
    np.testing.assert_array_equal(first, shuffled(0, 0, 1000))
    for other in (shuffled(0, 1, 1000), shuffled(1, 0, 1000)):
        assert abs(stats.spearmanr(first, other).statistic) < 0.15
    assert abs(stats.spearmanr(first, np.arange(1000)).statistic) < 0.15


def test_validation_plan_of_a_square_and_a_tall_image():
    plan = val_plan(Augmentation(64), np.array([[73, 73], [300, 100], [1, 1]]))
    assert plan.size.tolist() == [[73, 73], [219, 73], [73, 73]]
    assert plan.offset.tolist() == [[4, 4], [78, 4], [4, 4]]


def test_normalised_is_torchvisions():
    from torchvision.transforms.v2 import functional as F

    images = torch.randint(0, 256, (3, 5, 7, 3), dtype=torch.uint8)
    expected = F.normalize(
        F.to_dtype(images.permute(0, 3, 1, 2), scale=True), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    )
    torch.testing.assert_close(normalised(images), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("settings", [{"image_size": 0}, {"num_ops": 3}, {"magnitude": 31}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Augmentation(**{"image_size": 224, **settings})
