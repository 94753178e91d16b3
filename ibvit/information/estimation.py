"""How much to sample, what to integrate instead, and what the errors of the parts mean for the result."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ibvit import arguments
from ibvit.information import quadrature
from ibvit.information.backends import Impl, open_mixture
from ibvit.information.channel import Channel
from ibvit.information.estimate import Estimate, EstimateMatrix
from ibvit.information.sampling import Batches, Replicates, Sampler, SamplingPlan
from ibvit.information.statistics import mean_and_error, ratio_and_error

Method = Literal["auto", "mc", "stratified", "quadrature"]
BATCHES = 128  # independent repetitions that an error comes from: enough for ±1.96 standard errors to mean 95 %
PILOT_BATCHES, PILOT_DRAWS = 32, 128  # they estimate how many samples the tolerance needs
MAX_SAMPLES = 20_000_000  # where the search for a tolerance gives up: the paper's number
MOST_SAMPLES, MOST_THREADS = 10**10, 4096  # that can be asked for
LARGEST_EXCESS = 1e12  # of an error over its tolerance: more asks for MAX_SAMPLES all the same
SMALLEST_TOLERANCE = 1e-12  # far below what MAX_SAMPLES reach
Reduce = Callable[[Replicates], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Options:
    """The options that `mutual_information`, `nmi` and `nmi_matrix` share, as keyword arguments; checked here.

    Attributes:
        samples: draws of x; None: as many as bring the standard error to `tolerance`. Quadrature needs none.
        seed: of the sampling.
        method: `auto` takes quadrature where it can (a channel of one or two active dimensions; an NMI of channels of
            one each) and `stratified` elsewhere; `mc` is Eq. 4 to the letter: x and u drawn independently, no
            dimension dropped.
        tolerance: standard error to stop at: nats, or parts of an NMI; the largest one of a matrix.
        idle_nats: dimensions that together carry at most this much are left out; `bias_bound` says how much.
        impl: `auto`, or the backend of the sums: `native` (CPU library), `triton` (CUDA), or `torch`, the
            plain path of the estimator. (`reference` is the plain path of the bottleneck.)
        threads: of the CPU library; None: as many as torch uses.

    Raises:
        TypeError, ValueError: an option of another type, or out of range; the message names it.

    Example:
        >>> Options(tolerance=1e-2).samples is None
        True
    """

    samples: int | None = None
    seed: int = 0
    method: Method = "auto"
    tolerance: float = 1e-3
    idle_nats: float = 1e-4
    impl: Impl = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        arguments.choice("method", self.method, get_args(Method))
        arguments.choice("impl", self.impl, get_args(Impl))
        arguments.whole("seed", self.seed, -(1 << 63), (1 << 63) - 1)
        arguments.number("tolerance", self.tolerance, SMALLEST_TOLERANCE, arguments.HUGE)
        arguments.number("idle_nats", self.idle_nats, 0, arguments.HUGE)
        if self.samples is not None:
            arguments.whole("samples", self.samples, 2, MOST_SAMPLES)
        if self.threads is not None:
            arguments.whole("threads", self.threads, 1, MOST_THREADS)

    @property
    def idle_budget(self) -> float:
        """Nats that dropped dimensions may carry; Eq. 4 to the letter drops none."""
        return 0.0 if self.method == "mc" else self.idle_nats


def information(channel: Channel, options: Options) -> Estimate:
    """I(X;U) of one channel."""
    start = time.perf_counter()

    def result(value: float, stderr: float, resolution: float, samples: int, method: str) -> Estimate:
        return Estimate(value, stderr, channel.bias_bound + resolution, samples, method, time.perf_counter() - start)

    if channel.dims == 0:
        return result(0.0, 0.0, 0.0, 0, "quadrature")
    if options.method in ("auto", "quadrature"):
        try:
            return result(quadrature.information(channel), 0.0, quadrature.RESOLUTION, 0, "quadrature")
        except quadrature.NotResolvedError as reason:
            _fall_back(options, reason)
    value, stderr, batches = _sample([channel], SamplingPlan.information(1), mean_and_error, options, "I(X;U)")
    return result(float(value[0]), float(stderr[0]), 0.0, batches.samples, _sampling_method(options))


def nmi_matrix(rows: Sequence[Channel], columns: Sequence[Channel] | None, options: Options) -> EstimateMatrix:
    """NMI of every row with every column; `None`: of the rows with each other."""
    start = time.perf_counter()
    channels = [*rows, *(columns or ())]
    offset = 0 if columns is None else len(rows)
    shape = len(rows), len(columns if columns is not None else rows)
    value, stderr, bound = (np.full(shape, np.nan) for _ in range(3))

    couples = [
        (a, offset + b)
        for a in range(shape[0])
        for b in range(a + 1 if columns is None else 0, shape[1])
        if channels[a].dims and channels[offset + b].dims
    ]
    entries: dict[tuple[int, int], tuple[float, float, float]] = {}
    if options.method in ("auto", "quadrature"):
        entries = _integrate(channels, couples, options)
    samples, methods = 0, ["quadrature"] if entries or not couples else []
    if remaining := [couple for couple in couples if couple not in entries]:
        sampled, samples = _sample_nmi(channels, remaining, options)
        entries |= sampled
        methods.append(_sampling_method(options))

    for (a, b), entry in entries.items():
        value[a, b - offset], stderr[a, b - offset], bound[a, b - offset] = entry
        if columns is None:
            value[b, a], stderr[b, a], bound[b, a] = entry
    if columns is None:
        for a in range(shape[0]):
            if channels[a].dims:
                value[a, a], stderr[a, a], bound[a, a] = 1.0, 0.0, 0.0
    return EstimateMatrix(value, stderr, bound, samples, "+".join(methods), time.perf_counter() - start)


Entries = dict[tuple[int, int], tuple[float, float, float]]  # couple of channels: NMI, standard error, bias bound


def _integrate(channels: Sequence[Channel], couples: Sequence[tuple[int, int]], options: Options) -> Entries:
    """The couples that quadrature can do."""
    entries: Entries = {}
    own: dict[int, float] = {}
    for a, b in couples:
        try:
            for k in (a, b):
                if k not in own:
                    own[k] = quadrature.shared_information(channels[k], channels[k])
            shared = quadrature.shared_information(channels[a], channels[b])
        except quadrature.NotResolvedError as reason:
            _fall_back(options, reason)
            continue
        dropped = channels[a].bias_bound, channels[b].bias_bound
        ratio = shared / math.sqrt(own[a] * own[b]) if own[a] > 0 and own[b] > 0 else math.nan
        entries[a, b] = ratio, 0.0, _nmi_bound(shared, (own[a], own[b]), dropped, quadrature.RESOLUTION)
    return entries


def _sample_nmi(
    channels: Sequence[Channel], couples: Sequence[tuple[int, int]], options: Options
) -> tuple[Entries, int]:
    """All the couples from the same draws."""
    used = sorted({k for couple in couples for k in couple})
    local = [(used.index(a), used.index(b)) for a, b in couples]

    def reduce(replicates: Replicates) -> tuple[Tensor, Tensor]:
        return ratio_and_error(replicates, local, len(used))

    members = [channels[k] for k in used]
    value, stderr, batches = _sample(members, SamplingPlan.shared(len(used), local), reduce, options, "NMI")
    terms = batches.replicates().full.tolist()
    entries = {}
    for i, (couple, (a, b)) in enumerate(zip(couples, local, strict=True)):
        dropped = members[a].bias_bound, members[b].bias_bound
        bound = _nmi_bound(terms[len(used) + i], (terms[a], terms[b]), dropped, 0.0)
        entries[couple] = float(value[i]), float(stderr[i]), bound
    return entries, batches.samples


def _nmi_bound(shared: float, own: tuple[float, float], dropped: tuple[float, float], resolution: float) -> float:
    """How far off the NMI can be when the dropped dimensions carry up to `loose` nats and terms err by `resolution`.

    Dropping dimensions only loses information: at most dropped_a + dropped_b of I(U;V), and 2 dropped_a of I(U;U′).
    """
    if min(own) <= resolution:
        return math.nan
    ratio = shared / math.sqrt(own[0] * own[1])
    high = (shared + sum(dropped) + resolution) / math.sqrt((own[0] - resolution) * (own[1] - resolution))
    widest = [i + 2 * b + resolution for i, b in zip(own, dropped, strict=True)]
    low = (shared - resolution) / math.sqrt(widest[0] * widest[1])
    return max(high - ratio, ratio - low)


def _sample(
    channels: Sequence[Channel], plan: SamplingPlan, reduce: Reduce, options: Options, name: str
) -> tuple[Tensor, Tensor, Batches]:
    """Draw as many samples as were asked for, or as the tolerance takes.

    A pilot decides the size of the main batches. Its draws are then discarded, so that the decision does not bias the
    result.
    """
    sampler = Sampler(
        channels,
        open_mixture(channels, options.impl, options.threads),
        plan,
        stratified=options.method != "mc",
        control=options.method != "mc",
        seed=options.seed,
    )
    batches = sampler.empty()
    if options.samples is not None:
        count = max(2, min(BATCHES, options.samples // 8))
        sampler.extend(batches, count, math.ceil(options.samples / count), stage=0, name=name)
        return *reduce(batches.replicates()), batches

    sampler.extend(batches, PILOT_BATCHES, PILOT_DRAWS, stage=0, name=f"{name}, pilot")
    value, stderr = reduce(batches.replicates())
    size = 0
    while (excess := min(_largest(stderr) / options.tolerance, LARGEST_EXCESS)) > 1:
        needed = batches.samples * excess**2
        if batches.samples >= MAX_SAMPLES:
            message = "%s: stopped at %d samples with a standard error of %.2g, above the tolerance of %.2g"
            log = logging.getLogger("ibvit")
            log.warning(message, name, batches.samples, _largest(stderr), options.tolerance)
            break
        if size == 0:
            size = math.ceil(1.1 * min(needed, MAX_SAMPLES) / BATCHES)
            batches, count = sampler.empty(), BATCHES
        else:
            most = math.ceil(MAX_SAMPLES / size)
            count = max(4, min(most, math.ceil(batches.count * (excess**2 - 1))))
        sampler.extend(batches, count, size, stage=1, name=name)
        value, stderr = reduce(batches.replicates())
    return value, stderr, batches


def _largest(stderr: Tensor) -> float:
    """The largest standard error of those that are defined."""
    return float(torch.nan_to_num(stderr, nan=0.0).max())


def _sampling_method(options: Options) -> str:
    return "mc" if options.method == "mc" else "stratified"


def _fall_back(options: Options, reason: Exception) -> None:
    """Sampling takes over, unless quadrature was asked for by name."""
    if options.method == "quadrature":
        raise ValueError(f"method: quadrature cannot do this, {reason}")
    logging.getLogger("ibvit").debug("information: sampling, %s", reason)
