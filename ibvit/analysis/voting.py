"""How the patches of an image vote (paper, Fig. 1c and the vote maps of Figs. 8-10).

The logits of an image are the mean of its patches' logits, so each patch casts a vote of its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ibvit.analysis.records import Records, RunIdentity
from ibvit.analysis.results import Result

IMAGES_AT_ONCE = 128


def logit_range(patch_logits: np.ndarray) -> np.ndarray:
    """From the smallest to the largest logit of any patch for any class: [images, patches, classes] → [images].

    >>> logit_range(np.array([[[0.0, 3.0], [-1.0, 2.0]]]))
    array([4.])
    """
    return patch_logits.max(axis=(1, 2)) - patch_logits.min(axis=(1, 2))


def effective_classes(patch_logits: np.ndarray) -> np.ndarray:
    """Inverse Simpson index 1/Σ_c p_c² of the patches' top classes: [images, patches, classes] → [images].

    p_c is the share of patches whose top class is c (Simpson 1949; Hill 1973). One: all patches agree.

    >>> effective_classes(np.array([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]]))
    array([2., 1.])
    """
    top = patch_logits.argmax(axis=2)  # [images, patches]
    shares = (top[:, :, None] == np.arange(patch_logits.shape[2])).mean(axis=1)  # [images, classes]
    return 1.0 / np.square(shares).sum(axis=1)


def vote_ranks(patch_logits: np.ndarray) -> np.ndarray:
    """The rank of each patch's top class in the image's own ranking, from 1.

    [images, patches, classes] → [images, patches]

    >>> vote_ranks(np.array([[[9.0, 0.0, 1.0], [0.0, 0.0, 2.0]]]))
    array([[1, 2]])
    """
    order = np.argsort(-patch_logits.mean(axis=1), axis=1, kind="stable")  # [images, classes], best first
    rank = np.argsort(order, axis=1) + 1
    return np.take_along_axis(rank, patch_logits.argmax(axis=2), axis=1)


def _chunks(records: Records) -> Iterator[np.ndarray]:
    votes = records.patch_logits
    for start in range(0, len(votes), IMAGES_AT_ONCE):
        yield np.asarray(votes[start : start + IMAGES_AT_ONCE], dtype=np.float32)


@dataclass(frozen=True)
class Voting(Result):
    """Range of patch logits and effective number of classes, per image, for runs along the spectrum."""

    runs: list[RunIdentity]
    logit_range: np.ndarray  # [runs, images], logits
    effective_classes: np.ndarray  # [runs, images], classes

    def quartiles(self) -> tuple[np.ndarray, np.ndarray]:
        """25, 50 and 75 % quantiles over images of range and effective classes, [3, runs] each."""
        levels = [0.25, 0.5, 0.75]
        return np.quantile(self.logit_range, levels, axis=1), np.quantile(self.effective_classes, levels, axis=1)

    def columns(self) -> dict[str, Any]:
        spread, variety = self.quartiles()
        names = ["25 %", "median", "75 %"]
        return {
            "run": [run["name"] for run in self.runs],
            **{f"logit range, {name}": values for name, values in zip(names, spread, strict=True)},
            **{f"effective classes, {name}": values for name, values in zip(names, variety, strict=True)},
        }


def voting(runs: Sequence[Records]) -> Voting:
    """Measure how the patches of every validation image vote, in every run."""
    spread = [np.concatenate([logit_range(chunk) for chunk in _chunks(run)]) for run in runs]
    variety = [np.concatenate([effective_classes(chunk) for chunk in _chunks(run)]) for run in runs]
    return Voting([run.identity for run in runs], np.stack(spread), np.stack(variety))


@dataclass(frozen=True)
class VoteMaps(Result):
    """For chosen images: the rank, in the image's own prediction, of the class that each patch votes for."""

    runs: list[RunIdentity]
    index: np.ndarray  # [images], position in the validation set
    predicted: np.ndarray  # [runs, images], class
    ranks: np.ndarray  # [runs, images, rows, columns], from 1

    def columns(self) -> dict[str, Any]:
        share = [(self.ranks <= top).mean(axis=(2, 3)).ravel() for top in (1, 5, 10)]
        return {
            "run": np.repeat([run["name"] for run in self.runs], len(self.index)),
            "image": np.tile(self.index, len(self.runs)),
            "predicted class": self.predicted.ravel(),
            "patches voting for rank 1": share[0],
            "patches voting for ranks 2-5": share[1] - share[0],
            "patches voting for ranks 6-10": share[2] - share[1],
        }


def vote_maps(runs: Sequence[Records], rows: np.ndarray) -> VoteMaps:
    """Vote maps of the images at `rows` of the records (see `ibvit.analysis.divergence.select_images`)."""
    patch_logits = [np.asarray(run.patch_logits[rows], dtype=np.float32) for run in runs]
    return VoteMaps(
        runs=[run.identity for run in runs],
        index=np.asarray(runs[0].index[rows]),
        predicted=np.stack([votes.mean(axis=1).argmax(axis=1) for votes in patch_logits]),
        ranks=np.stack(
            [vote_ranks(votes).reshape(len(rows), *run.grid) for run, votes in zip(runs, patch_logits, strict=True)]
        ),
    )
