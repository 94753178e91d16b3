"""The spectrum of constructed runs, and its slope and Pareto front on constructed points."""

import numpy as np
import pytest

from ibvit.analysis.records import Records, RunIdentity
from ibvit.analysis.spectrum import Spectrum, spectrum
from tests.analysis.constructed import PATCHES


def at(nats: list[float], accuracy: list[float]) -> Spectrum:
    runs: list[RunIdentity] = [
        {"name": f"run{k}", "label": "", "attention": "none" if x == 0 else "full" if np.isinf(x) else "ib",
         "beta": 1.0 if 0 < x < np.inf else None, "seed": 0}
        for k, x in enumerate(nats)
    ]  # fmt: skip
    return Spectrum(runs, np.array(nats), np.array(accuracy), np.zeros(len(nats)), *np.zeros((2, len(nats)), int), 1)


def test_information_of_constructed_runs(spectrum_runs: list[Records]) -> None:
    result = spectrum(spectrum_runs)
    # half of the images spend on one of their 16 patches: 0.5 nats in one head, or 1 + 2 nats in two
    expected = [0.0, 0.5 / (2 * PATCHES), 0.5 / (2 * PATCHES), 3.0 / (2 * PATCHES), np.inf]
    np.testing.assert_allclose(result.nats_per_patch, expected)
    assert result.active_heads.tolist() == [0, 1, 1, 2, 0]
    np.testing.assert_allclose(result.accuracy, 1.0)
    assert result.passes == 3


def test_accuracy_is_mean_and_deviation_over_passes(make_run) -> None:
    folder = make_run("run", "ib", beta=1.0)
    records = Records.open(folder)
    records.logits[0] = 0  # the copy in memory alone: every image is classified as class 0
    result = spectrum([records])
    wrong = np.mean(records.labels == 0)
    assert result.accuracy[0] == pytest.approx((2 + wrong) / 3)
    assert result.accuracy_std[0] == pytest.approx(np.std([wrong, 1, 1], ddof=1))


def test_pareto_front_keeps_runs_that_none_beats() -> None:
    result = at([0.0, 0.1, 0.5, 1.0, np.inf], [0.5, 0.6, 0.55, 0.7, 0.7])
    assert result.pareto.tolist() == [True, True, False, True, False]


def test_slope_of_a_straight_line() -> None:
    nats = np.exp([-2.0, 0.0, 1.0])
    slope, error = at([0.0, *nats, np.inf], [0.1, *(0.7 + 0.02 * np.log(nats)), 0.9]).slope()
    assert slope == pytest.approx(0.02)
    assert error == pytest.approx(0.0, abs=1e-9)


def test_slope_and_error_agree_with_scipy() -> None:
    from scipy.stats import linregress

    nats, accuracy = np.array([0.01, 0.1, 0.5, 2.0, 9.0]), np.array([0.61, 0.66, 0.64, 0.7, 0.75])
    expected = linregress(np.log(nats), accuracy)
    assert at(list(nats), list(accuracy)).slope() == pytest.approx((expected.slope, expected.stderr))


def test_slope_needs_two_runs() -> None:
    assert np.isnan(at([0.0, 1.0], [0.5, 0.6]).slope()).all()
