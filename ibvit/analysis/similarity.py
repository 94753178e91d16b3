"""What heads have in common: normalised mutual information between their messages (paper, Eq. 6, Fig. 6)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ibvit.analysis.heads import ACTIVE_NATS, mean_active_heads
from ibvit.analysis.records import Records, RecordsError, RunIdentity
from ibvit.analysis.results import Result
from ibvit.information import nmi_matrix

SAMPLES = 1 << 14
"""Draws of patches behind each NMI. Fixed, with errors shown, as in the paper: with a tolerance,
the head that sends least would decide how long all take."""
MOST_ERROR = 0.1
"""Standard error beyond which an NMI, between 0 and 1, is not shown."""


@dataclass(frozen=True)
class Similarity(Result):
    """Normalised mutual information between every two of some heads, from 0 (nothing shared) to 1."""

    runs: list[RunIdentity]  # per head, the run that it belongs to
    heads: list[str]
    nmi: np.ndarray  # [heads, heads]; NaN where a head sends too little to estimate it (error above `MOST_ERROR`)
    stderr: np.ndarray  # [heads, heads], standard error of the estimate

    def columns(self) -> dict[str, Any]:
        first, second = np.triu_indices(len(self.heads), k=1)
        return {
            "run": [self.runs[i]["name"] for i in first],
            "head": [self.heads[i] for i in first],
            "other run": [self.runs[j]["name"] for j in second],
            "other head": [self.heads[j] for j in second],
            "NMI": self.nmi[first, second],
            "NMI, standard error": self.stderr[first, second],
        }

    def of_run(self, name: str) -> np.ndarray:
        """Indices into `heads` that belong to the run called `name`."""
        return np.array([index for index, run in enumerate(self.runs) if run["name"] == name], dtype=np.int64)


def similarity(runs: Sequence[Records], *, most: int = 16, samples: int = SAMPLES, seed: int = 0) -> Similarity:
    """Compare the heads that are active on average, at most the `most` strongest per run, from `samples` patches drawn.

    Raises:
        RecordsError: no run has such a head.
    """
    owners = [(run, head) for run in runs for head in mean_active_heads(run)[:most]]
    if not owners:
        raise RecordsError(f"runs: expected at least one run with a head that spends {ACTIVE_NATS} nats per patch")
    matrix = nmi_matrix([run.channel(head) for run, head in owners], samples=samples, seed=seed)
    is_certain = np.asarray(matrix.stderr) <= MOST_ERROR
    return Similarity(
        runs=[run.identity for run, _ in owners],
        heads=[head for _, head in owners],
        nmi=np.where(is_certain, matrix.value, np.nan),
        stderr=np.asarray(matrix.stderr),
    )
