"""A constructed spectrum that every figure can be drawn from."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ibvit.analysis import copypaste, images
from ibvit.analysis.copypaste import CopyPaste
from ibvit.analysis.records import Records, open_runs
from ibvit.figures import report_data
from tests.analysis.conftest import ConstructedLoader
from tests.analysis.constructed import CLASSES, IMAGES, PATCHES, write_run


def write_varied_spectrum(folder: Path) -> list[Path]:
    """none, β = 10 (two seeds), 1, 0.1, full: more heads, more nats and more consensus from run to run."""
    kinds = [
        ("none", "none", {}, 0.3),
        ("beta10", "ib", {"beta": 10.0, "active": {"1.0": 0.5}}, 0.6),
        ("beta10-seed1", "ib", {"beta": 10.0, "seed": 1, "active": {"1.1": 0.6}}, 0.7),
        ("beta1", "ib", {"beta": 1.0, "active": {"1.0": 2.0, "0.1": 1.0}}, 1.0),
        ("beta0.1", "ib", {"beta": 0.1, "active": {"1.0": 6.0, "0.1": 4.0, "1.1": 3.0}}, 1.4),
        ("full", "full", {}, 2.0),
    ]
    folders = []
    for place, (name, attention, options, consensus) in enumerate(kinds):
        rng = np.random.default_rng(place)
        own = (np.arange(IMAGES) % CLASSES)[:, None, None] == np.arange(CLASSES)
        votes = rng.normal(size=(IMAGES, PATCHES, CLASSES)) * 2 + consensus * own
        votes[-3:] = votes[-3:, :, ::-1]  # a few images that go wrong
        folders.append(write_run(folder / name, attention, votes=votes, **options))
    return folders


def constructed_probe(records: Records, heads: list[str], images: int = 64, examples: int = 2, **options) -> CopyPaste:
    """A head whose μ falls by 0.5 for each doubling of the copies."""
    rng = np.random.default_rng(0)
    copies, grid = np.array([2, 4, 8]), records.grid
    mu_0 = rng.normal(size=(len(heads), images))
    shift = -0.5 * np.log2(copies)[None, :, None] + 0.1 * rng.normal(size=(len(heads), 3, images))
    places = np.zeros((examples, 3, 16), dtype=bool)
    for amount, count in enumerate(copies):
        places[:, amount, 1 : 1 + count] = True
    return CopyPaste(
        run=records.identity,
        heads=list(heads),
        latents=[1] * len(heads),
        copies=copies,
        mu_0=mu_0,
        mu_aug=mu_0[:, None] + shift,
        patch=np.zeros(images, dtype=np.int64),
        index=np.arange(images),
        example_images=rng.integers(0, 255, size=(examples, 4, 8, 8, 3), dtype=np.uint8),
        example_places=places.reshape(examples, 3, *grid),
        example_attention=rng.random((len(heads), examples, 4, *grid)),
    )


@pytest.fixture(scope="module")
def varied_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Records]]:
    with pytest.MonkeyPatch.context() as patch:
        loader = ConstructedLoader()
        patch.setattr(images, "validation_loader", lambda records: loader)
        patch.setattr(copypaste, "copy_paste", constructed_probe)
        patch.setattr(report_data, "copy_paste", constructed_probe)
        yield open_runs(write_varied_spectrum(tmp_path_factory.mktemp("spectrum")))
