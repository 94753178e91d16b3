"""The palette: a colour for each palette_position in the spectrum, readable without colour vision."""

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from ibvit.analysis.records import RunIdentity
from ibvit.figures.style import color, palette_position

BETAS = (10.0, 4.0, 1.0, 0.1, 0.01, 0.0)


def run(attention: str, beta: float | None = None, seed: int = 0) -> RunIdentity:
    return {"name": "", "label": "", "attention": attention, "beta": beta, "seed": seed}


SPECTRUM = [run("none"), *(run("ib", beta) for beta in BETAS), run("full")]


def luminance(name: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(name)]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def test_places_rise_along_the_spectrum() -> None:
    places = [palette_position(entry) for entry in SPECTRUM]
    assert places == sorted(places)
    assert (places[0], places[-1]) == (0.0, 1.0)


def test_brightness_alone_tells_the_runs_apart() -> None:
    shades = [luminance(color(entry)) for entry in SPECTRUM]
    assert all(after > before for before, after in itertools.pairwise(shades))


def test_the_seed_does_not_change_the_colour() -> None:
    assert color(run("ib", 1.0, seed=0)) == color(run("ib", 1.0, seed=7))


def test_equal_steps_of_log_beta_are_equal_steps() -> None:
    steps = np.diff([palette_position(run("ib", beta)) for beta in (10.0, 1.0, 0.1, 0.01)])
    assert steps == pytest.approx(steps[0])
