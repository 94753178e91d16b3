"""Jensen-Shannon divergence between the classifications of runs (paper, App. B, Fig. 7), and images chosen by it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ibvit.analysis.records import Records, RecordsError, RunIdentity
from ibvit.analysis.results import Result
from ibvit.kinds import ENDS, EndName

BIN_EDGES = np.linspace(0.0, 1.0, 6)  # bits; the divergence of two distributions is at most one bit


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis, in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence in bits along the last axis (Lin 1991): ½ KL(p‖m) + ½ KL(q‖m), m = (p + q)/2.

    >>> jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 1.0])).item()
    1.0
    """
    middle = (p + q) / 2

    def divergence(a: np.ndarray) -> np.ndarray:
        # 0 · log 0 is 0; middle is positive wherever a is.
        ratio = np.divide(a, middle, out=np.ones_like(a), where=a > 0)
        return (a * np.log2(ratio)).sum(axis=-1)

    return np.clip((divergence(p) + divergence(q)) / 2, 0.0, 1.0)


def end_of_spectrum(runs: Sequence[Records], kind: EndName) -> Records:
    """The first run at an end of the spectrum.

    Raises:
        RecordsError: there is none among `runs`.
    """
    for run in runs:
        if run.attention_kind == kind:
            return run
    raise RecordsError(
        f"runs: expected a run with --attention {kind} among them, got {', '.join(r.label for r in runs)}"
    )


def probabilities(records: Records) -> np.ndarray:
    """Class probabilities of the first validation pass, [images, classes]."""
    return softmax(np.asarray(records.logits[0]))


@dataclass(frozen=True)
class Divergence(Result):
    """Divergence of every image's classification from both ends of the spectrum."""

    runs: list[RunIdentity]
    from_none: np.ndarray  # [runs, images], bits
    from_full: np.ndarray  # [runs, images], bits

    def shares(self) -> tuple[np.ndarray, np.ndarray]:
        """Share of images in each of the five bins of `BIN_EDGES`, [runs, 5], from `none` and from `full`."""

        def binned(values: np.ndarray) -> np.ndarray:
            return np.stack([np.histogram(row, BIN_EDGES)[0] / row.size for row in values])

        return binned(self.from_none), binned(self.from_full)

    def columns(self) -> dict[str, Any]:
        table: dict[str, Any] = {"run": [run["name"] for run in self.runs]}
        for end, shares in zip(("no attention", "full attention"), self.shares(), strict=True):
            for low, high, share in zip(BIN_EDGES, BIN_EDGES[1:], shares.T, strict=False):
                table[f"share of images {low:.1f}-{high:.1f} bits from {end}"] = share
        return table


def divergence(runs: Sequence[Records]) -> Divergence:
    """Compare every run with the runs at both ends.

    Raises:
        RecordsError: a run with `none` or `full` attention is missing.
    """
    none, full = (probabilities(end_of_spectrum(runs, kind)) for kind in ENDS)
    every = [probabilities(run) for run in runs]
    return Divergence(
        runs=[run.identity for run in runs],
        from_none=np.stack([jensen_shannon(p, none) for p in every]),
        from_full=np.stack([jensen_shannon(p, full) for p in every]),
    )


def select_images(
    runs: Sequence[Records],
    count: int,
    *,
    correct: bool | None = None,
    most_divergent: float | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Draw images at random among those that meet the conditions.

    Args:
        correct: only images that the `full` run classifies rightly (True) or wrongly (False).
        most_divergent: only this top share (0.1: 10 %) by divergence between the `none` and the `full` run.

    Returns:
        Rows of the records, ascending, at most `count`.

    Raises:
        RecordsError: a run at an end of the spectrum is needed and missing, or no image meets the conditions.
    """
    candidates = np.ones(len(runs[0].labels), dtype=bool)
    if correct is not None:
        full = end_of_spectrum(runs, "full")
        candidates &= (full.logits[0].argmax(axis=1) == full.labels) == correct
    if most_divergent is not None:
        ends = [probabilities(end_of_spectrum(runs, kind)) for kind in ("none", "full")]
        distance = jensen_shannon(*ends)
        candidates &= distance >= np.quantile(distance, 1 - most_divergent)
    rows = np.flatnonzero(candidates)
    if rows.size == 0:
        raise RecordsError(f"select_images: no image meets correct={correct}, most_divergent={most_divergent}")
    sample = np.random.default_rng(seed).choice(rows, size=min(count, rows.size), replace=False)
    return np.sort(sample)
