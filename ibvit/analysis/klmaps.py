"""Where in an image the information goes: nats per patch, summed over all heads (paper, Fig. 2)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ibvit.analysis.images import read_images
from ibvit.analysis.records import Records, RunIdentity, as_tensor
from ibvit.analysis.results import Result
from ibvit.models import kl as kl_accounting


@dataclass(frozen=True)
class KLMaps(Result):
    """KL maps of a few images in every run with bottlenecks, each run with one colour range for all images."""

    runs: list[RunIdentity]
    index: np.ndarray  # [images], position in the validation set
    images: np.ndarray  # [images, height, width, 3], uint8
    labels: list[str]  # true class of each image
    maps: np.ndarray  # [runs, images, rows, columns], nats per patch
    highest: np.ndarray  # [runs], nats: upper end of the run's colour range, its largest patch in these images

    def columns(self) -> dict[str, Any]:
        per_image = self.maps.reshape(len(self.runs), len(self.index), -1)
        return {
            "run": np.repeat([run["name"] for run in self.runs], len(self.index)),
            "image": np.tile(self.index, len(self.runs)),
            "class": np.tile(self.labels, len(self.runs)),
            "nats per patch, mean": per_image.mean(axis=2).ravel(),
            "nats per patch, largest": per_image.max(axis=2).ravel(),
        }


def kl_maps(runs: Sequence[Records], rows: np.ndarray) -> KLMaps:
    """KL maps of the images at `rows` of the records, for the runs with bottlenecks among `runs`."""
    bottlenecked = [run for run in runs if run.beta is not None]
    maps = [
        kl_accounting.per_patch(as_tensor(run.kl[rows])).numpy().reshape(len(rows), *run.grid) for run in bottlenecked
    ]
    first = runs[0]
    return KLMaps(
        runs=[run.identity for run in bottlenecked],
        index=np.asarray(first.index[rows]),
        images=read_images(first, rows),
        labels=[first.classes[label] for label in first.labels[rows]],
        maps=np.stack(maps),
        highest=np.array([values.max() for values in maps]),
    )
