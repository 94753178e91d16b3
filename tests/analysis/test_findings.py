"""The checks of `make spectrum`: they hold on a spectrum as the paper describes it, and fail on others."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import spectrum as command
from benchmarks.recording import validate_row
from benchmarks.spectrum import PLANS, Finding, check_spectrum, check_survivors, finding_rows, run_rows
from ibvit.analysis.records import Records, RunIdentity
from ibvit.analysis.spectrum import Spectrum, spectrum
from tests.analysis.constructed import changed


def constructed(nats: list[float], accuracy: list[float], active: list[int]) -> Spectrum:
    """Runs at β = 10, 1, 0.1, between the two ends."""
    betas = [None, 10.0, 1.0, 0.1, None]
    kinds = ["none", "ib", "ib", "ib", "full"]
    runs: list[RunIdentity] = [
        {"name": f"{kind}{beta}", "label": "", "attention": kind, "beta": beta, "seed": 0}
        for kind, beta in zip(kinds, betas, strict=True)
    ]
    ends = [0.0, *nats, np.inf]
    heads = np.array([0, *active, 0])
    return Spectrum(runs, np.array(ends), np.array([0.5, *accuracy, 1.0]), np.zeros(5), heads, heads, 10)


AS_IN_THE_PAPER = constructed([0.1, 1.0, 10.0], [0.6, 0.7, 0.8], [1, 2, 4])


def holds(result: Spectrum) -> list[bool]:
    return [bool(finding.holds) for finding in check_spectrum(result, (0,))]


def test_they_hold_on_such_a_spectrum() -> None:
    assert holds(AS_IN_THE_PAPER) == [True, True, True]
    (measured,) = check_spectrum(AS_IN_THE_PAPER, (0,))[1].measured
    assert abs(measured["accuracy_percent_per_e_fold"] - 10 / np.log(10)) < 1e-9


def assert_follow_the_schema(findings: list[Finding]) -> None:
    for row in finding_rows(findings):
        validate_row(row, {"share_shifted_the_common_way": "higher"})


def test_rows_follow_the_schema(spectrum_runs: list[Records]) -> None:
    rows = run_rows("constructed", spectrum(spectrum_runs))
    assert [row["beta"] for row in rows] == [None, 10.0, 10.0, 1.0, None]
    assert [row["nats_per_patch"] is None for row in rows] == [False] * 4 + [True]
    for row in rows:
        validate_row(row, {})
    assert_follow_the_schema(check_spectrum(AS_IN_THE_PAPER, (0,)))


def test_each_fails_where_it_should() -> None:
    assert holds(replace(AS_IN_THE_PAPER, nats_per_patch=np.array([0, 1.0, 0.1, 10.0, np.inf])))[0] is False
    assert holds(replace(AS_IN_THE_PAPER, accuracy=np.array([0.5, 0.8, 0.7, 0.6, 1.0])))[1] is False
    assert holds(replace(AS_IN_THE_PAPER, active_heads=np.array([0, 4, 2, 1, 0])))[2] is False
    assert holds(replace(AS_IN_THE_PAPER, active_heads=np.array([0, 4, 4, 4, 0])))[2] is False
    assert holds(replace(AS_IN_THE_PAPER, mean_active_heads=np.array([0, 1, 4, 2, 0])))[2] is False


def test_active_heads_are_asked_for_their_trend_only() -> None:
    assert holds(replace(AS_IN_THE_PAPER, active_heads=np.array([0, 1, 4, 3, 0])))[2] is True


def survivors(
    runs: list[Records], accuracy: list[float], shift: list[float], monkeypatch: pytest.MonkeyPatch
) -> list[bool]:
    """The checks on `spectrum_runs` with other accuracies and another response to copies: does each hold?"""
    moved = np.array(shift)[None, :, None] + 0.1 * np.random.default_rng(0).normal(size=(1, 2, 100))
    probe = SimpleNamespace(copies=np.array([4, 16]), shift=moved, effect=lambda: moved.mean(axis=2))
    monkeypatch.setattr(command, "copy_paste", lambda run, names: probe)
    result = replace(spectrum(runs), accuracy=np.array(accuracy))
    found = check_survivors(runs, result, (0, 1))
    assert_follow_the_schema(found)
    return [finding.holds for finding in found]


def test_survivors(spectrum_runs: list[Records], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seeds at β = 10 send the same message; they count where they are better than no attention by five points."""
    helped = [0.5, 0.6, 0.6, 0.8, 1.0]
    assert survivors(spectrum_runs, helped, [-1.0, -2.0], monkeypatch) == [True, True]
    assert survivors(spectrum_runs, helped, [-2.0, -1.0], monkeypatch) == [False, True]  # less to more copies
    assert survivors(spectrum_runs, helped, [-0.1, -0.2], monkeypatch) == [False, True]  # hardly anything
    assert survivors(spectrum_runs, [0.5, 0.6, 0.52, 0.8, 1.0], [-1.0, -2.0], monkeypatch) == [False]


def test_survivors_that_share_nothing(spectrum_runs: list[Records], monkeypatch: pytest.MonkeyPatch) -> None:
    other = spectrum_runs[2]
    with changed(other.run, "mu") as mu:
        mu[:, :, 5, 1] = 0
        mu[:, :, :8, 1] = 3.0  # where in the image, not in which image
    spectrum_runs[2] = Records.open(other.run)
    assert survivors(spectrum_runs, [0.5, 0.6, 0.6, 0.8, 1.0], [-1.0, -2.0], monkeypatch) == [True, False]


def test_both_embedded_data_sets_are_swept() -> None:
    assert set(PLANS) == {"repetition", "digits"}
    assert len(PLANS["repetition"].seeds) >= 2
