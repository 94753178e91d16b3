"""Constructed runs, whose every analysis has a known answer, and one real run, trained for a moment."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ibvit.analysis import images
from ibvit.analysis.records import Records, open_runs
from ibvit.config import TrainConfig
from ibvit.data.types import Batch
from ibvit.training import train
from tests.analysis.constructed import write_run, write_spectrum


@pytest.fixture
def spectrum_runs(tmp_path: Path) -> list[Records]:
    """none, β = 10 (seeds 0 and 1), β = 1 and full, all with constructed records."""
    return open_runs(write_spectrum(tmp_path))


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """`write_run` into a folder of this test."""
    return lambda name, *args, **options: write_run(tmp_path / name, *args, **options)


class ConstructedLoader:
    """24 images of 8 × 8 pixels in batches of ten; image k is grey of value k, its last patch is white."""

    def __init__(self) -> None:
        self.images = torch.arange(24.0).view(24, 1, 1, 1).expand(24, 3, 8, 8).clone()
        self.images[:, :, 6:, 6:] = 23.0

    def __len__(self) -> int:
        return 3

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for step in range(start, len(self)):
            rows = torch.arange(step * 10, min(24, step * 10 + 10))
            yield Batch(self.images[rows], rows % 5, rows)

    def close(self) -> None:
        pass


@pytest.fixture
def constructed_images(monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Constructed runs read these images, [24, 3, 8, 8]."""
    loader = ConstructedLoader()
    monkeypatch.setattr(images, "validation_loader", lambda records: loader)
    return loader.images


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on `digits` after three steps: every head still transmits."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    return train(TrainConfig(data="digits", out=out, max_steps=3, latent_dim=4, hidden_dim=8, device="cpu"))
