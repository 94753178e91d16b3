"""Checks of the input, files, and the certificate of dropped dimensions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ibvit
from ibvit.information import load_channel
from ibvit.information.channel import MAX_LOGVAR, MAX_RATIO, make_channel
from tests.information import truth

GOOD = np.zeros((4, 2))
NAN = np.array([[0.0, 0.0], [0.0, np.nan], [0.0, 0.0], [0.0, 0.0]])


@pytest.mark.parametrize(
    ("mu", "logvar", "error", "message"),
    [
        ([[0.0]], GOOD, TypeError, "mu: expected a torch tensor or a numpy array, got list"),
        (GOOD.astype(np.float16), GOOD, TypeError, "mu: expected float32 or float64, got float16"),
        (GOOD, torch.zeros(4, 2, dtype=torch.int64), TypeError, "logvar: expected float32 or float64, got int64"),
        (GOOD[0], GOOD, ValueError, r"mu: expected \[components ≥ 2, dimensions ≥ 1\], got shape \(2,\)"),
        (GOOD[:1], GOOD[:1], ValueError, r"mu: expected \[components ≥ 2"),
        (GOOD, GOOD[:, :1], ValueError, r"logvar: expected the shape of mu, \(4, 2\), got \(4, 1\)"),
        (NAN, GOOD, ValueError, r"mu: expected finite values, got nan at \[1, 1\]"),
        (GOOD, GOOD * np.nan, ValueError, r"logvar: expected finite values, got nan at \[0, 0\]"),
        (np.ma.masked_less(GOOD, 0), GOOD, TypeError, "mu: expected an array without a mask, got MaskedArray"),
        (
            torch.zeros(4, 2).to_sparse(),
            GOOD,
            TypeError,
            "mu: expected a dense tensor with values, got a sparse_coo tensor",
        ),
        (GOOD, torch.zeros(4, 2, device="meta"), TypeError, "logvar: expected a dense tensor with values, got a meta"),
        (GOOD, GOOD + MAX_LOGVAR + 1, ValueError, "logvar: expected ln σ² within ±60, got a magnitude of 61"),
    ],
    ids=[
        "list",
        "float16",
        "integers",
        "vector",
        "one input",
        "shapes differ",
        "nan mu",
        "nan logvar",
        "masked",
        "sparse",
        "meta",
        "too wide",
    ],
)
def test_bad_parameters_are_named(mu: Any, logvar: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ibvit.mutual_information(mu, logvar)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 1}, "samples: expected at least 2, got 1"),
        ({"method": "exact"}, "method: expected one of auto, mc, stratified, quadrature, got 'exact'"),
        ({"tolerance": 0}, "tolerance: expected a finite number of at least 1e-12, got 0"),
        ({"idle_nats": -1}, "idle_nats: expected a finite number of at least 0, got -1"),
        ({"impl": "cuda"}, "impl: expected one of auto, native, triton, torch, got 'cuda'"),
        ({"threads": 0}, "threads: expected at least 1, got 0"),
        ({"threads": 1.5}, "threads: expected a whole number, got 1.5"),
        ({"threads": 2**63}, "threads: expected at most 4096, got 9223372036854775808"),
        ({"tolerance": 1e-300}, "tolerance: expected a finite number of at least 1e-12, got 1e-300"),
        ({"tolerance": "1"}, "tolerance: expected a number, got '1'"),
        ({"samples": 1e6}, "samples: expected a whole number, got 1000000.0"),
        ({"samples": 2**63}, "samples: expected at most 10000000000, got 9223372036854775808"),
        ({"seed": None}, "seed: expected a whole number, got None"),
        ({"impl": []}, r"impl: expected one of auto, native, triton, torch, got \[\]"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}$"):
        ibvit.mutual_information(GOOD, GOOD, **options)


TOO_FINE = {
    "an offset between groups": (np.r_[0:200, 1e6 + 0.01 * np.arange(200)][:, None], 0.01),
    "two far groups": (np.r_[0:200, 1e8 + np.arange(200)][:, None], 0.1),
    "narrow in three dimensions": (np.array([[1e3] * 3, [-1e3] * 3, [1e3 + 1e-4] * 3, [-1e3 + 1e-4] * 3]), 1e-4),
}


@pytest.mark.parametrize(("mu", "sigma"), TOO_FINE.values(), ids=TOO_FINE)
def test_means_that_float32_cannot_tell_apart_are_refused(mu: np.ndarray, sigma: float) -> None:
    with pytest.raises(
        ValueError, match=r"^mu: expected means within 65536 σ of their average, .* got .* σ at \[\d+, \d\]$"
    ):
        ibvit.mutual_information(mu, np.full_like(mu, 2 * np.log(sigma)), samples=100)


def test_means_at_the_limit_of_float32_are_right() -> None:
    """Two groups, each near 2¹⁶ σ from the average: beside one bit more, as informative as one group at 0."""
    near, rho = truth.channel(100, 1, 1.0, 0.0)
    shift = 0.99 * MAX_RATIO * np.exp(0.5 * rho.min())
    mu = np.concatenate([near - near.mean() - shift, near - near.mean() + shift])
    estimate = ibvit.mutual_information(mu, np.concatenate([rho, rho]), samples=20_000)
    expected = truth.information(near, rho, nodes=90) + np.log(2)
    assert abs(estimate.value - expected) <= 1e-4


def test_channels_that_do_not_fit_together_are_named() -> None:
    with pytest.raises(ValueError, match="second: expected 4 inputs like the others, got 5"):
        ibvit.nmi((GOOD, GOOD), (np.zeros((5, 2)), np.zeros((5, 2))))
    with pytest.raises(TypeError, match=r"channels\[1\]: expected a pair \(mu, logvar\), got ndarray"):
        ibvit.nmi_matrix([(GOOD, GOOD), GOOD])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"channels\[0\]\.mu: expected finite values"):
        ibvit.nmi_matrix([(NAN, GOOD)])
    with pytest.raises(ValueError, match="channels: expected at least one channel, got none"):
        ibvit.nmi_matrix([])
    for given in (None, 3, GOOD, "ab"):
        with pytest.raises(TypeError, match=r"^channels: expected a list of pairs \(mu, logvar\), got"):
            ibvit.nmi_matrix(given)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^others: expected a list of pairs \(mu, logvar\), got 3$"):
        ibvit.nmi_matrix([(GOOD, GOOD)], 3)  # type: ignore[arg-type]


def test_every_kind_of_array_gives_the_same(tmp_path: Path) -> None:
    """numpy and torch, both precisions, both file formats, memory-mapped, another memory order."""
    from safetensors.numpy import save_file

    mu, rho = (a.astype(np.float32) for a in truth.channel(200, 2, 1.0, -2.0))
    np.savez(tmp_path / "head.npz", mu=mu, logvar=rho, labels=np.arange(3))
    save_file({"mu": mu, "logvar": rho}, tmp_path / "head.safetensors")
    np.save(tmp_path / "mu.npy", mu)
    mapped = np.load(tmp_path / "mu.npy", mmap_mode="r")
    inputs: list[tuple[Any, Any]] = [
        (mu.astype(np.float64), rho.astype(np.float64)),
        (torch.from_numpy(mu), torch.from_numpy(rho)),
        (np.asfortranarray(mu), rho),
        (mapped, rho),
        load_channel(tmp_path / "head.npz"),
        load_channel(tmp_path / "head.safetensors"),
    ]
    expected = ibvit.mutual_information(mu, rho).value
    for pair in inputs:
        assert ibvit.mutual_information(*pair).value == pytest.approx(expected, abs=1e-9)


def test_files_are_checked(tmp_path: Path) -> None:
    np.savez(tmp_path / "half.npz", mu=GOOD)
    with pytest.raises(ValueError, match=r"half.npz: expected arrays mu and logvar, missing logvar"):
        load_channel(tmp_path / "half.npz")
    with pytest.raises(ValueError, match=r"expected a .npz or .safetensors file, got 'head.csv'"):
        load_channel(tmp_path / "head.csv")
    for given, error in ((None, TypeError), (3, TypeError), ("", ValueError), ("a\0.npz", ValueError)):
        with pytest.raises(error, match=r"^path: expected a path, got"):
            load_channel(given)  # type: ignore[arg-type]


def test_idle_dimensions_go_with_a_certificate() -> None:
    """I(X;U_A) ≤ I(X;U) ≤ I(X;U_A) + bias_bound, on a channel whose idle dimension still says something."""
    mu, rho = truth.channel(12, 2, 1.0, -2.0)
    mu[:, 1] *= 0.01
    rho[:, 1] = 0.02 * rho[:, 1]
    whole = truth.information(mu, rho, nodes=60)
    estimate = ibvit.mutual_information(mu, rho, idle_nats=1e-2)
    assert 0 < estimate.bias_bound <= 1e-2 + 1e-6
    assert estimate.value == pytest.approx(truth.information(mu[:, :1], rho[:, :1], nodes=90), abs=1e-6)
    assert estimate.value - 1e-6 <= whole <= estimate.value + estimate.bias_bound
    assert ibvit.mutual_information(mu, rho, idle_nats=0).bias_bound <= 1e-6

    other = truth.channel(12, 1, 1.0, -1.0, seed=2, like=mu[:, :1])
    ratio = ibvit.nmi((mu, rho), other, idle_nats=1e-2)
    assert ratio.method == "quadrature"
    assert abs(ratio.value - truth.nmi((mu, rho), other, nodes=12)) <= ratio.bias_bound


def test_the_bound_is_tighter_than_the_kl_to_the_prior() -> None:
    """A dimension that says the same to everyone is idle, however far it is from N(0, 1)."""
    mu, rho = truth.channel(100, 3, 1.0, -2.0)
    mu[:, 2], rho[:, 2] = 5.0, -4.0
    channel = make_channel(mu, rho, 1e-9)
    assert channel.dims == 2
    assert channel.bias_bound == pytest.approx(0, abs=1e-12)


def test_slices_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    from ibvit.information import channel as module

    mu, rho = truth.channel(103, 3, 1.0, -2.0)
    whole = make_channel(mu, rho, 0)
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 10)
    sliced = make_channel(mu, rho, 0)
    for name in ("mu", "logvar", "divergence"):
        assert torch.allclose(getattr(whole, name), getattr(sliced, name), atol=1e-6)
