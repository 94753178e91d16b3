"""Accuracy against transmitted information, from independent patches to full attention (paper, Fig. 1b)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ibvit.analysis.heads import mean_active_heads
from ibvit.analysis.records import Records, RunIdentity, as_tensor
from ibvit.analysis.results import Result
from ibvit.kinds import KINDS
from ibvit.models import kl as kl_accounting


@dataclass(frozen=True)
class Spectrum(Result):
    """Accuracy and information of each run. Nats per patch are 0 without attention and infinite with full attention."""

    runs: list[RunIdentity]
    nats_per_patch: np.ndarray  # [runs], nats, summed over heads, mean over patches and images
    accuracy: np.ndarray  # [runs], share of images, mean over validation passes
    accuracy_std: np.ndarray  # [runs], standard deviation over validation passes; 0 where nothing is random
    active_heads: np.ndarray  # [runs], heads above the threshold on at least one patch
    mean_active_heads: np.ndarray  # [runs], heads that spend on the average patch
    passes: int

    @property
    def bottlenecked(self) -> np.ndarray:
        """Which runs have bottlenecks, [runs]."""
        return np.array([KINDS[run["attention"]].has_kl for run in self.runs])

    @property
    def pareto(self) -> np.ndarray:
        """The Pareto front, [runs]: runs whose accuracy no other run reaches with less information."""
        nats, accuracy = self.nats_per_patch, self.accuracy
        dominated = [
            bool(np.any((nats <= n) & (accuracy >= a) & ((nats < n) | (accuracy > a))))
            for n, a in zip(nats, accuracy, strict=True)
        ]
        return ~np.array(dominated)

    def slope(self) -> tuple[float, float]:
        """Accuracy gained per factor e of information, over the runs with bottlenecks, and its standard error.

        Least squares of accuracy on ln(nats per patch). Fewer than two such runs give NaN, fewer than three no error.
        """
        selection = self.bottlenecked & (self.nats_per_patch > 0)
        x, y = np.log(self.nats_per_patch[selection]), self.accuracy[selection]
        if x.size < 2 or np.ptp(x) == 0:
            return float("nan"), float("nan")
        x = x - x.mean()
        slope = float((x * y).sum() / (x * x).sum())
        if x.size == 2:
            return slope, float("nan")
        residual = y - y.mean() - slope * x
        return slope, float(np.sqrt((residual**2).sum() / (x.size - 2) / (x * x).sum()))

    def columns(self) -> dict[str, Any]:
        return {
            "run": [run["name"] for run in self.runs],
            "attention": [run["attention"] for run in self.runs],
            "beta": ["" if run["beta"] is None else run["beta"] for run in self.runs],
            "seed": [run["seed"] for run in self.runs],
            "nats per patch": self.nats_per_patch,
            "accuracy": self.accuracy,
            "accuracy, standard deviation": self.accuracy_std,
            "active heads": self.active_heads,
            "heads active on average": self.mean_active_heads,
            "on the Pareto front": self.pareto,
        }


def nats_per_patch(records: Records) -> float:
    """Nats per patch of a run: summed over heads, mean over patches and images; 0 without attention, else infinite."""
    if records.kind.nats is not None:
        return records.kind.nats
    return float(kl_accounting.per_patch(as_tensor(records.kl)).double().mean())


def spectrum(runs: Sequence[Records]) -> Spectrum:
    """Place runs in the spectrum, from their records."""
    correct = [(run.logits.argmax(axis=2) == run.labels).mean(axis=1) for run in runs]
    return Spectrum(
        runs=[run.identity for run in runs],
        nats_per_patch=np.array([nats_per_patch(run) for run in runs]),
        accuracy=np.array([passes.mean() for passes in correct]),
        accuracy_std=np.array([passes.std(ddof=1) if passes.size > 1 else 0.0 for passes in correct]),
        active_heads=np.array([0 if run.beta is None else int(run.active.sum()) for run in runs]),
        mean_active_heads=np.array([len(mean_active_heads(run)) for run in runs]),
        passes=max(len(run.logits) for run in runs),
    )
