"""Heads of constructed runs: survival, activity, latents."""

import numpy as np

from ibvit.analysis.heads import Heads, heads, mean_active_heads, strongest_heads, survival
from ibvit.analysis.records import Records
from tests.analysis.constructed import PATCHES


def test_survival_of_an_exponential() -> None:
    kl = np.random.default_rng(0).exponential(scale=2.0, size=200_000)
    nats = np.array([0.1, 1.0, 4.0])
    np.testing.assert_allclose(survival(kl, nats), np.exp(-nats / 2), atol=4e-3)


def test_constructed_heads(spectrum_runs: list[Records]) -> None:
    result = heads(spectrum_runs[3])
    share = 1 / (2 * PATCHES)  # one patch of every other image
    assert result.active.tolist() == [[False, True], [True, False]]
    assert result.active_latents.tolist() == [[0, 1], [1, 0]]
    np.testing.assert_allclose(result.mean_kl, [[0, share], [2 * share, 0]])
    assert result.survival[0, 0].max() == 0
    np.testing.assert_allclose(result.survival[1, 0], share)
    below = result.nats <= 1.0
    np.testing.assert_allclose(result.survival[0, 1], np.where(below, share, 0))


def test_strongest_head_comes_first(spectrum_runs: list[Records]) -> None:
    assert strongest_heads(spectrum_runs[3]) == ["1.0", "0.1"]


def test_a_head_that_spends_on_few_patches_is_active_but_does_not_speak(make_run) -> None:
    records = Records.open(make_run("run", "ib", active={"0.1": 0.1, "1.0": 0.5}))  # on one patch of 32
    assert strongest_heads(records) == ["1.0", "0.1"]
    assert mean_active_heads(records) == ["1.0"]
    assert mean_active_heads(Records.open(make_run("full", "full"))) == []


def test_round_trip(spectrum_runs: list[Records], tmp_path) -> None:
    result = heads(spectrum_runs[1])
    result.save(tmp_path / "heads")
    loaded = Heads.load(tmp_path / "heads")
    assert loaded.run == result.run
    np.testing.assert_array_equal(loaded.active, result.active)
    assert len((tmp_path / "heads.csv").read_text().splitlines()) == 1 + 4
