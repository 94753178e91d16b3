"""Which samples a rank sees at which step, and what is done to them: pure functions, so nothing to save or resume."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from ibvit.data.plans.augment import Augmentation, AugmentationPlan, Ints, shuffled, train_plan, val_plan


class Schedule(Protocol):
    """One rank's share of an epoch."""

    @property
    def augmentation(self) -> Augmentation: ...

    @property
    def batch(self) -> int:
        """The largest number of samples in one of this rank's steps."""

    @property
    def num_ops(self) -> int:
        """RandAugment operations for each image."""

    def __len__(self) -> int:
        """Steps per epoch."""

    def rows(self, epoch: int, step: int) -> Ints:
        """Sample indices of a step, ``[b]``."""

    def plan(self, epoch: int, index: Ints, sizes: Ints) -> AugmentationPlan:
        """What is done to samples ``index`` ``[b]`` whose stored images measure ``sizes`` ``[b, 2]``."""


_order = lru_cache(maxsize=2)(shuffled)


@dataclass(frozen=True)
class Training:
    """Shuffled anew each epoch; the last incomplete global batch is dropped.

    Example:
        >>> ranks = [Training(Augmentation(8), 10, seed=0, global_batch=4, rank=rank, world_size=2) for rank in (0, 1)]
        >>> len(ranks[0]), [rank.rows(epoch=0, step=1).tolist() for rank in ranks]
        (2, [[1, 9], [3, 6]])
    """

    augmentation: Augmentation
    count: int
    seed: int
    global_batch: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.global_batch < 1 or self.global_batch % self.world_size:
            raise ValueError(
                f"batch_size: expected a positive multiple of the world size {self.world_size}, got {self.global_batch}"
            )
        if self.global_batch > self.count:
            raise ValueError(f"batch_size: expected at most the {self.count} training images, got {self.global_batch}")

    @property
    def batch(self) -> int:
        return self.global_batch // self.world_size

    @property
    def num_ops(self) -> int:
        return self.augmentation.num_ops

    def __len__(self) -> int:
        return self.count // self.global_batch

    def rows(self, epoch: int, step: int) -> Ints:
        first = step * self.global_batch + self.rank * self.batch
        return _order(self.seed, epoch, self.count)[first : first + self.batch]

    def plan(self, epoch: int, index: Ints, sizes: Ints) -> AugmentationPlan:
        return train_plan(self.augmentation, self.seed, epoch, index, sizes)


@dataclass(frozen=True)
class Validation:
    """Every image once, in order; each rank a contiguous share, its last batch as short as it comes.

    Example:
        >>> ranks = [Validation(Augmentation(8), 5, batch=2, rank=rank, world_size=2) for rank in (0, 1)]
        >>> [[rank.rows(0, step).tolist() for step in range(len(rank))] for rank in ranks]
        [[[0, 1]], [[2, 3], [4]]]
    """

    augmentation: Augmentation
    count: int
    batch: int
    rank: int = 0
    world_size: int = 1
    num_ops: int = 0

    def _share(self) -> tuple[int, int]:
        return self.count * self.rank // self.world_size, self.count * (self.rank + 1) // self.world_size

    def __len__(self) -> int:
        first, end = self._share()
        return -(-(end - first) // self.batch)

    def rows(self, epoch: int, step: int) -> Ints:
        first, end = self._share()
        return np.arange(first + step * self.batch, min(first + (step + 1) * self.batch, end))

    def plan(self, epoch: int, index: Ints, sizes: Ints) -> AugmentationPlan:
        return val_plan(self.augmentation, sizes)
