"""What every data set gives to training: batches, and loaders that resume anywhere without state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from torch import Tensor


class Batch(NamedTuple):
    """One rank's share of one step.

    Row k shows image ``index[k]`` where the schedule asked for image ``rows[k]``. They differ where a broken file was
    replaced. Rows of records and the address of noise follow ``rows``, not the image that is shown.
    """

    images: Tensor  # float32 [b, 3, height, width], normalised
    labels: Tensor  # int64 [b]
    index: Tensor  # type: ignore[assignment]  # int64 [b], which image of the data set is shown (hides tuple.index)
    rows: Tensor | None = None  # int64 [b] on the CPU, which image the schedule asked for; None: those of ``index``

    @property
    def first(self) -> int:
        """The image that the schedule asked for first; in validation the rows are images first, first + 1, …"""
        return int((self.index if self.rows is None else self.rows)[0])


class Loader(Protocol):
    """One rank's view of a data set.

    Order is a pure function of (seed, epoch) and every augmentation one of (seed, epoch, sample index), so a loader
    starts at any step without history, and gives the same images for any number of workers or ranks.

    Training loaders drop the last incomplete global batch; rank k of W takes the contiguous rows
    [k·G/W, (k+1)·G/W) of each global batch of G. Validation loaders visit every image once: rank k takes a contiguous
    share of the data set, in order.
    """

    def __len__(self) -> int:
        """Steps per epoch."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Steps ``start``, ``start + 1``, … of an epoch."""

    def close(self) -> None:
        """Stop workers and free what they hold."""
