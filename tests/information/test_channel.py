"""Checks of the input, files, and the certificate of dropped dimensions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ibvit
from ibvit.information import load_channel
from ibvit.information.channel import MAX_LOGVAR, make_channel
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
        (GOOD, GOOD + MAX_LOGVAR + 1, ValueError, "logvar: expected ln σ² within ±60, got a magnitude of 61"),
    ],
    ids=["list", "float16", "integers", "vector", "one input", "shapes differ", "nan mu", "nan logvar", "too wide"],
)
def test_bad_parameters_are_named(mu: Any, logvar: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ibvit.mutual_information(mu, logvar)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 1}, "samples: expected at least 2, got 1"),
        ({"method": "exact"}, "method: expected one of auto, mc, stratified, quadrature, got 'exact'"),
        ({"tolerance": 0}, "tolerance: expected a positive number, got 0"),
        ({"idle_nats": -1}, "idle_nats: expected a number of at least 0, got -1"),
        ({"impl": "cuda"}, "impl: expected one of auto, native, triton, torch, got 'cuda'"),
        ({"threads": 0}, "threads: expected at least 1, got 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ibvit.mutual_information(GOOD, GOOD, **options)


def test_channels_that_do_not_fit_together_are_named() -> None:
    with pytest.raises(ValueError, match="second: expected 4 inputs like the others, got 5"):
        ibvit.nmi((GOOD, GOOD), (np.zeros((5, 2)), np.zeros((5, 2))))
    with pytest.raises(TypeError, match=r"channels\[1\]: expected a pair \(mu, logvar\), got ndarray"):
        ibvit.nmi_matrix([(GOOD, GOOD), GOOD])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"channels\[0\]\.mu: expected finite values"):
        ibvit.nmi_matrix([(NAN, GOOD)])
    with pytest.raises(ValueError, match="channels: expected at least one channel, got none"):
        ibvit.nmi_matrix([])


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
