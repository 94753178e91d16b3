"""Draws of (x, u), the sums over components for them, and the averages that estimates are made of.

The unit of randomness is a *batch*: an independent sample of the same size, one observation of every term at once.
Errors come from leaving out one batch at a time and doing everything else again, the regression on the control
variates included: they include every correlation of the terms, the strata and the regression. Batches are also the
unit of work of a rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ibvit.information.backends import Mixture
from ibvit.information.channel import Channel, log_density
from ibvit.information.controls import CONTROLS, GaussianControls
from ibvit.progress import Progress

BLOCK_BYTES = 1 << 26  # of the draws that are in memory together
UNITS = 8  # batches are divided into at least so many units of work, which the ranks share
Column = tuple[int, int]  # channel, replicate
Member = tuple[int] | tuple[int, int]  # one column: log p(u|x)/p(u); two: log p(u,v)/(p(u) p(v))


@dataclass(frozen=True)
class SamplingPlan:
    """What is drawn and what is averaged: each term is the mean of its members."""

    columns: list[Column]
    terms: list[tuple[Member, ...]]

    @classmethod
    def information(cls, channels: int) -> SamplingPlan:
        """One term I(X;U) for each channel."""
        return cls([(k, 0) for k in range(channels)], [((k,),) for k in range(channels)])

    @classmethod
    def shared(cls, channels: int, couples: Sequence[tuple[int, int]]) -> SamplingPlan:
        """Terms I(U;U′) of every channel, then I(U;V) of every couple, from two draws u, u′ of each channel for an x.

        (u, v) and (u′, v′) are both draws of the joint channel.
        """
        columns = [(k, replicate) for k in range(channels) for replicate in (0, 1)]
        own: list[tuple[Member, ...]] = [((2 * k, 2 * k + 1),) for k in range(channels)]
        joint: list[tuple[Member, ...]] = [((2 * a, 2 * b), (2 * a + 1, 2 * b + 1)) for a, b in couples]
        return cls(columns, own + joint)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The pairs of columns that occur in terms, each once."""
        return list(dict.fromkeys(member for term in self.terms for member in term if len(member) == 2))


class Batches:
    """First and second moments of terms and controls in each batch, side by side: 1, term, controls."""

    def __init__(self, terms: int, controls: int, device: torch.device) -> None:
        width = 2 + controls
        self.moments = torch.zeros(0, terms, width, width, dtype=torch.float64, device=device)

    @property
    def count(self) -> int:
        """How many batches there are."""
        return len(self.moments)

    @property
    def samples(self) -> int:
        """Draws of x so far."""
        return int(self.moments[:, 0, 0, 0].sum())

    def replicates(self) -> Replicates:
        """The terms from all the batches, and from all but each one."""
        total = self.moments.sum(0)
        return Replicates(_adjusted(total), _adjusted(total - self.moments))


class Replicates(NamedTuple):
    """What the jackknife works on."""

    full: Tensor  # [terms]
    left_out: Tensor  # [batches, terms], each from all the other batches


def _adjusted(moments: Tensor) -> Tensor:
    """Mean of the term less what its regression on the controls explains; `[..., width, width]` to `[...]`."""
    mean = moments[..., 0, 1:] / moments[..., :1, 0]
    if mean.shape[-1] == 1:
        return mean[..., 0]
    covariance = moments[..., 1:, 1:] / moments[..., :1, :1] - mean[..., :, None] * mean[..., None, :]
    scale = covariance.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt().clamp_min(1e-12)[..., 1:]
    correlation = covariance[..., 1:, 1:] / (scale[..., :, None] * scale[..., None, :])
    ridge = 1e-9 * torch.eye(correlation.shape[-1]).to(correlation)  # controls that are constant or equal
    slope = torch.linalg.solve(correlation + ridge, (covariance[..., 1:, 0] / scale)[..., None])[..., 0] / scale
    return mean[..., 0] - (slope * mean[..., 1:]).sum(-1)


class Sampler:
    """Fills batches according to a plan.

    Args:
        channels: over the same components, on one device.
        mixture: the same channels, opened on a backend.
        stratified: x runs through the inputs in the order of their divergence, one from each of `size` equal strata of
            a batch; otherwise x is uniform.
        control: record control variates beside the terms.
        seed: of all randomness; every unit of work and column has a stream of its own, so that results do not depend on
            the number of ranks.
    """

    def __init__(
        self,
        channels: Sequence[Channel],
        mixture: Mixture,
        plan: SamplingPlan,
        *,
        stratified: bool,
        control: bool,
        seed: int,
    ) -> None:
        self._channels, self._mixture, self._plan, self._seed = channels, mixture, plan, seed
        self._device = channels[0].mu.device
        self._components = channels[0].components
        self._pairs = torch.tensor(plan.pairs, dtype=torch.int64, device=self._device).reshape(-1, 2)
        self._pair_index = {pair: p for p, pair in enumerate(plan.pairs)}
        self._order = torch.stack([c.divergence for c in channels]).sum(0).argsort() if stratified else None
        self._controls = GaussianControls(channels) if control else None

    def empty(self) -> Batches:
        """No batches yet."""
        return Batches(len(self._plan.terms), CONTROLS if self._controls else 0, self._device)

    def extend(self, batches: Batches, count: int, size: int, *, stage: int, name: str) -> None:
        """Add `count` batches of `size` draws, each rank its share.

        Args:
            stage: draws of different stages are independent.
            name: what the progress bar says.
        """
        rank, world = _rank_and_world()
        moments = torch.zeros(count, *batches.moments.shape[1:], dtype=torch.float64, device=self._device)
        units = list(self._units(count, size))[rank::world]
        with Progress(sum(len(b) * len(s) for b, s in units), name, "samples", show=rank == 0) as progress:
            for group, strata in units:
                stream = (stage, batches.count + group[0], strata[0])
                rows = self._observe(len(group), strata, size, stream, progress.advance)
                moments[group.start : group.stop] += torch.einsum("tcgs,tegs->gtce", rows, rows)
        if world > 1:
            _all_reduce(moments)
        batches.moments = torch.cat([batches.moments, moments])

    def _units(self, count: int, size: int) -> Iterator[tuple[range, range]]:
        """What is drawn at once: some whole batches, or a part of one; never dependent on the number of ranks."""
        width = sum(self._channels[k].dims for k, _ in self._plan.columns)
        block = max(256, BLOCK_BYTES // (32 * width))
        group = max(1, min(block // size, count // UNITS))
        for batch in range(0, count, group):
            for start in range(0, size, block):
                yield range(batch, min(batch + group, count)), range(start, min(start + block, size))

    def _observe(
        self, batches: int, strata: range, size: int, stream: tuple[int, ...], advance: Callable[[int], None]
    ) -> Tensor:
        """1, terms and controls of draws in some strata of some batches: `[terms, 2 + controls, batches, strata]`."""
        x = self._inputs(batches, strata, size, stream)
        draws = [self._draw(x, column, stream) for column in self._plan.columns]
        single, pair = self._log_sums(draws, advance)
        terms = [torch.stack([self._member(m, draws, single, pair) for m in t]).mean(0) for t in self._plan.terms]
        observed = torch.nn.functional.pad(torch.stack(terms), (0, 0, 1, 0), value=1.0)
        return observed.unflatten(-1, (batches, len(strata)))

    def _inputs(self, batches: int, strata: range, size: int, stream: tuple[int, ...]) -> Tensor:
        """Indices x `[batches · strata]`."""
        shape, generator = (batches, len(strata)), self._generator(*stream, 0)
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64, device=self._device)
        if self._order is None:
            return (uniform * self._components).long().flatten()
        position = (torch.arange(strata.start, strata.stop, device=self._device) + uniform).flatten()
        return self._order[(position * (self._components / size)).long().clamp_max(self._components - 1)]

    def _draw(self, x: Tensor, column: Column, stream: tuple[int, ...]) -> _Draw:
        channel = self._channels[column[0]]
        mu, logvar = channel.mu[x], channel.logvar[x]
        epsilon = torch.randn(mu.shape, generator=self._generator(*stream, 1, *column), device=self._device)
        u = mu + torch.exp(0.5 * logvar) * epsilon
        whitened = self._controls.whiten(column[0], u) if self._controls else u
        return _Draw(u, epsilon, logvar, log_density(u, mu, logvar), whitened)

    def _log_sums(self, draws: Sequence[_Draw], advance: Callable[[int], None]) -> tuple[Tensor, Tensor]:
        channel = [k for k, _ in self._plan.columns]
        at_once = self._mixture.samples_per_call(channel)
        parts = []
        for start in range(0, len(draws[0].u), at_once):
            rows = slice(start, start + at_once)
            u, reference = [draw.u[rows] for draw in draws], [draw.reference[rows] for draw in draws]
            parts.append(self._mixture.log_sums(u, channel, reference, self._pairs))
            advance(len(u[0]))
        single, pair = (torch.cat(part, 1) for part in zip(*parts, strict=True))
        return single, pair

    def _member(self, member: Member, draws: Sequence[_Draw], single: Tensor, pair: Tensor) -> Tensor:
        """Value and controls `[1 + controls, S]` of one member of a term."""
        if len(member) == 1:
            value = math.log(self._components) - single[member[0]]
        else:
            value = math.log(self._components) + pair[self._pair_index[member]] - single[list(member)].sum(0)
        if self._controls is None:
            return value[None]
        parts = [draws[c] for c in member]
        channels = [self._plan.columns[c][0] for c in member]
        if len(member) == 1:
            controls = self._controls.single(channels[0], parts[0].epsilon, parts[0].logvar, parts[0].whitened)
        else:
            controls = self._controls.pair(channels[0], channels[1], parts[0].whitened, parts[1].whitened)
        return torch.cat([value[None], controls])

    def _generator(self, *stream: int) -> torch.Generator:
        """A random generator of its own for each tuple of small integers."""
        state = self._seed & _WORD
        for word in stream:
            state = _mix((state + word + 1) & _WORD)
        return torch.Generator(self._device).manual_seed(state >> 1)


@dataclass(frozen=True)
class _Draw:
    """S draws of one column; arrays `[S, d]` but for the reference, `[S]`."""

    u: Tensor
    epsilon: Tensor
    logvar: Tensor
    reference: Tensor  # log p(u|x), float64, of u as rounded
    whitened: Tensor


_WORD = (1 << 64) - 1


def _mix(word: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): nearby words give unrelated ones."""
    word = (word + 0x9E3779B97F4A7C15) & _WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)


def _rank_and_world() -> tuple[int, int]:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _all_reduce(tensor: Tensor) -> None:
    """Sum over ranks, in place, on whatever device the process group works on."""
    moved = tensor.to("cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
    torch.distributed.all_reduce(moved)
    tensor.copy_(moved)
