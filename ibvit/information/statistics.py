"""From batches to a value with its standard error: the jackknife (Quenouille 1956; Tukey 1958)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ibvit.information.sampling import Replicates


def mean_and_error(replicates: Replicates) -> tuple[Tensor, Tensor]:
    """Every term with its standard error, each `[terms]`.

    Example:
        >>> mean_and_error(Replicates(torch.tensor([2.0]), torch.tensor([[1.0], [3.0]])))
        (tensor([2.]), tensor([1.]))
    """
    return replicates.full, _jackknife(replicates.left_out)


def ratio_and_error(replicates: Replicates, couples: Sequence[tuple[int, int]], channels: int) -> tuple[Tensor, Tensor]:
    """NMI of couples of channels with its standard error, each `[couples]`.

    The ratio is not linear in its terms, and the terms are strongly correlated: leaving out one batch of all of them
    at a time respects both.

    Args:
        replicates: of I(U;U′) of every channel, then I(U;V) of every couple: `[channels + couples]`.

    Returns:
        not a number where a channel's own information is not above zero.
    """
    first, second = (torch.tensor([couple[i] for couple in couples]) for i in (0, 1))

    def ratio(terms: Tensor) -> Tensor:
        own = terms[..., :channels]
        return terms[..., channels:] / (own[..., first] * own[..., second]).sqrt()

    return ratio(replicates.full), _jackknife(ratio(replicates.left_out))


def _jackknife(left_out: Tensor) -> Tensor:
    """Standard error of a statistic from its values with one batch left out, `[batches, ...]`."""
    count = len(left_out)
    return ((left_out - left_out.mean(0)).square().sum(0) * ((count - 1) / count)).sqrt()
