"""The mixture kernels on a CUDA device: rounding of real tensor cores, larger sizes, repeatability, addressing."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.problems import NO_PAIRS, channel, draw, log_ratios, rms
from ibvit_kernels.mixture import host, layouts
from ibvit_kernels.mixture.host import Mixture

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("d", [1, 2, 3, 8, 16, 33, 64, 128])
@pytest.mark.parametrize(
    ("sigma", "spread"),
    [
        pytest.param(1.0, 0.2, id="little"),
        pytest.param(math.exp(-1.5), 0.5, id="middle"),
        pytest.param(math.exp(-5), 1.0, id="much"),
    ],
)
def test_auto_against_float64(d: int, sigma: float, spread: float) -> None:
    mu, logvar = channel(d, 20_011, sigma, spread)
    u, reference = draw(mu, logvar, 1003)
    chosen = layouts.Layout([mu], [logvar])
    got = Mixture([mu], [logvar]).log_sums([u], [0], [reference], NO_PAIRS).single[0]
    error = got - log_ratios(u, mu, logvar, reference).logsumexp(1)
    tolerance = layouts.GEMM_ERROR if chosen.form == "gemm" else 1e-5 * max(1, d / 64)
    assert rms(error) <= tolerance, chosen.form
    assert abs(error.mean()) <= tolerance / 2, "rounding in one direction would bias the information"


@pytest.mark.parametrize("form", ["direct", "gemm", "screen"])
@pytest.mark.parametrize("dims", [(2, 2), (3, 8), (32, 32), (64, 64)])
def test_pairs_against_float64(dims: tuple[int, int], form: host.Form) -> None:
    channels = [channel(d, 5003, 1.0, 0.2, seed=i) for i, d in enumerate(dims)]
    drawn = [draw(mu, logvar, 700, seed=5 + i) for i, (mu, logvar) in enumerate(channels)]
    prepared = Mixture([mu for mu, _ in channels], [logvar for _, logvar in channels], form)
    sums = prepared.log_sums([u for u, _ in drawn], [0, 1], [r for _, r in drawn], torch.tensor([[0, 1]]))
    a, b = (log_ratios(u, mu, logvar, r) for (u, r), (mu, logvar) in zip(drawn, channels, strict=True))
    tolerance = 2 * layouts.GEMM_ERROR
    assert rms(sums.single[0] - a.logsumexp(1)) <= tolerance, "a"
    assert rms(sums.single[1] - b.logsumexp(1)) <= tolerance, "b"
    assert rms(sums.pair[0] - (a + b).logsumexp(1)) <= tolerance, "a, b"


@pytest.mark.parametrize("form", ["direct", "gemm", "screen"])
def test_thirty_runs_are_bitwise_equal(form: host.Form) -> None:
    mu, logvar = channel(8, 20_000, 1.0, 0.3)
    u, reference = draw(mu, logvar, 5000)
    runs = [Mixture([mu], [logvar], form).log_sums([u], [0], [reference], NO_PAIRS).single for _ in range(30)]
    assert all(torch.equal(run, runs[0]) for run in runs)


def test_more_elements_than_an_int32_counts() -> None:
    """2^24 components of 128 dimensions, far apart: a sample at a mean meets that component alone."""
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < 110 * 2**30:
        pytest.skip("needs 110 GiB of free device memory")
    components = (1 << 24) + 1024
    mu = torch.randn(components, 128, generator=torch.Generator("cuda").manual_seed(0), device="cuda")
    logvar = torch.full_like(mu, -8.0)
    x = torch.arange(512, device="cuda") * (components // 512)
    reference = torch.full((512,), 128 * (4 - 0.5 * math.log(2 * math.pi)), dtype=torch.float64, device="cuda")
    single = Mixture([mu], [logvar], "direct").log_sums([mu[x]], [0], [reference], NO_PAIRS).single
    assert single.abs().max() <= 1e-5


@pytest.mark.parametrize("d", [2, 32])
def test_memory_stays_within_what_is_stated(d: int) -> None:
    mu, logvar = channel(d, 100_000, 1.0, 0.2)
    u, reference = draw(mu, logvar, 2 * layouts.SAMPLES_AT_ONCE)
    prepared = Mixture([mu], [logvar])
    prepared.log_sums([u[:1000]], [0], [reference[:1000]], NO_PAIRS)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = prepared.log_sums([u], [0], [reference], NO_PAIRS).single
    assert torch.cuda.max_memory_allocated() - before <= layouts.WORKSPACE_BYTES + 4 * result.nbytes
