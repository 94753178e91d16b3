"""What heads have in common: normalised mutual information between their messages (paper, Eq. 6, Fig. 6)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ibvit.analysis.heads import strongest_heads
from ibvit.analysis.records import Records, RecordsError, RunIdentity, as_tensor
from ibvit.analysis.results import Result
from ibvit.information import nmi_matrix


@dataclass(frozen=True)
class Similarity(Result):
    """Normalised mutual information between every two of some heads, from 0 (nothing shared) to 1."""

    runs: list[RunIdentity]  # one entry a head: the run that it belongs to
    heads: list[str]
    nmi: np.ndarray  # [heads, heads]; NaN with a head that carries too little to tell
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
        """Places in `heads` that belong to the run called `name`."""
        return np.array([place for place, run in enumerate(self.runs) if run["name"] == name], dtype=np.int64)


def similarity(
    runs: Sequence[Records], *, most: int = 16, samples: int | None = None, tolerance: float = 0.01, seed: int = 0
) -> Similarity:
    """Compare the active heads of runs, at most the `most` strongest of each run.

    `samples` and `tolerance` as in `ibvit.nmi_matrix`: draws, or else the largest standard error of an NMI.

    Raises:
        RecordsError: no run has an active head.
    """
    owners = [(run, head) for run in runs if run.beta is not None for head in strongest_heads(run)[:most]]
    if not owners:
        raise RecordsError("runs: expected at least one run with an active head")
    channels = []
    for run, head in owners:
        mu, logvar = run.latent(head)
        channels.append((as_tensor(mu).flatten(0, 1), as_tensor(logvar).flatten(0, 1)))
    matrix = nmi_matrix(channels, samples=samples, tolerance=tolerance, seed=seed)
    return Similarity(
        runs=[run.identity for run, _ in owners],
        heads=[head for _, head in owners],
        nmi=np.asarray(matrix.value),
        stderr=np.asarray(matrix.stderr),
    )
