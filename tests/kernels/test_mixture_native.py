"""The CPU library against float64 sums, for every instruction set that this machine runs."""

from __future__ import annotations

import _ctypes
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ibvit_kernels import library
from ibvit_kernels.mixture import native
from tests.needs import needs_library

pytestmark = needs_library
SETS = library.instruction_sets() if library.why_absent() is None else []
NO_PAIRS = np.empty((0, 2), np.int64)
LITTLE, MIDDLE, MUCH, NARROWEST = (0.1, 0.0), (1.0, -1.0), (1.0, -5.0), (1.0, -10.0)


class Case:
    """A channel, draws from it, and their reference; shapes with remainders in every loop."""

    def __init__(self, dims: int, spread: float, logvar: float, *, components: int = 1037, samples: int = 77) -> None:
        rng = np.random.default_rng(dims)
        self.mu = (spread * rng.normal(size=(components, dims))).astype(np.float32)
        self.logvar = (logvar + 0.3 * rng.normal(size=(components, dims))).astype(np.float32)
        x = rng.integers(components, size=samples)
        noise = rng.normal(size=(samples, dims))
        self.u = (self.mu[x] + np.exp(0.5 * self.logvar[x]) * noise).astype(np.float32)
        self.reference = self.log_densities()[np.arange(samples), x]

    def log_densities(self) -> NDArray[np.float64]:
        """`[S, M]` in float64."""
        total = np.zeros((len(self.u), len(self.mu)))
        for u, mu, rho in zip(*(a.T.astype(np.float64) for a in (self.u, self.mu, self.logvar)), strict=True):
            total -= 0.5 * ((u[:, None] - mu) ** 2 * np.exp(-rho) + rho + np.log(2 * np.pi))
        return total

    def log_ratios(self) -> NDArray[np.float64]:
        return self.log_densities() - self.reference[:, None]


def log_sum(terms: NDArray[np.float64]) -> NDArray[np.float64]:
    largest = terms.max(1, keepdims=True)
    return largest[:, 0] + np.log(np.exp(terms - largest).sum(1))


def run(cases: list[Case], pairs: Any = NO_PAIRS, **options: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    mixture = native.Mixture([c.mu for c in cases], [c.logvar for c in cases])
    columns = range(len(cases))
    return mixture.log_sums([c.u for c in cases], columns, [c.reference for c in cases], np.asarray(pairs), **options)


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize(
    ("dims", "regime"),
    [
        (1, LITTLE),
        (2, MIDDLE),
        (3, MUCH),
        (4, MIDDLE),
        (5, MUCH),
        (16, LITTLE),
        (32, MIDDLE),
        (32, MUCH),
        (64, NARROWEST),
    ],
)
def test_agrees_with_float64(dims: int, regime: tuple[float, float], instruction_set: str) -> None:
    """rms of at most 1e-5 nats, down to σ = e^-5 and up to d = 64."""
    case = Case(dims, *regime)
    single, _ = run([case], instruction_set=instruction_set)
    error = single[0] - log_sum(case.log_ratios())
    assert np.sqrt((error**2).mean()) < 1e-5
    assert abs(error.mean()) < 5e-6


@pytest.mark.parametrize("instruction_set", SETS)
def test_pairs_agree_with_float64(instruction_set: str) -> None:
    cases = [Case(2, *MIDDLE), Case(3, *LITTLE), Case(1, *MUCH)]
    pairs = [(0, 1), (2, 0), (1, 1)]
    single, pair = run(cases, pairs, instruction_set=instruction_set)
    for row, (a, b) in zip(pair, pairs, strict=True):
        assert row == pytest.approx(log_sum(cases[a].log_ratios() + cases[b].log_ratios()), abs=3e-6)
    for row, case in zip(single, cases, strict=True):
        assert row == pytest.approx(log_sum(case.log_ratios()), abs=3e-6)


@pytest.mark.parametrize("instruction_set", SETS)
def test_exponential_error_is_as_stated(instruction_set: str) -> None:
    """One component, seen from its mean with a reference of −y log 2, gives 2^y alone."""
    exponent = np.arange(-60 * 512, 45 * 512) / 512  # exact in float32
    mu = np.zeros((1, 1), np.float32)
    reference = -exponent * np.log(2) - 0.5 * np.log(2 * np.pi)
    single, _ = native.Mixture([mu], [mu]).log_sums(
        [np.zeros((len(exponent), 1), np.float32)], [0], [reference], NO_PAIRS, instruction_set=instruction_set
    )
    relative = np.expm1(single[0] - exponent * np.log(2))
    assert np.abs(relative).max() < 2.5e-7
    assert (single[0][exponent == 0] == 0).all()


@pytest.mark.parametrize("instruction_set", SETS)
def test_outliers_neither_overflow_nor_vanish(instruction_set: str) -> None:
    """References far from the truth, either way; and pairs whose factors leave float32 while their product does not."""
    wide, narrow = Case(2, *MIDDLE, samples=40), Case(2, *MIDDLE, samples=40)
    wide.reference = wide.reference - 150
    narrow.reference = narrow.reference + 150
    single, pair = run([wide, narrow], [(0, 1)], instruction_set=instruction_set)
    assert single[0] == pytest.approx(log_sum(wide.log_ratios()), abs=1e-5)
    assert pair[0] == pytest.approx(log_sum(wide.log_ratios() + narrow.log_ratios()), abs=1e-5)


def test_duplicates_and_single_samples() -> None:
    """Equal components add up exactly; fewer samples than lanes; fewer components than a block."""
    mu, zero = np.zeros((5, 3), np.float32), np.zeros((1, 3), np.float32)
    reference = np.full(1, -1.5 * np.log(2 * np.pi))
    mixture = native.Mixture([mu], [mu])
    single, pair = mixture.log_sums([zero, zero], [0, 0], [reference, reference], np.array([[0, 1]]))
    assert single == pytest.approx(np.log(5), abs=1e-7)
    assert pair == pytest.approx(np.log(5), abs=1e-7)
    assert mixture.log_sums([zero[:0]], [0], [reference[:0]], NO_PAIRS)[0].shape == (1, 0)


def test_repeats_bitwise_whatever_the_threads() -> None:
    cases = [Case(3, *MIDDLE, samples=700), Case(7, *MIDDLE, samples=700)]
    first = run(cases, [(0, 1)], threads=1)
    for threads in (1, 2, 3, 5):
        for one, other in zip(first, run(cases, [(0, 1)], threads=threads), strict=True):
            assert np.array_equal(one, other)


def test_errors_name_the_argument() -> None:
    case = Case(2, *MIDDLE)
    mixture = native.Mixture([case.mu], [case.logvar])
    with pytest.raises(ValueError, match=r"u\[0\]: expected float32 \[77, 2\], got float64"):
        mixture.log_sums([case.u.astype(np.float64)], [0], [case.reference], NO_PAIRS)
    with pytest.raises(ValueError, match=r"reference\[0\]: expected float64 \[77\]"):
        mixture.log_sums([case.u], [0], [case.reference[:5]], NO_PAIRS)
    with pytest.raises(ValueError, match="pairs: expected"):
        mixture.log_sums([case.u], [0], [case.reference], np.array([[0, 1]]))
    with pytest.raises(ValueError, match="instruction_set: expected one of"):
        mixture.log_sums([case.u], [0], [case.reference], NO_PAIRS, instruction_set="mmx")
    with pytest.raises(ValueError, match=r"logvar\[0\]: expected float32 \[1037, 2\]"):
        native.Mixture([case.mu], [case.logvar[:, :1]])


def test_says_why_it_is_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library._find.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(library, "_candidates", lambda: iter([tmp_path / "ibvit_native.so"]))
            assert "was not built" in (library.why_absent() or "")
            library._find.cache_clear()
            (tmp_path / "ibvit_native.so").write_text("not a library")
            assert "ibvit_native.so" in (library.why_absent() or "")
            with pytest.raises(RuntimeError, match="CPU library of ibvit_kernels is not available"):
                library.instruction_sets()
            library._find.cache_clear()
            shutil.copy(_ctypes.__file__, tmp_path / "ibvit_native.so")  # a library, but not ours
            assert "of another version" in (library.why_absent() or "")
    finally:
        library._find.cache_clear()
    assert library.why_absent() is None
