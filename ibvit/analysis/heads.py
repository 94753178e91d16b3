"""How often and how much information each head sends: survival functions and the active grid (paper, Fig. 3)."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ibvit.analysis.records import Records, RunIdentity, as_tensor
from ibvit.analysis.results import Result
from ibvit.models import kl as kl_accounting

LOWEST_NATS = 1e-4
STEPS = 121
ACTIVE_NATS = 1e-2
"""Nats per patch. A head is active if one patch spends more on it, active on average if the mean patch does."""


def survival(kl: np.ndarray, nats: np.ndarray) -> np.ndarray:
    """P(KL ≥ x) over all values of `kl`, at each x of `nats`.

    >>> survival(np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.5, 1.0, 4.0]))
    array([0.75, 0.75, 0.  ])
    """
    ordered = np.sort(kl, axis=None)
    return 1.0 - np.searchsorted(ordered, nats, side="left") / ordered.size


@dataclass(frozen=True)
class Heads(Result):
    """KL of every head of one run over all validation patches."""

    run: RunIdentity
    threshold: float  # nats, above which a head is active
    nats: np.ndarray  # [steps], nats, the thresholds of `survival`
    survival: np.ndarray  # [blocks, heads, steps], share of patches
    mean_kl: np.ndarray  # [blocks, heads], nats per patch
    active: np.ndarray  # [blocks, heads], bool: above `threshold` on at least one patch
    active_latents: np.ndarray  # [blocks, heads], latent dimensions in use; 0 where the head is not active

    def columns(self) -> dict[str, Any]:
        blocks, heads = self.mean_kl.shape
        table = {
            "head": [f"{block}.{head}" for block in range(blocks) for head in range(heads)],
            "nats per patch, mean": self.mean_kl.ravel(),
            "active": self.active.ravel(),
            "active latents": self.active_latents.ravel(),
        }
        marks = [np.abs(self.nats - x).argmin() for x in (1e-3, 1e-2, 1e-1, 1.0) if x <= self.nats[-1]]
        return table | {f"P(KL >= {self.nats[k]:.3g} nats)": self.survival[:, :, k].ravel() for k in marks}


def heads(records: Records) -> Heads:
    """Measure the heads of a run with bottlenecks."""
    kl = records.kl
    _, blocks, per_block, _ = kl.shape
    highest = max(float(kl.max()), 10 * LOWEST_NATS)
    nats = np.geomspace(LOWEST_NATS, highest, STEPS)
    latents = np.zeros((blocks, per_block), dtype=np.int64)
    for name in strongest_heads(records):
        mu, logvar = records.latent(name)
        latents[records.block_and_head(name)] = kl_accounting.active_latents(as_tensor(mu), as_tensor(logvar)).sum()
    return Heads(
        run=records.identity,
        threshold=kl_accounting.ACTIVE_NATS,
        nats=nats,
        survival=np.array(
            [[survival(kl[:, block, head], nats) for head in range(per_block)] for block in range(blocks)]
        ),
        mean_kl=kl_accounting.per_head(as_tensor(kl)).numpy(),
        active=records.active,
        active_latents=latents,
    )


def strongest_heads(records: Records) -> list[str]:
    """The saved, active heads of a run, those that spend most first."""
    mean_kl = kl_accounting.per_head(as_tensor(records.kl))
    active = [name for name in records.heads if records.active[records.block_and_head(name)]]
    return sorted(active, key=lambda name: -float(mean_kl[records.block_and_head(name)]))


def mean_active_heads(records: Records) -> list[str]:
    """Those of the strongest heads that spend `ACTIVE_NATS` on the average patch: there is a message to look at.

    Penalised heads end near their prior, not on it: the active ones among them send little but noise.
    """
    if records.beta is None:
        return []
    mean_kl = kl_accounting.per_head(as_tensor(records.kl))
    return [name for name in strongest_heads(records) if mean_kl[records.block_and_head(name)] >= ACTIVE_NATS]
