"""The information estimator on the CPU beside its peers, in one run.

Peers compute the same sums log Σ_i exp(log N(u; μ_i, σ_i²) − r) for the same draws: KeOps (`pip install pykeops`, it
compiles itself), a chunked float32 matrix product with logsumexp in torch, and the definition transcribed in float64
linear space (numpy). Every peer first passes a gate against float64. Rates are pairs (sample, component) per second,
medians over rounds. A `cpu` rate is by processor time instead of wall time and tells how busy the machine was
otherwise. Shares are of the float32 multiply-add rate of a matrix product and the rate of torch.exp, in the same
process.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

import ibvit
from benchmarks.problems import log_densities, log_sum
from benchmarks.recording import Benchmark, Case, Row
from benchmarks.timing import gate, spread
from ibvit_kernels import library
from ibvit_kernels.mixture import native

DIMS = (1, 16, 32)
LATENTS = 32
GATE = {"native": 1e-5, "keops": 1e-4, "torch": 1e-3, "float64": 1e-9}  # nats, rms; expanded squares are less exact
HARDEST = {"native": 1.0, "keops": 0.25, "torch": 0.25, "float64": 0.02}  # share of the pairs: slower ones get fewer
TOLERANCE = {1: 1e-6, 3: 0.005}  # active dimensions → standard error of NMI: six digits by quadrature, or sampled
BETTER = {
    "ratio_of_native": "higher",
    "ratio_of_native_cpu": "higher",
    "share_of_multiply_add": "higher",
    "share_of_exp": "higher",
}


def benchmark(full: bool) -> Benchmark:
    patches = 980_000 if full else 2_000
    return Benchmark(
        f"sums over mixtures beside peers; NMI of two heads over {patches:,} patches; {library.instruction_sets()[0]}",
        [
            *(Case(f"sums, d={dims}", partial(sums_beside_peers, dims, full)) for dims in DIMS),
            *(Case(f"NMI, {active} active", partial(nmi_of_two_heads, active, patches)) for active in TOLERANCE),
        ],
        BETTER,
    )


class Sums:
    """One channel and draws from it, at middle information whatever d."""

    def __init__(self, dims: int, components: int, samples: int) -> None:
        rng = np.random.default_rng(dims)
        self.mu = (rng.normal(size=(components, dims)) / np.sqrt(dims)).astype(np.float32)
        self.logvar = (-1 + 0.3 * rng.normal(size=(components, dims))).astype(np.float32)
        x = rng.integers(components, size=samples)
        self.u = (self.mu[x] + np.exp(0.5 * self.logvar[x]) * rng.normal(size=(samples, dims))).astype(np.float32)
        own = [log_densities(u[None], self.mu[i, None], self.logvar[i, None]) for u, i in zip(self.u, x, strict=True)]
        self.reference = np.array(own)[:, 0, 0]
        self.precision = np.exp(-self.logvar)
        self.constant = -0.5 * (self.logvar.astype(np.float64) + np.log(2 * np.pi)).sum(1)


def run_native(sums: Sums) -> Callable[[], np.ndarray]:
    mixture = native.Mixture([sums.mu], [sums.logvar])
    none = np.empty((0, 2), np.int64)
    threads = torch.get_num_threads()
    return lambda: mixture.log_sums([sums.u], [0], [sums.reference], none, threads=threads)[0][0]


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


def rates(work: float, action: Callable[[], Any], rounds: int, unit: str) -> dict[str, float]:
    """Work per second by wall time, and its median by processor time per thread."""
    wall, cpu = [], []
    for _ in range(rounds):
        start, busy = time.perf_counter(), time.process_time()
        action()
        wall.append(work / (time.perf_counter() - start))
        cpu.append(torch.get_num_threads() * work / max(time.process_time() - busy, 1e-9))
    return spread(wall, unit) | {f"cpu_{unit}": float(np.median(cpu))}


def sums_beside_peers(dims: int, full: bool) -> list[Row]:
    """All one after another for each d, so that a ratio compares neighbours in time."""
    components, pairs, rounds = (50_000, 200_000_000, 5) if full else (500, 50_000, 2)
    size = 1024 if full else 128
    matrix, many = torch.rand(size, size), -torch.rand(size * size)
    limits = (
        rates(size**3, lambda: matrix @ matrix, rounds, "flop_per_s"),
        rates(size**2, many.exp, rounds, "exp_per_s"),
    )
    rows: list[Row] = [{"part": "limit", "d": dims, **limit} for limit in limits]
    ours: Row = {}
    for name, runner in RUNNERS.items():
        if name == "keops" and not find_spec("pykeops"):
            continue
        samples = max(16, int(pairs * HARDEST[name] / components / (dims if name == "float64" else 1)))
        sums = Sums(dims, components, samples)
        action = runner(sums)
        exact = log_sum(log_densities(sums.u[:16], sums.mu, sums.logvar)) - sums.reference[:16]
        error = float(np.sqrt(np.mean((action()[:16] - exact) ** 2)))
        gate(name, error, GATE[name])
        row: Row = {"part": "sums", "d": dims, "implementation": name, "components": components}
        row |= {**rates(samples * components, action, rounds, "pairs_per_s"), "rms_error_nats": error}
        ours = ours or row
        for key, rate in (("ratio_of_native", "median_pairs_per_s"), ("ratio_of_native_cpu", "cpu_pairs_per_s")):
            row[key] = ours[rate] / row[rate]
        rows.append(row)
    # Of each pair: one subtraction, one multiplication and one multiply-add per dimension, five for the exponential.
    ours["share_of_multiply_add"] = ours["cpu_pairs_per_s"] * (2 * dims + 5) / limits[0]["cpu_flop_per_s"]
    ours["share_of_exp"] = ours["cpu_pairs_per_s"] / limits[1]["cpu_exp_per_s"]
    return rows


def heads(active: int, patches: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Two heads over the same patches: 32 latents, some active on a fifth of the patches and half shared."""
    rng = np.random.default_rng(active)
    cause = rng.normal(size=(patches, active))
    made = []
    for _ in range(2):
        mu = (1e-4 * rng.normal(size=(patches, LATENTS))).astype(np.float32)
        logvar = (1e-4 * rng.normal(size=(patches, LATENTS))).astype(np.float32)
        speaks = rng.random((patches, active)) < 0.2
        own = 0.8 * cause + 0.6 * rng.normal(size=cause.shape)
        mu[:, :active] = np.where(speaks, own, 0.02 * rng.normal(size=own.shape))
        logvar[:, :active] = np.where(speaks, -3, -0.5) + 0.3 * rng.normal(size=own.shape)
        made.append((mu, logvar))
    return made


def nmi_of_two_heads(active: int, patches: int) -> list[Row]:
    first, second = heads(active, patches)
    busy = time.process_time()
    found = ibvit.nmi(first, second, tolerance=TOLERANCE[active], threads=torch.get_num_threads())
    cpu = time.process_time() - busy
    gate("standard error", found.stderr, TOLERANCE[active])
    return [
        {
            "part": "nmi", "components": patches, "latents": LATENTS, "active": active, "nmi": found.value,
            "nmi_se": found.stderr, "bias_bound_nats": found.bias_bound, "samples": found.samples,
            "method": found.method, "wall_s": found.seconds, "cpu_s": cpu,
        }
    ]  # fmt: skip
