"""Quadrature: against Gauss–Hermite sums over every component, closed forms, and the sampler."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import trapezoid

import ibvit
from tests.information import truth

LEVELS = {"little": (0.1, 0.0), "middle": (1.0, -2.0), "much": (2.0, -4.0)}
EXACT = 1e-6  # nats, what the method promises


@pytest.mark.parametrize(("spread", "logvar"), LEVELS.values(), ids=LEVELS)
@pytest.mark.parametrize("dims", [1, 2])
def test_information_is_exact(dims: int, spread: float, logvar: float) -> None:
    mu, rho = truth.channel(9, dims, spread, logvar)
    estimate = ibvit.mutual_information(mu, rho, idle_nats=0)
    assert estimate.method == "quadrature"
    assert (estimate.stderr, estimate.samples) == (0, 0)
    assert estimate.value == pytest.approx(truth.information(mu, rho, nodes=120 if dims == 1 else 90), abs=EXACT)


@pytest.mark.parametrize(("spread", "logvar"), LEVELS.values(), ids=LEVELS)
def test_nmi_is_exact(spread: float, logvar: float) -> None:
    first = truth.channel(9, 1, spread, logvar)
    second = truth.channel(9, 1, spread, logvar - 0.5, seed=1, like=first[0])
    estimate = ibvit.nmi(first, second, idle_nats=0)
    assert estimate.method == "quadrature"
    assert estimate.value == pytest.approx(truth.nmi(first, second, nodes=90), abs=estimate.bias_bound)


def test_widths_over_three_octaves_in_one_channel() -> None:
    """Idle inputs at σ = 1 beside active ones at σ = e^-4: several grids are brought together."""
    rng = np.random.default_rng(0)
    active = rng.random((60, 1)) < 0.3
    mu = np.where(active, rng.normal(size=(60, 1)), 0.01 * rng.normal(size=(60, 1)))
    rho = np.where(active, rng.uniform(-8, -5, (60, 1)), 0.05 * rng.normal(size=(60, 1)))
    u = np.linspace(-12, 12, 400_001)
    density = np.exp(truth.log_densities(u[:, None], mu, rho)).mean(1)
    entropy = -trapezoid(density * np.log(density.clip(1e-300)), u)
    expected = entropy - 0.5 * rho.mean() - 0.5 * math.log(2 * math.pi * math.e)
    assert ibvit.mutual_information(mu, rho, idle_nats=0).value == pytest.approx(expected, abs=EXACT)


def test_linear_gaussian_channel_has_its_closed_form() -> None:
    """Means at equally likely quantiles of N(0, s²) and one σ: I → ½ log(1 + s²/σ²)."""
    from scipy.stats import norm

    mu = norm.ppf((np.arange(20_000) + 0.5) / 20_000)[:, None]
    rho = np.full_like(mu, math.log(0.5))
    assert ibvit.mutual_information(mu, rho).value == pytest.approx(0.5 * math.log(1 + 1 / 0.5), abs=1e-4)


def test_is_invariant_to_shift_scale_and_order() -> None:
    mu, rho = truth.channel(50, 2, 1.0, -2.0)
    value = ibvit.mutual_information(mu, rho).value
    scaled = ibvit.mutual_information(7 * mu[::-1] + 100, rho[::-1] + 2 * math.log(7)).value
    assert scaled == pytest.approx(value, abs=EXACT)


def test_a_channel_resembles_itself_and_nmi_is_symmetric() -> None:
    first, second = truth.channel(40, 1, 1.0, -2.0), truth.channel(40, 1, 0.5, -1.0, seed=1)
    assert ibvit.nmi(first, first).value == pytest.approx(1, abs=1e-9)
    assert ibvit.nmi(first, second).value == pytest.approx(ibvit.nmi(second, first).value, abs=1e-9)


def test_refuses_by_name_and_steps_aside_by_itself() -> None:
    mu, rho = truth.channel(20, 3, 1.0, -2.0)
    with pytest.raises(ValueError, match="at most 2 active dimensions, got 3"):
        ibvit.mutual_information(mu, rho, method="quadrature")
    needle = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), np.full((3, 2), -20.0)
    with pytest.raises(ValueError, match="too narrow"):
        ibvit.mutual_information(*needle, method="quadrature")
    assert ibvit.mutual_information(*needle, samples=64).method == "stratified"
