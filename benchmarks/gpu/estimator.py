"""The estimator's sums at the paper's size, 2*10^7 samples x 980,000 components: slices, the whole at d = 1, an NMI."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

import ibvit
from benchmarks.gpu import shapes
from benchmarks.gpu.launches import DEVICE
from benchmarks.gpu.lines import Record, cases
from benchmarks.problems import NO_PAIRS, channel, draw, log_ratios, rms
from benchmarks.timing import milliseconds, spread
from ibvit_kernels.mixture import layouts
from ibvit_kernels.mixture.host import Mixture

SAMPLES, COMPONENTS, SLICE = 20_000_000, 980_000, 1 << 19
TOY = (2_000, 300, 64)
ROUNDS = 5
LONGEST_SLICE = 2.0  # seconds: then a quarter of the samples must do


def measure(record: Record, folder: Path, dry: bool) -> None:
    channels = shapes.CHANNELS[:1] if dry else shapes.CHANNELS
    todo: list[tuple[str, Callable[[], None]]] = [
        *(
            (f"d={d} sigma={sigma}", partial(slices, record, d, sigma, spread, dry))
            for d, sigma, spread in channels[:4]
        ),
        ("whole, d=1", partial(whole, record, dry)),
        ("nmi", partial(nmi, record, dry)),
        *(
            (f"d={d} sigma={sigma}", partial(slices, record, d, sigma, spread, dry))
            for d, sigma, spread in channels[4:]
        ),
    ]
    cases(record, todo)


def seconds(prepared: Mixture, u: torch.Tensor, reference: torch.Tensor) -> float:
    return milliseconds(lambda: prepared.log_sums([u], [0], [reference], NO_PAIRS)) / 1e3


def slices(record: Record, d: int, sigma: float, means: float, dry: bool) -> None:
    """Each round has samples of its own; the error first, on a few."""
    samples, components, size = TOY if dry else (SAMPLES, COMPONENTS, SLICE)
    mu, logvar = channel(d, components, sigma, means)
    prepared = Mixture([mu], [logvar])
    u, reference = draw(mu, logvar, 64)
    got = prepared.log_sums([u], [0], [reference], NO_PAIRS).single[0]
    error = rms(got - log_ratios(u, mu, logvar, reference).logsumexp(1))
    if not dry:
        estimate = seconds(prepared, *draw(mu, logvar, size // 8))
        size = size // 4 if 8 * estimate > LONGEST_SLICE else size
    found = [seconds(prepared, *draw(mu, logvar, size, seed=2 + i)) for i in range(1 if dry else ROUNDS)]
    row = spread(found, "s")
    extrapolated = row["median_s"] * samples / size
    record(
        d=d, sigma=sigma, spread=means, form=layouts.Layout([mu], [logvar]).form, rms_error_nats=error,
        samples_per_slice=size, **row, extrapolated_s=extrapolated, pairs_per_s=samples * components / extrapolated,
    )  # fmt: skip


def whole(record: Record, dry: bool) -> None:
    samples, components, _ = TOY if dry else (SAMPLES, COMPONENTS, SLICE)
    mu, logvar = channel(1, components, 1.0, 0.2)
    prepared = Mixture([mu], [logvar])
    u, reference = draw(mu, logvar, 300 if dry else samples)
    prepared.log_sums([u[:64]], [0], [reference[:64]], NO_PAIRS)
    record(d=1, sigma=1.0, spread=0.2, samples=len(u), whole_s=seconds(prepared, u, reference))


def nmi(record: Record, dry: bool) -> None:
    """Two heads of three active dimensions each, on the device, through the public function."""
    d, components = shapes.NMI_DIMENSIONS, 200 if dry else COMPONENTS
    heads = [channel(d, components, 0.3, 1.0, seed=i) for i in range(2)]
    options = {"samples": 40} if dry else {"tolerance": 5e-3}
    ibvit.nmi(*heads, samples=40)
    found = ibvit.nmi(*heads, **options)
    record(
        d=d, components=components, nmi=found.value, nmi_se=found.stderr, samples=found.samples, method=found.method,
        wall_s=found.seconds, device=DEVICE,
    )  # fmt: skip
