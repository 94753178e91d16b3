"""The mixture kernels against float64 brute force: compiled where there is a CUDA device, else interpreted."""

from __future__ import annotations

import doctest
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from ibvit_kernels.mixture import host, layouts, sorting
from ibvit_kernels.mixture.direct import direct_components
from ibvit_kernels.mixture.expansion import expand, gemm_channel
from ibvit_kernels.mixture.gemm import FLAG_COMPONENTS, launch_screen
from ibvit_kernels.mixture.host import Mixture

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []
NO_PAIRS = torch.empty(0, 2, dtype=torch.long)
DIRECT_RMS = 1e-5  # nats
GEMM_RMS = layouts.GEMM_ERROR

# sigma, and how far the means are apart
LITTLE = (1.0, 0.2)
MIDDLE = (math.exp(-1.5), 0.5)
MUCH = (math.exp(-5), 1.0)


class Draws(NamedTuple):
    mu: Tensor  # [M, d]
    logvar: Tensor  # [M, d]
    u: Tensor  # [S, d]
    reference: Tensor  # [S] float64


def draws(
    d: int, components: int, samples: int, regime: tuple[float, float], seed: int = 0, offset: float = 0
) -> Draws:
    generator = torch.Generator().manual_seed(seed)
    sigma, spread = regime
    mu = offset + spread * torch.randn(components, d, generator=generator)
    logvar = (2 * math.log(sigma) + 0.4 * torch.randn(components, d, generator=generator)).clamp(-10, 10)
    x = torch.arange(samples) % components
    u = mu[x] + torch.exp(logvar[x] / 2) * torch.randn(samples, d, generator=torch.Generator().manual_seed(seed + 1000))
    reference = log_densities(u, mu, logvar)[torch.arange(samples), x]
    return Draws(*(t.to(DEVICE) for t in (mu, logvar, u, reference)))


def log_densities(u: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """[S, M] float64."""
    distance = (u.double()[:, None] - mu.double()).square() * torch.exp(-logvar.double())
    return -0.5 * (distance + logvar.double() + math.log(2 * math.pi)).sum(2)


def log_ratios(case: Draws) -> Tensor:
    return log_densities(case.u, case.mu, case.logvar) - case.reference[:, None]


def single_sums(case: Draws, form: host.Form) -> Tensor:
    return Mixture([case.mu], [case.logvar], form).log_sums([case.u], [0], [case.reference], NO_PAIRS).single[0]


def rms(error: Tensor) -> float:
    return error.square().mean().sqrt().item()


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody writes reads as NaN, or as a set flag."""
    empty: Callable[..., Tensor] = torch.empty

    def filled(*args: object, **kwargs: object) -> Tensor:
        memory = empty(*args, **kwargs)
        return memory.fill_(math.nan if memory.is_floating_point() else 1)

    monkeypatch.setattr(torch, "empty", filled)


@pytest.mark.parametrize(
    ("d", "components", "samples", "regime"),
    [
        pytest.param(1, 300, 70, LITTLE, id="d1-little"),
        pytest.param(1, 1030, 300, MUCH, id="d1-much-two-paddings-of-components-two-tiles-of-samples"),
        pytest.param(2, 300, 70, MIDDLE, id="d2-middle"),
        pytest.param(2, 2, 1, LITTLE, id="d2-two-components-one-sample"),
        pytest.param(3, 130, 257, MUCH, id="d3-much"),
        pytest.param(8, 130, 70, MIDDLE, id="d8-middle"),
        pytest.param(16, 130, 70, MUCH, id="d16-much"),
        pytest.param(33, 60, 70, LITTLE, id="d33-little"),
        pytest.param(64, 60, 30, MUCH, id="d64-much"),
    ],
)
def test_direct_form(d: int, components: int, samples: int, regime: tuple[float, float]) -> None:
    case = draws(d, components, samples, regime)
    assert rms(single_sums(case, "direct") - log_ratios(case).logsumexp(1)) <= DIRECT_RMS


@pytest.mark.parametrize(
    ("d", "regime"),
    [(1, LITTLE), (3, LITTLE), (8, MIDDLE), (16, LITTLE), (33, LITTLE), (64, LITTLE), (128, (1.0, 0.05))],
)
def test_gemm_form_keeps_its_estimated_error(d: int, regime: tuple[float, float]) -> None:
    case = draws(d, 1030 if d == 16 else 300, 130, regime)
    estimate = layouts.Layout([case.mu], [case.logvar], "gemm")._expansions[0].error
    error = rms(single_sums(case, "gemm") - log_ratios(case).logsumexp(1))
    assert error <= estimate
    assert error >= estimate / 100, "an estimate this pessimistic keeps the tensor cores idle"


@pytest.mark.parametrize(
    ("d", "regime", "form"),
    [
        pytest.param(2, LITTLE, "direct", id="few-dimensions"),
        pytest.param(3, LITTLE, "gemm", id="little-information"),
        pytest.param(64, (1.0, 0.1), "gemm", id="little-information-many-dimensions"),
        pytest.param(3, MUCH, "screen", id="narrow"),
        pytest.param(32, MUCH, "screen", id="narrow-many-dimensions"),
    ],
)
def test_dispatch(d: int, regime: tuple[float, float], form: str) -> None:
    """Tensor cores where their error is allowed; and what is chosen is as good as its form promises."""
    case = draws(d, 60, 60, regime)
    chosen = layouts.Layout([case.mu], [case.logvar])
    assert chosen.form == form
    assert form != "gemm" or chosen._expansions[0].error <= layouts.GEMM_ERROR
    tolerance = GEMM_RMS if form == "gemm" else DIRECT_RMS
    assert rms(single_sums(case, "auto") - log_ratios(case).logsumexp(1)) <= tolerance


def test_gemm_form_would_fail_where_it_is_not_chosen() -> None:
    case = draws(32, 200, 60, MUCH)
    assert rms(single_sums(case, "gemm") - log_ratios(case).logsumexp(1)) > 100 * GEMM_RMS


@pytest.mark.parametrize(("d", "regime"), [(3, MUCH), (16, MIDDLE), (64, MUCH), (128, LITTLE)])
def test_screen_form(d: int, regime: tuple[float, float]) -> None:
    """Beyond 64 dimensions the rounding of float32 sums of d terms shows."""
    case = draws(d, 60, 60, regime)
    assert rms(single_sums(case, "screen") - log_ratios(case).logsumexp(1)) <= DIRECT_RMS * max(1, d / 64)


@pytest.mark.parametrize(
    ("dims", "regimes", "form"),
    [
        pytest.param((1, 2), (MIDDLE, LITTLE), "direct", id="direct-1-2"),
        pytest.param((2, 9), (MUCH, LITTLE), "direct", id="direct-2-9"),
        pytest.param((8, 16), (LITTLE, LITTLE), "gemm", id="gemm-8-16"),
        pytest.param((1, 64), (LITTLE, LITTLE), "gemm", id="gemm-1-64"),
        pytest.param((8, 3), (MUCH, MIDDLE), "screen", id="screen-8-3"),
    ],
)
def test_pairs(dims: Sequence[int], regimes: Sequence[tuple[float, float]], form: host.Form) -> None:
    """Two channels, two columns of the second, one column in no pair; each sum by name."""
    a, b = (draws(d, 60, 70, regime, seed=i) for i, (d, regime) in enumerate(zip(dims, regimes, strict=True)))
    c = b._replace(u=b.u.flip(0), reference=b.reference.flip(0))
    cases = [a, b, c, a]
    channels = Mixture([a.mu, b.mu], [a.logvar, b.logvar], form)
    pairs = torch.tensor([[0, 1], [1, 2]])
    sums = channels.log_sums([k.u for k in cases], [0, 1, 1, 0], [k.reference for k in cases], pairs)
    tolerance = 2 * GEMM_RMS if form == "gemm" else DIRECT_RMS
    terms = [log_ratios(k) for k in cases]
    for i, name in enumerate(("a", "b", "b'", "a alone")):
        assert rms(sums.single[i] - terms[i].logsumexp(1)) <= tolerance, name
    for p, name in enumerate(("a, b", "b, b'")):
        i, j = pairs[p].tolist()
        assert rms(sums.pair[p] - (terms[i] + terms[j]).logsumexp(1)) <= tolerance, name


@pytest.mark.parametrize("form", ["direct", "gemm"])
def test_invariant_to_large_offsets(form: host.Form) -> None:
    case = draws(4, 150, 60, (0.5, 0.3), offset=1000)
    assert rms(single_sums(case, form) - log_ratios(case).logsumexp(1)) <= (GEMM_RMS if form == "gemm" else DIRECT_RMS)


def test_fused_products_only_where_they_are_exact_enough() -> None:
    for d, regime, fused in ((2, MIDDLE, True), (2, (math.exp(-5), 3.0), False), (64, (0.1, 3.0), False)):
        case = draws(d, 200, 10, regime)
        assert layouts.Layout([case.mu], [case.logvar], "direct").fused is fused, f"d = {d}, {regime}"


@pytest.mark.parametrize("regime", [MIDDLE, MUCH])
@pytest.mark.parametrize("d", [1, 3, 16])
def test_skipped_terms_add_up_to_less_than_stated(d: int, regime: tuple[float, float]) -> None:
    """Sums over what the boxes, and then the screen, leave out; and they do leave out much where there is much to."""
    case = draws(d, 1500, 300, regime)
    order = sorting.spatial_order(case.mu, sorting.SORTED_RUN)
    components = sorting.prepare_components(case.mu, case.logvar, order)
    threshold = math.log2(layouts.SKIPPED / components.component_count)
    rows = sorting.spatial_order(case.u, sorting.SAMPLE_TILE)
    u = sorting.pad_samples(case.u[rows])
    reference = sorting.LOG2_E * sorting.pad_samples(case.reference[rows])
    terms = log_ratios(case)[rows][:, order].exp()
    terms = torch.nn.functional.pad(terms, (0, len(components.mu) - components.component_count))

    boxes = sorting.bounding_boxes(components, sorting.COMPONENT_PADDING)
    coarse = sorting.box_flags(u, reference, boxes, threshold)
    channel, _ = gemm_channel(u, reference, expand(components))
    screened = launch_screen(channel, coarse.to(torch.int8), threshold).bool()
    fine = sorting.box_flags(u, reference, sorting.bounding_boxes(components, 64), threshold)
    for flags, width in ((fine, 64), (screened, FLAG_COMPONENTS)):
        kept = flags.repeat_interleave(sorting.SAMPLE_TILE, 0).repeat_interleave(width, 1)[: len(terms)]
        lost = (terms * ~kept).sum(1).max().item()
        assert lost <= layouts.SKIPPED
    if regime == MUCH and d == 1:
        assert fine.float().mean() < 0.6
        assert screened.sum() <= fine.sum()


@pytest.mark.parametrize("shift", [-300.0, -30.0, 60.0])
def test_foreign_references_are_done_again_in_float64(shift: float) -> None:
    """Sums that overflow float32, and sums far below 1, as no sample of these components has."""
    a, b = draws(2, 130, 20, MIDDLE), draws(3, 130, 20, LITTLE, seed=1)
    a.reference[::7] += shift
    prepared = Mixture([a.mu, b.mu], [a.logvar, b.logvar])
    sums = prepared.log_sums([a.u, b.u], [0, 1], [a.reference, b.reference], torch.tensor([[0, 1]]))
    assert torch.allclose(sums.single[0], log_ratios(a).logsumexp(1), atol=1e-5, rtol=0)
    assert torch.allclose(sums.pair[0], (log_ratios(a) + log_ratios(b)).logsumexp(1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", ["gemm", "screen"])
def test_outliers_beyond_float16(form: host.Form) -> None:
    """A sample a thousand sigma away: its features overflow, its sum is done again, its neighbours are well."""
    case = draws(3, 60, 20, LITTLE)
    case.u[3] += 1e3
    case.reference[3] = log_densities(case.u, case.mu, case.logvar)[3, 3]
    assert torch.allclose(single_sums(case, form), log_ratios(case).logsumexp(1), atol=GEMM_RMS, rtol=0)


def test_no_samples() -> None:
    case = draws(2, 10, 1, LITTLE)
    sums = Mixture([case.mu], [case.logvar]).log_sums(
        [case.u[:0]] * 2, [0, 0], [case.reference[:0]] * 2, torch.tensor([[0, 1]])
    )
    assert sums.single.shape == (2, 0)
    assert sums.pair.shape == (1, 0)


def test_equal_components_carry_no_information() -> None:
    case = draws(5, 1, 40, LITTLE)
    prepared = Mixture([case.mu.expand(100, 5)], [case.logvar.expand(100, 5)])
    sums = prepared.log_sums([case.u], [0], [case.reference], NO_PAIRS)
    assert torch.allclose(sums.single, torch.full_like(sums.single, math.log(100)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("form", ["direct", "gemm", "screen"])
def test_repeats_bitwise(form: host.Form) -> None:
    case = draws(3, 150, 60, LITTLE)
    assert torch.equal(single_sums(case, form), single_sums(case, form))


def test_spatial_order_makes_small_boxes() -> None:
    points = torch.rand(1000, 2, generator=torch.Generator().manual_seed(0))
    order = sorting.spatial_order(points, 16)
    assert torch.equal(order.sort().values, torch.arange(1000))
    boxes = points[order][:992].view(62, 16, 2)
    area = (boxes.amax(1) - boxes.amin(1)).prod(1).mean()
    assert area < 2 / 62


def test_direct_components_of_the_same_means_are_exact() -> None:
    """Without fusing, the kernel sees the means as given."""
    case = draws(3, 10, 1, MUCH, offset=100)
    components = sorting.prepare_components(case.mu, case.logvar, torch.arange(10, device=DEVICE))
    assert torch.equal(direct_components(components, fused=False).centre[:, :10], case.mu.T)


@pytest.mark.parametrize(
    ("mu", "logvar", "form", "message"),
    [
        ((10, 2), (10, 3), "auto", r"mu, logvar: expected \[M, d\].*got \[10, 2\] and \[10, 3\]"),
        ((10, 129), (10, 129), "auto", "d from 1 to 128"),
        ((10, 2), (10, 2), "fast", "form: expected one of auto, direct, gemm, screen, got 'fast'"),
    ],
)
def test_wrong_arguments(mu: tuple[int, int], logvar: tuple[int, int], form: host.Form, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mixture([torch.zeros(mu)], [torch.zeros(logvar)], form)


@pytest.mark.parametrize(
    ("u", "error", "message"),
    [
        (torch.zeros(5, 3), ValueError, r"u: expected \[5, 2\] from channel 0, got \[5, 3\]"),
        (torch.zeros(5, 2, dtype=torch.float64), TypeError, "u: expected float32, got torch.float64"),
    ],
)
def test_wrong_samples(u: Tensor, error: type[Exception], message: str) -> None:
    channels = Mixture([torch.zeros(10, 2)], [torch.zeros(10, 2)])
    with pytest.raises(error, match=message):
        channels.log_sums([u], [0], [torch.zeros(5)], NO_PAIRS)


def test_example() -> None:
    assert doctest.testmod(host).failed == 0
