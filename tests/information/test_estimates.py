"""Sampled estimates against truth, the invariants of information, and error bars that hold."""

from __future__ import annotations

import inspect
import math
from dataclasses import fields

import numpy as np
import pytest
import torch

import ibvit
from ibvit.information.backends import open_mixture
from ibvit.information.channel import make_channel
from ibvit.information.estimate import Estimate
from ibvit.information.estimation import BATCHES, Options
from ibvit.information.sampling import Replicates, Sampler, SamplingPlan
from ibvit.information.statistics import mean_and_error, ratio_and_error
from tests.information import truth

LEVELS = {"little": (0.8, 0.0), "middle": (1.0, -1.0), "much": (2.0, -2.5)}
METHODS = ["mc", "stratified"]


def close(estimate: Estimate, expected: float) -> bool:
    """Within what the estimate says about itself."""
    return abs(estimate.value - expected) <= 4.5 * estimate.stderr + estimate.bias_bound + 1e-6


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("spread", "logvar"), LEVELS.values(), ids=LEVELS)
@pytest.mark.parametrize("dims", [1, 3])
def test_information_agrees_with_brute_force(dims: int, spread: float, logvar: float, method: str) -> None:
    mu, rho = truth.channel(7, dims, spread, logvar, seed=3)
    estimate = ibvit.mutual_information(mu, rho, samples=20_000, method=method)
    assert estimate.method == method
    assert close(estimate, truth.information(mu, rho, nodes={1: 90, 3: 18}[dims]))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("spread", "logvar"), LEVELS.values(), ids=LEVELS)
def test_nmi_agrees_with_brute_force(spread: float, logvar: float, method: str) -> None:
    first = truth.channel(8, 1, spread, logvar)
    second = truth.channel(8, 1, spread, logvar, seed=1, like=first[0])
    assert close(ibvit.nmi(first, second, samples=20_000, method=method), truth.nmi(first, second, nodes=60))


@pytest.mark.parametrize("dims", [1, 2, 5])
def test_equal_components_carry_nothing(dims: int) -> None:
    mu, rho = np.ones((30, dims)), np.zeros((30, dims))
    assert ibvit.mutual_information(mu, rho).value == 0
    assert ibvit.mutual_information(mu, rho, samples=500, method="mc").value == pytest.approx(0, abs=1e-6)
    assert math.isnan(ibvit.nmi((mu, rho), (mu, rho)).value)


@pytest.mark.parametrize("dims", [1, 2, 5])
def test_separate_components_carry_log_of_their_number(dims: int) -> None:
    mu = np.random.default_rng(0).permuted(np.arange(64.0).repeat(dims).reshape(64, dims), axis=0)
    rho = np.full_like(mu, -8.0)
    for method in ("auto", "mc"):
        estimate = ibvit.mutual_information(mu, rho, method=method)
        assert estimate.value == pytest.approx(math.log(64), abs=2e-6)
        assert estimate.bits == pytest.approx(6, abs=3e-6)
    assert ibvit.nmi((mu, rho), (mu[:, :1], rho[:, :1])).value == pytest.approx(1, abs=1e-5)


def test_two_clusters_carry_one_bit() -> None:
    """Inputs fall in two clusters of one shape: I is the information about which, whatever their number."""
    mu = np.where(np.arange(400) % 2, 50.0, -50.0)[:, None] * np.ones((1, 4))
    estimate = ibvit.mutual_information(mu, np.zeros_like(mu), tolerance=1e-4)
    assert close(estimate, math.log(2))


def test_linear_gaussian_channel_has_its_closed_form_without_variance() -> None:
    """A Gaussian aggregate makes the Gaussian control variates exact: what is left is the finite number of inputs."""
    rng = np.random.default_rng(0)
    mu = rng.normal(size=(30_000, 3)) * [0.5, 1.0, 0.2]
    rho = np.full_like(mu, math.log(0.25))
    expected = 0.5 * np.log(1 + np.var(mu, axis=0) / 0.25).sum()
    plain = ibvit.mutual_information(mu, rho, samples=600, method="mc")
    controlled = ibvit.mutual_information(mu, rho, samples=600, method="stratified")
    assert controlled.value == pytest.approx(expected, abs=0.01)
    assert controlled.stderr < plain.stderr / 5


@pytest.mark.parametrize(("spread", "logvar"), LEVELS.values(), ids=LEVELS)
def test_invariants(spread: float, logvar: float) -> None:
    """Bounds by the mean KL and log M, chain rules, symmetry, NMI of a channel with itself (DESIGN: Information)."""
    first = truth.channel(60, 4, spread, logvar)
    second = truth.channel(60, 3, spread, logvar, seed=1)

    def information(channel: truth.Parameters) -> Estimate:
        return ibvit.mutual_information(*channel, tolerance=2e-3)

    one, both = information(first), information(truth.joint(first, first))
    slack = 5 * (one.stderr + both.stderr) + one.bias_bound + both.bias_bound
    kl = 0.5 * (np.exp(first[1]) + first[0] ** 2 - 1 - first[1]).sum(1).mean()
    assert -slack <= one.value <= min(kl, math.log(60)) + slack
    assert one.value - slack <= both.value <= 2 * one.value + slack
    forth, back = (ibvit.nmi(*pair, samples=8000) for pair in ((first, second), (second, first)))
    assert abs(forth.value - back.value) <= 5 * (forth.stderr + back.stderr)
    same = ibvit.nmi(first, first, samples=8000)
    assert close(same, 1)


def test_plain_monte_carlo_is_the_authors_definition() -> None:
    """Base 2 and linear space, transcribed, on the same draws."""
    mu, rho = truth.channel(12, 2, 1.0, -1.0)
    channel = make_channel(mu, rho, 0)
    draws = []

    class Recorder(Sampler):
        def _draw(self, x, column, stream):  # type: ignore[no-untyped-def]
            draw = super()._draw(x, column, stream)
            draws.append((draw.u.double().numpy(), x.numpy()))
            return draw

    mixture = open_mixture([channel])
    sampler = Recorder([channel], mixture, SamplingPlan.information(1), stratified=False, control=False, seed=0)
    batches = sampler.empty()
    sampler.extend(batches, 4, 100, stage=0, name="")
    u, x = (np.concatenate(part) for part in zip(*draws, strict=True))
    bits = truth.author_definition(channel.mu.double().numpy(), channel.logvar.double().numpy(), u, x)
    assert float(batches.replicates().full) / math.log(2) == pytest.approx(bits, abs=1e-6)


@pytest.mark.parametrize("quantities", [("I(X;U)",), ("I(U;V)", "NMI")], ids="+".join)
@pytest.mark.parametrize(("spread", "logvar"), LEVELS.values(), ids=LEVELS)
def test_intervals_cover_the_truth(spread: float, logvar: float, quantities: tuple[str, ...]) -> None:
    """Over 200 seeds, value ± 1.96 standard errors holds the truth in 93 to 97 % of the runs."""
    size = 8 * len(quantities)  # inputs, and draws a batch
    first = truth.channel(size, 1, spread, logvar)
    second = truth.channel(size, 1, spread, logvar, seed=1, like=first[0])
    expected = {
        "I(X;U)": lambda: truth.information(*first, nodes=60),
        "I(U;V)": lambda: truth.shared(first, second, nodes=60),
        "NMI": lambda: truth.nmi(first, second, nodes=60),
    }
    channels = [make_channel(*first, 0), make_channel(*second, 0)][: len(quantities)]
    plan = SamplingPlan.shared(2, [(0, 1)]) if len(quantities) == 2 else SamplingPlan.information(1)
    mixture = open_mixture(channels)
    found: dict[str, list[tuple[float, float]]] = {quantity: [] for quantity in quantities}
    for seed in range(200):
        sampler = Sampler(channels, mixture, plan, stratified=True, control=True, seed=seed)
        batches = sampler.empty()
        sampler.extend(batches, BATCHES, size, stage=0, name="")
        replicates = batches.replicates()
        value, error = mean_and_error(replicates)
        found[quantities[0]].append((float(value[-1]), float(error[-1])))
        if "NMI" in found:
            ratio, error = ratio_and_error(replicates, [(0, 1)], 2)
            found["NMI"].append((float(ratio), float(error)))
    for quantity, estimates in found.items():
        values, errors = np.array(estimates).T
        covered = (np.abs(values - expected[quantity]()) <= 1.96 * errors).mean()
        assert 0.93 <= covered <= 0.97, f"{quantity}: {covered:.3f}"


def test_samples_until_the_tolerance() -> None:
    mu, rho = truth.channel(40, 3, 1.0, -1.0)
    for tolerance in (2e-2, 2e-3):
        estimate = ibvit.mutual_information(mu, rho, tolerance=tolerance)
        assert 0 < estimate.stderr <= tolerance
    assert estimate.samples > 5000


def test_same_seed_same_answer_other_seed_another() -> None:
    mu, rho = truth.channel(40, 3, 1.0, -1.0)
    values = [ibvit.mutual_information(mu, rho, samples=500, seed=seed).value for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]


def test_matrix_agrees_with_its_pairs() -> None:
    """Entries integrated, sampled together, undefined, and the layout with other columns."""
    base = truth.channel(30, 3, 1.0, -1.0)
    heads = [
        base,
        truth.channel(30, 1, 1.0, -1.0, seed=1),
        truth.channel(30, 1, 1.0, -1.0, seed=2),
        (np.zeros((30, 2)), np.zeros((30, 2))),
        truth.channel(30, 3, 1.0, -1.0, seed=3, like=base[0]),
    ]
    matrix = ibvit.nmi_matrix(heads, samples=6000)
    assert matrix.method == "quadrature+stratified"
    assert np.array_equal(matrix.value, matrix.value.T, equal_nan=True)
    assert np.isnan(matrix.value[3]).all()
    assert (np.delete(matrix.value.diagonal(), 3) == 1).all()
    assert matrix.stderr[1, 2] == 0
    for a, b in ((0, 1), (0, 4), (1, 2)):
        single = ibvit.nmi(heads[a], heads[b], samples=6000, seed=5)
        error = math.hypot(single.stderr, matrix.stderr[a, b])
        assert abs(single.value - matrix.value[a, b]) <= 4.5 * error + 2 * single.bias_bound

    wide = ibvit.nmi_matrix(heads[:2], heads[2:], samples=6000)
    assert wide.value.shape == (2, 3)
    assert abs(wide.value[0, 2] - matrix.value[0, 4]) <= 4.5 * math.hypot(wide.stderr[0, 2], matrix.stderr[0, 4])


def test_jackknife_of_a_linear_statistic_is_the_error_of_the_mean() -> None:
    """With own informations fixed at 1 the NMI is I(U;V), and its error must be the plain one."""
    terms = torch.ones(50, 3, dtype=torch.float64)
    terms[:, 2] = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    replicates = Replicates(terms.mean(0), (terms.sum(0) - terms) / 49)
    value, error = ratio_and_error(replicates, [(0, 1)], 2)
    assert value.item() == pytest.approx(terms[:, 2].mean().item())
    assert error.item() == pytest.approx(terms[:, 2].std().item() / math.sqrt(50))
    assert mean_and_error(replicates)[1].tolist() == pytest.approx([0, 0, error.item()])


@pytest.mark.parametrize("function", [ibvit.mutual_information, ibvit.nmi, ibvit.nmi_matrix])
def test_options_are_named_alike_with_the_same_defaults(function) -> None:
    parameters = inspect.signature(function).parameters
    stated = {name: each.default for name, each in parameters.items() if each.kind is inspect.Parameter.KEYWORD_ONLY}
    assert stated == {field.name: field.default for field in fields(Options)}
