"""A spectrum of constructed runs: records whose every analysis has a known answer."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ibvit.analysis.records import Records, open_runs
from tests.analysis.constructed import write_run


@pytest.fixture
def spectrum_runs(tmp_path: Path) -> list[Records]:
    """none, β = 10 (seeds 0 and 1), β = 1 and full, all with constructed records."""
    folders = [
        write_run(tmp_path / "none", "none"),
        write_run(tmp_path / "beta10", "ib", beta=10.0, active={"1.0": 0.5}),
        write_run(tmp_path / "beta10-seed1", "ib", beta=10.0, seed=1, active={"1.1": 0.5}),
        write_run(tmp_path / "beta1", "ib", beta=1.0, active={"0.1": 1.0, "1.0": 2.0}),
        write_run(tmp_path / "full", "full"),
    ]
    return open_runs(folders)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """`write_run` into a folder of this test."""
    return lambda name, *args, **options: write_run(tmp_path / name, *args, **options)
