"""The information estimator on the CPU beside its peers, in one run.

    python -m pytest benchmarks/test_information.py                       # toy size: does it run
    IBVIT_BENCHMARK=full python -m pytest benchmarks/test_information.py  # writes results/*.json

Peers compute the same sums log Σ_i exp(log N(u; μ_i, σ_i²) − r) for the same draws: KeOps (`pip install pykeops`, it
compiles itself), a chunked float32 matrix product with logsumexp in torch, and the definition transcribed in float64
linear space (numpy). Every peer first passes a gate against float64. Rates are pairs (sample, component) a second,
medians over rounds; `cpu` rates are by processor time instead of wall time and tell how busy the machine was otherwise.
Shares are of the float32 multiply-add rate of a matrix product and the rate of torch.exp, in the same process.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ibvit
from benchmarks.recording import FULL, processor
from ibvit_kernels import library
from ibvit_kernels.mixture import native
from tests.information import truth
from tests.needs import needs_library

THREADS = 2
COMPONENTS, PAIRS, ROUNDS = (50_000, 200_000_000, 5) if FULL else (500, 50_000, 2)
PATCHES = 980_000 if FULL else 2_000
DIMS = [1, 16, 32]
GATE = {"native": 1e-5, "keops": 1e-4, "torch": 1e-3, "float64": 1e-9}  # nats, rms; expanded squares are less exact
HARDEST = {"native": 1.0, "keops": 0.25, "torch": 0.25, "float64": 0.02}  # share of PAIRS: slower ones get fewer
pytestmark = needs_library


class Sums:
    """One channel and draws from it, at middle information whatever d."""

    def __init__(self, dims: int, samples: int) -> None:
        rng = np.random.default_rng(dims)
        self.mu = (rng.normal(size=(COMPONENTS, dims)) / np.sqrt(dims)).astype(np.float32)
        self.logvar = (-1 + 0.3 * rng.normal(size=(COMPONENTS, dims))).astype(np.float32)
        x = rng.integers(COMPONENTS, size=samples)
        self.u = (self.mu[x] + np.exp(0.5 * self.logvar[x]) * rng.normal(size=(samples, dims))).astype(np.float32)
        self.reference = np.array(
            [
                truth.log_densities(u[None], self.mu[i, None], self.logvar[i, None])[0, 0]
                for u, i in zip(self.u, x, strict=True)
            ]
        )
        self.precision = np.exp(-self.logvar)
        self.constant = -0.5 * (self.logvar.astype(np.float64) + np.log(2 * np.pi)).sum(1)


def run_native(sums: Sums) -> Callable[[], np.ndarray]:
    mixture = native.Mixture([sums.mu], [sums.logvar])
    none = np.empty((0, 2), np.int64)
    return lambda: mixture.log_sums([sums.u], [0], [sums.reference], none, threads=THREADS)[0][0]


def run_keops(sums: Sums) -> Callable[[], np.ndarray]:
    import pykeops.torch as keops

    u, mu, half, constant = (
        keops.LazyTensor(torch.as_tensor(array, dtype=torch.float32).contiguous())
        for array in (sums.u[:, None], sums.mu[None], 0.5 * sums.precision[None], sums.constant[None, :, None])
    )
    total = (constant - ((u - mu) ** 2 * half).sum(-1)).logsumexp
    return lambda: total(dim=1, backend="CPU")[:, 0].double().numpy() - sums.reference


def run_torch(sums: Sums) -> Callable[[], np.ndarray]:
    mu, precision = torch.from_numpy(sums.mu), torch.from_numpy(sums.precision)
    weights = torch.cat([-0.5 * precision, mu * precision], 1).T.contiguous()
    constant = torch.from_numpy(sums.constant).float() - 0.5 * (mu.square() * precision).sum(1)

    def chunk(u: Tensor) -> Tensor:
        return torch.addmm(constant, torch.cat([u.square(), u], 1), weights).logsumexp(1)

    return lambda: torch.cat([chunk(u) for u in torch.from_numpy(sums.u).split(256)]).double().numpy() - sums.reference


def run_float64(sums: Sums) -> Callable[[], np.ndarray]:
    mu, sigma = sums.mu.astype(np.float64), np.exp(0.5 * sums.logvar.astype(np.float64))

    def total(u: np.ndarray) -> float:
        density = np.exp(-0.5 * ((u - mu) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
        return float(np.log(density.prod(1).sum()))

    return lambda: np.array([total(u) for u in sums.u.astype(np.float64)]) - sums.reference


RUNNERS = {"native": run_native, "keops": run_keops, "torch": run_torch, "float64": run_float64}


@pytest.fixture(scope="module")
def record() -> Iterator[dict[str, Any]]:
    """Filled by the tests; written when they are done, at full size only."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    result: dict[str, Any] = {
        "machine": processor(),
        "threads": THREADS,
        "instruction_set": library.instruction_sets()[0],
        "versions": {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()},
        "sums": [],
        "full_size": [],
    }
    yield result
    torch.set_num_threads(before)
    if FULL:
        name = "".join(c if c.isalnum() else "-" for c in result["machine"].lower())
        path = Path(__file__).parent / "results" / f"{name}-information.json"
        stored = json.loads(path.read_text()) if path.exists() else {}
        for section, key in (("sums", "dims"), ("full_size", "active")):  # a partial run replaces its own rows
            rows = {row[key]: row for row in [*stored.get(section, []), *result[section]]}
            result[section] = list(rows.values())
        path.write_text(json.dumps(result, indent=1) + "\n")


def _rates(work: float, action: Callable[[], Any]) -> dict[str, float]:
    """Medians of work a second, by wall time and by processor time a thread."""
    wall, cpu = [], []
    for _ in range(ROUNDS):
        start, busy = time.perf_counter(), time.process_time()
        action()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - busy)
    return {"wall": work / statistics.median(wall), "cpu": THREADS * work / max(statistics.median(cpu), 1e-9)}


@pytest.mark.parametrize("dims", DIMS)
def test_sums_beside_peers(dims: int, record: dict[str, Any]) -> None:
    """All peers one after another for each d, so that a ratio compares neighbours in time."""
    size = 1024 if FULL else 128
    matrix, many = torch.rand(size, size), -torch.rand(size * size)
    limits = {"multiply_add": _rates(size**3, lambda: matrix @ matrix), "exp": _rates(size**2, many.exp)}
    row: dict[str, Any] = {"dims": dims, "components": COMPONENTS, "limits": limits, "pairs_per_second": {}}
    for name, runner in RUNNERS.items():
        samples = max(16, int(PAIRS * HARDEST[name] / COMPONENTS / (dims if name == "float64" else 1)))
        sums = Sums(dims, samples)
        if name == "keops" and not _has_keops():
            continue
        action = runner(sums)
        found = action()[:16]
        exact = truth.log_sum(truth.log_densities(sums.u[:16], sums.mu, sums.logvar)) - sums.reference[:16]
        error = float(np.sqrt(np.mean((found - exact) ** 2)))
        assert error < GATE[name], f"{name}: rms error of {error:.1e} nats"
        row["pairs_per_second"][name] = _rates(samples * COMPONENTS, action) | {"rms_error": error}
    ours = row["pairs_per_second"]["native"]
    row["ratio"] = {
        name: {clock: ours[clock] / other[clock] for clock in ("wall", "cpu")}
        for name, other in row["pairs_per_second"].items()
        if name != "native"
    }
    # Of each pair: one subtraction, one multiplication and one multiply-add a dimension, five for the exponential.
    row["share_of_multiply_add"] = ours["cpu"] * (2 * dims + 5) / limits["multiply_add"]["cpu"]
    row["share_of_exp"] = ours["cpu"] / limits["exp"]["cpu"]
    record["sums"].append(row)


def _has_keops() -> bool:
    try:
        import pykeops.torch  # noqa: F401
    except ImportError:
        return False
    return True


def _heads(active: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Two heads over the same patches: 32 latents, some active on a fifth of the patches and half shared."""
    rng = np.random.default_rng(active)
    cause = rng.normal(size=(PATCHES, active))
    heads = []
    for _ in range(2):
        mu = (1e-4 * rng.normal(size=(PATCHES, 32))).astype(np.float32)
        logvar = (1e-4 * rng.normal(size=(PATCHES, 32))).astype(np.float32)
        speaks = rng.random((PATCHES, active)) < 0.2
        own = 0.8 * cause + 0.6 * rng.normal(size=cause.shape)
        mu[:, :active] = np.where(speaks, own, 0.02 * rng.normal(size=own.shape))
        logvar[:, :active] = np.where(speaks, -3, -0.5) + 0.3 * rng.normal(size=own.shape)
        heads.append((mu, logvar))
    return heads


@pytest.mark.parametrize(("active", "tolerance"), [(1, 1e-6), (3, 0.005)], ids=["one active", "three active"])
def test_nmi_at_full_size(active: int, tolerance: float, record: dict[str, Any], benchmark: Any) -> None:
    """Two heads over all patches: six digits by quadrature, or a standard error of 0.005."""
    first, second = _heads(active)
    busy = time.process_time()
    found = benchmark.pedantic(
        ibvit.nmi, (first, second), {"tolerance": tolerance, "threads": THREADS}, rounds=1, warmup_rounds=0
    )
    cpu = time.process_time() - busy
    assert found.stderr <= tolerance
    record["full_size"].append(
        {
            "components": PATCHES,
            "latents": 32,
            "active": active,
            "cpu_seconds": cpu,
            "threads": THREADS,
            **found._asdict(),
        }
    )
