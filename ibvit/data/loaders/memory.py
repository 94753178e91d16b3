"""Loader for data sets that are one tensor in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ibvit.data.plans.schedule import Schedule
from ibvit.data.types import Batch


class MemoryLoader:
    """One rank's batches of an in-memory data set; see :class:`ibvit.data.types.Loader`.

    Args:
        schedule: which samples this rank sees at which step.
        pixels: epoch → (images float32 ``[M, 3, h, w]`` normalised, labels int64 ``[M]``) of the whole data set.
    """

    def __init__(self, schedule: Schedule, pixels: Callable[[int], tuple[Tensor, Tensor]]) -> None:
        self._schedule, self._pixels = schedule, pixels

    def __len__(self) -> int:
        return len(self._schedule)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        images, labels = self._pixels(epoch)
        for step in range(start, len(self)):
            index = torch.tensor(self._schedule.rows(epoch, step))  # a copy: the schedule keeps its own
            yield Batch(images[index], labels[index], index, index)

    def close(self) -> None:
        """Nothing is held."""
