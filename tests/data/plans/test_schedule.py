"""Every image once, on any number of ranks."""

from __future__ import annotations

import numpy as np
import pytest

from ibvit.data.plans.augment import Augmentation
from ibvit.data.plans.schedule import Training, Validation

AUGMENTATION = Augmentation(32)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_training_rows_of_an_epoch_are_disjoint_and_the_same_on_any_world_size(world_size):
    def epoch(size: int) -> list[list[int]]:
        ranks = [
            Training(AUGMENTATION, 100, seed=3, global_batch=12, rank=rank, world_size=size) for rank in range(size)
        ]
        assert {len(rank) for rank in ranks} == {8}
        return [np.concatenate([rank.rows(5, step) for rank in ranks]).tolist() for step in range(8)]

    steps = epoch(world_size)
    assert steps == epoch(1)
    seen = np.concatenate(steps)
    assert len(np.unique(seen)) == len(seen) == 96  # 4 of 100 are left over, others in another epoch


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 7, 12, 50])
def test_validation_sees_every_image_once_in_order(world_size, count):
    ranks = [Validation(AUGMENTATION, count, batch=4, rank=rank, world_size=world_size) for rank in range(world_size)]
    rows = [rank.rows(0, step) for rank in ranks for step in range(len(rank))]
    np.testing.assert_array_equal(np.concatenate(rows), np.arange(count))
    assert all(0 < len(batch) <= 4 for batch in rows)


def test_left_over_images_change_with_the_epoch():
    schedule = Training(AUGMENTATION, 100, seed=0, global_batch=12)
    seen = {row for epoch in range(4) for step in range(len(schedule)) for row in schedule.rows(epoch, step).tolist()}
    assert seen == set(range(100))


@pytest.mark.parametrize(("batch", "world_size"), [(0, 1), (10, 3), (101, 1)])
def test_impossible_batches_are_refused(batch, world_size):
    with pytest.raises(ValueError, match=f"batch_size: .* got {batch}"):
        Training(AUGMENTATION, 100, seed=0, global_batch=batch, world_size=world_size)
