"""KL accounting: every reduction of the information cost.

``kl`` is what a model returns: float32 ``[B, L, H, N]`` in nats, one number per image, block, head and token. The
objective (paper, Eq. 3) is loss = CE + β·K; K is a *mean* over all four axes (``"mean"``, the reading under which the
paper's β = 10 … 0.01 are sensible) or, to the letter of Eq. 3, a *sum* over blocks, heads and tokens averaged over
the batch (``"sum"``). The two differ by the factor L·H·N.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ibvit import arguments

Reduction = Literal["mean", "sum"]
_REDUCTIONS = get_args(Reduction)
_Reduce = Callable[[Tensor], Tensor]

ACTIVE_NATS = 1e-2
"""A head (or latent dimension) is *active* if it spends more than this on at least one patch (paper, §4.2)."""


def _check_kl(kl: Any, at_least: int = 0) -> None:
    arguments.tensor("kl", kl)
    if kl.ndim != 4 or kl.numel() < at_least:
        raise ValueError(f"kl: expected [B, L, H, N], at least {at_least} numbers, got {list(kl.shape)}")


class Channels(NamedTuple):
    """How many channels a model has: what converts between the two readings of β."""

    blocks: int
    heads: int
    tokens: int

    @property
    def total(self) -> int:
        return self.blocks * self.heads * self.tokens


def penalty(kl: Tensor, reduction: Reduction) -> Tensor:
    """K of the objective, a scalar, from kl ``[B, L, H, N]``.

    Example:
        >>> kl = torch.ones(2, 12, 3, 196)
        >>> float(penalty(kl, "mean")), float(penalty(kl, "sum"))
        (1.0, 7056.0)
    """
    arguments.choice("reduction", reduction, _REDUCTIONS)
    _check_kl(kl)
    return kl.mean() if reduction == "mean" else per_image(kl).mean()


def convert_beta(beta: float, channels: Channels, source: Reduction, target: Reduction) -> float:
    """The same penalty under the other reduction: β_sum = β_mean / (L·H·N).

    Example:
        >>> convert_beta(7056.0, Channels(blocks=12, heads=3, tokens=196), "mean", "sum")
        1.0
    """
    arguments.number("beta", beta)
    arguments.choice("source", source, _REDUCTIONS)
    arguments.choice("target", target, _REDUCTIONS)
    if not isinstance(channels, Channels):
        raise TypeError(f"channels: expected Channels, got {arguments.shown(channels)}")
    if source == target:
        return beta
    return beta / channels.total if target == "sum" else beta * channels.total


def bits(nats: float) -> float:
    """Nats in bits.

    Example:
        >>> round(bits(math.log(2)), 12)
        1.0
    """
    if not isinstance(nats, float):  # which may be infinite or NaN
        arguments.number("nats", nats)
    return nats / math.log(2)


def per_image(kl: Tensor) -> Tensor:
    """Nats per image, ``[B]``: the sum over blocks, heads and tokens."""
    _check_kl(kl)
    return kl.sum(dim=(1, 2, 3))


def per_patch(kl: Tensor) -> Tensor:
    """Nats per patch, ``[B, N]``: the sum over blocks and heads (the maps of Fig. 2)."""
    _check_kl(kl)
    return kl.sum(dim=(1, 2))


def per_head(kl: Tensor) -> Tensor:
    """Mean nats per token of each head, ``[L, H]``."""
    _check_kl(kl)
    return kl.mean(dim=(0, 3))


def per_latent(mu: Tensor, logvar: Tensor) -> Tensor:
    """Nats of each latent dimension: the summands of the KL, in the shape of ``mu`` ``[..., r]``."""
    arguments.tensor("mu", mu)
    arguments.tensor("logvar", logvar)
    if mu.ndim < 1 or mu.shape != logvar.shape:
        raise ValueError(f"mu, logvar: expected [..., r] each, got {list(mu.shape)} and {list(logvar.shape)}")
    if mu.device != logvar.device:
        raise ValueError(f"logvar: expected on mu's device {mu.device}, got {logvar.device}")
    return 0.5 * (torch.exp(logvar) + mu.square() - 1 - logvar)


def active_heads(kl: Tensor, threshold: float = ACTIVE_NATS) -> Tensor:
    """Which heads spend more than ``threshold`` nats on at least one patch, bool ``[L, H]`` (Fig. 3)."""
    _check_kl(kl, at_least=1)
    arguments.number("threshold", threshold)
    return kl.amax(dim=(0, 3)) > threshold


def active_latents(mu: Tensor, logvar: Tensor, threshold: float = ACTIVE_NATS) -> Tensor:
    """Which latent dimensions spend more than ``threshold`` nats on at least one patch, bool ``[r]``.

    Args:
        mu, logvar: one head's posterior, ``[..., r]``; every leading axis counts as patches.
    """
    arguments.number("threshold", threshold)
    nats = per_latent(mu, logvar)
    if nats.ndim < 2 or not nats.numel():
        raise ValueError(f"mu: expected [..., r] of at least one patch, got {list(nats.shape)}")
    return nats.flatten(end_dim=-2).amax(dim=0) > threshold


def head_names(active: Tensor) -> list[str]:
    """Names "block.head" of the heads marked in a bool ``[L, H]``.

    Example:
        >>> head_names(torch.tensor([[False, True], [True, False]]))
        ['0.1', '1.0']
    """
    arguments.tensor("active", active, (torch.bool,))
    arguments.with_values("active", active)
    if active.ndim != 2:
        raise ValueError(f"active: expected [L, H], got {list(active.shape)}")
    return [f"{block}.{head}" for block, head in active.nonzero().tolist()]


class KLSummary(NamedTuple):
    """KL of a whole data set."""

    nats_per_patch: float
    nats_per_image: float
    heads: list[list[float]]  # [L][H], mean nats per token
    active_heads: list[str]


class KLMeter:
    """Accumulates kl ``[B, L, H, N]`` over batches on its device, in float64, without waiting for it.

    Example:
        >>> meter = KLMeter()
        >>> for batch in torch.ones(6, 2, 3, 4).split(4):
        ...     meter.update(batch)
        >>> meter.summary().nats_per_patch, meter.summary().nats_per_image
        (6.0, 24.0)
    """

    def __init__(self) -> None:
        self._total: Tensor | None = None  # [L, H], nats summed over images and tokens
        self._peak: Tensor | None = None  # [L, H], largest of one patch
        self._images = 0
        self._tokens = 0

    def update(self, kl: Tensor) -> None:
        _check_kl(kl, at_least=1)
        total, peak = kl.sum(dim=(0, 3), dtype=torch.float64), kl.amax(dim=(0, 3)).double()
        self._total = total if self._total is None else self._total + total
        self._peak = peak if self._peak is None else torch.maximum(self._peak, peak)
        self._images += kl.shape[0]
        self._tokens = kl.shape[3]

    def reduce(self, images: int, reduce_sum: _Reduce, reduce_max: _Reduce) -> None:
        """Combine the meters of all ranks; ``images`` is their total."""
        if self._total is not None and self._peak is not None:
            self._total, self._peak = reduce_sum(self._total), reduce_max(self._peak)
            self._images = images

    def summary(self) -> KLSummary:
        if self._total is None or self._peak is None:
            raise ValueError("KLMeter: no batch was seen")
        heads = self._total / (self._images * self._tokens)
        nats_per_patch = float(heads.sum())
        return KLSummary(
            nats_per_patch=nats_per_patch,
            nats_per_image=nats_per_patch * self._tokens,
            heads=heads.tolist(),
            active_heads=head_names(self._peak > ACTIVE_NATS),
        )


def parse_head(head: str, blocks: int, heads: int) -> tuple[int, int]:
    """ "11.0" → (11, 0).

    Raises:
        TypeError, ValueError: not of the form block.head, or no such head.

    Example:
        >>> parse_head("11.0", blocks=12, heads=3)
        (11, 0)
    """
    arguments.whole("blocks", blocks, 1)
    arguments.whole("heads", heads, 1)
    match = _HEAD.fullmatch(head) if isinstance(head, str) else None
    if match is None or int(match[1]) >= blocks or int(match[2]) >= heads:
        expected = f"'block.head' with block < {blocks} and head < {heads}"
        raise ValueError(f"head: expected {expected}, got {arguments.shown(head)}")
    return int(match[1]), int(match[2])


_HEAD = re.compile(r"(\d{1,6})\.(\d{1,6})", re.ASCII)


def parse_heads(names: Sequence[str], blocks: int, heads: int) -> dict[int, list[int]]:
    """Heads by block: ["11.0", "11.2"] → {11: [0, 2]}."""
    arguments.names("heads", names)
    arguments.whole("blocks", blocks, 1)
    by_block: dict[int, list[int]] = {}
    for name in names:
        block, head = parse_head(name, blocks, heads)
        by_block.setdefault(block, []).append(head)
    return by_block
