"""The checks of `make spectrum`: they hold on a spectrum as the paper describes it, and fail on others."""

from dataclasses import replace

import numpy as np

from benchmarks.spectrum import PLANS, check_spectrum
from ibvit.analysis.records import RunIdentity
from ibvit.analysis.spectrum import Spectrum


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
    measured = check_spectrum(AS_IN_THE_PAPER, (0,))[1].measured
    assert abs(measured["points per factor e"] - 10 / np.log(10)) < 1e-9


def test_each_fails_where_it_should() -> None:
    assert holds(replace(AS_IN_THE_PAPER, nats_per_patch=np.array([0, 1.0, 0.1, 10.0, np.inf])))[0] is False
    assert holds(replace(AS_IN_THE_PAPER, accuracy=np.array([0.5, 0.8, 0.7, 0.6, 1.0])))[1] is False
    assert holds(replace(AS_IN_THE_PAPER, active_heads=np.array([0, 4, 2, 1, 0])))[2] is False
    assert holds(replace(AS_IN_THE_PAPER, active_heads=np.array([0, 4, 4, 4, 0])))[2] is False


def test_both_embedded_data_sets_are_swept() -> None:
    assert set(PLANS) == {"repetition", "digits"}
    assert len(PLANS["repetition"].seeds) >= 2
