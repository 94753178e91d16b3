"""From batch means to a value with its standard error."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def mean_and_error(batches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard error over batches `[B, terms]`; each `[terms]`.

    Example:
        >>> mean_and_error(torch.tensor([[1.0], [3.0]]))
        (tensor([2.]), tensor([1.]))
    """
    return batches.mean(0), batches.std(0) / len(batches) ** 0.5


def ratio_and_error(batches: Tensor, couples: Sequence[tuple[int, int]], channels: int) -> tuple[Tensor, Tensor]:
    """NMI of couples of channels, with the jackknife over batches (Quenouille 1956; Tukey 1958).

    A ratio is not linear in its terms, and the terms are strongly correlated: leaving out one batch of all of them at
    a time respects both.

    Args:
        batches: `[B, channels + couples]`: I(U;U′) of every channel, then I(U;V) of every couple.

    Returns:
        value and standard error `[couples]`; not a number where a channel's own information is not above zero.
    """
    first, second = (torch.tensor([couple[i] for couple in couples], dtype=torch.int64) for i in (0, 1))

    def ratio(means: Tensor) -> Tensor:
        own = means[..., :channels]
        return means[..., channels:] / (own[..., first] * own[..., second]).sqrt()

    count = len(batches)
    value = ratio(batches.mean(0))
    left_out = ratio((batches.sum(0) - batches) / (count - 1))
    error = ((left_out - left_out.mean(0)).square().sum(0) * ((count - 1) / count)).sqrt()
    return value, error
