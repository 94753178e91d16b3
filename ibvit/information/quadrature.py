"""Information in one or two dimensions by quadrature: no sampling, no seed.

The components are axis-aligned, so the density of two coordinates on a grid is one matrix product: with
Φ[i, g] = N(g; μ_i, σ_i²) for one coordinate and Ψ for the other, p = Φᵀ Ψ / M. The coordinates are the two dimensions
of one channel, one dimension each of two channels, or U and U′ (Ψ = Φ).

The trapezoid rule on a smooth density that vanishes at both ends converges geometrically in the number of points
(Trefethen and Weideman 2014, "The exponentially convergent trapezoidal rule"). Grids are doubled until the result
agrees with that of every second point to `AGREEMENT`; halving the step about squares an error that small, which
leaves `RESOLUTION` with a wide margin.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ibvit.information.channel import Channel

AGREEMENT = 1e-5  # nats, between a grid and its every second point
RESOLUTION = 1e-6  # nats, the error that then remains
MAX_POINTS = {1: 1 << 18, 2: 1 << 12}  # an axis, by the number of coordinates
REACH = 9.0  # standard deviations; what lies beyond is below 1e-18 of a component
CHUNK = 4096  # components a matrix product


class Coordinate(NamedTuple):
    """One dimension of a channel: mean and logvar of every component, `[M]`."""

    mu: Tensor
    logvar: Tensor


class Grid(NamedTuple):
    """Equally spaced points of one coordinate."""

    start: float
    step: float
    points: int


class NotResolvedError(ArithmeticError):
    """Too many dimensions, or the largest grid is too coarse for these posteriors."""


def information(channel: Channel) -> float:
    """I(X;U) in nats for a channel of one or two dimensions: h(U) less the mean entropy of the components."""
    coordinates = _coordinates(channel, most=2)
    noise = sum(0.5 * float(c.logvar.double().mean()) + 0.5 * math.log(2 * math.pi * math.e) for c in coordinates)
    return _refine(coordinates, lambda p, cell: _entropy(p, cell) - noise)


def shared_information(first: Channel, second: Channel) -> float:
    """I(U;V) in nats of two one-dimensional channels over the same inputs; with one channel twice, I(U;U′)."""
    return _refine([*_coordinates(first, most=1), *_coordinates(second, most=1)], _dependence)


def _coordinates(channel: Channel, most: int) -> list[Coordinate]:
    if channel.dims > most:
        raise NotResolvedError(f"expected at most {most} active dimension{'s' * (most > 1)}, got {channel.dims}")
    return [Coordinate(channel.mu[:, j].contiguous(), channel.logvar[:, j].contiguous()) for j in range(channel.dims)]


def _entropy(p: Tensor, cell: float) -> float:
    """−∫ p log p for densities p on cells of equal volume; p is normalised first."""
    mass = p / p.sum()
    return float(-torch.special.xlogy(mass, mass / cell).sum())


def _dependence(p: Tensor, cell: float) -> float:
    """∫∫ p log p(u,v)/(p(u) p(v)); the marginals come from the same grid, so the volume of a cell does not enter."""
    mass = p / p.sum()
    independent = mass.sum(1, keepdim=True) * mass.sum(0, keepdim=True)
    return float(torch.special.xlogy(mass, mass / independent.clamp_min(torch.finfo(mass.dtype).tiny)).sum())


def _refine(coordinates: list[Coordinate], functional: Callable[[Tensor, float], float]) -> float:
    """Double the grid until `functional` of it and of its every second point agree."""
    order = _by_place_and_width(coordinates)
    coordinates = [Coordinate(c.mu[order], c.logvar[order]) for c in coordinates]
    ends = [_ends(c) for c in coordinates]
    points = [_first_points(c, *end) for c, end in zip(coordinates, ends, strict=True)]
    while max(points) <= MAX_POINTS[len(points)]:
        grids = [Grid(a, (b - a) / (n - 1), n) for (a, b), n in zip(ends, points, strict=True)]
        p = _density(coordinates, grids)
        cell = math.prod(g.step for g in grids)
        coarse = p[tuple(slice(None, None, 2) for _ in grids)]
        fine, other = functional(p, cell), functional(coarse, cell * 2 ** len(grids))
        complete = abs(float(coarse.sum()) * cell * 2 ** len(grids) - 1) <= AGREEMENT
        if complete and abs(fine - other) <= AGREEMENT:
            return fine
        points = [2 * n - 1 for n in points]
    raise NotResolvedError(f"the posteriors are too narrow for {MAX_POINTS[len(points)]} points an axis")


def _ends(c: Coordinate) -> tuple[float, float]:
    reach = REACH * torch.exp(0.5 * c.logvar)
    return float((c.mu - reach).min()), float((c.mu + reach).max())


def _first_points(c: Coordinate, start: float, end: float) -> int:
    """An odd number of points, one for each median standard deviation: right for neither, near to most channels."""
    width = math.exp(0.5 * float(c.logvar.median()))
    return 2 * math.ceil(max(16.0, min((end - start) / width / 2, 1 << 9))) + 1


def _by_place_and_width(coordinates: list[Coordinate]) -> Tensor:
    """An order of the components in which neighbours need the same small part of the grid."""
    chunks = max(1, len(coordinates[0].mu) // CHUNK)
    order = coordinates[-1].mu.argsort()
    if len(coordinates) == 2:
        tiles = max(1, math.isqrt(chunks))
        tile = (coordinates[0].mu.argsort().argsort() * tiles) // len(order)
        order = order[tile[order].argsort(stable=True)]
    octave = sum((c.logvar / math.log(4)).round() for c in coordinates)
    assert isinstance(octave, Tensor)
    return order[octave[order].argsort(stable=True)]


def _density(coordinates: list[Coordinate], grids: list[Grid]) -> Tensor:
    """Mean density of the components on the grid, float64 `[points]` or `[points, points]`."""
    total = torch.zeros([g.points for g in grids], dtype=torch.float64, device=coordinates[0].mu.device)
    components = len(coordinates[0].mu)
    for start in range(0, components, CHUNK):
        rows = slice(start, start + CHUNK)
        factors, windows = zip(
            *(_factor(Coordinate(c.mu[rows], c.logvar[rows]), g) for c, g in zip(coordinates, grids, strict=True)),
            strict=True,
        )
        total[windows] += factors[0].sum(0) if len(factors) == 1 else _product(*factors)
    return total / components


def _factor(c: Coordinate, grid: Grid) -> tuple[Tensor, slice]:
    """Density of each component on the points within its chunk's reach, float32 `[CHUNK, window]`."""
    low, high = _ends(c)
    first = max(0, math.floor((low - grid.start) / grid.step))
    last = min(grid.points, math.ceil((high - grid.start) / grid.step) + 1)
    at = grid.start + grid.step * torch.arange(first, last, dtype=torch.float64, device=c.mu.device)
    scale = torch.exp(-0.5 * c.logvar)[:, None]
    distance = (at.float() - c.mu[:, None]).mul_(scale)
    density = distance.square_().mul_(-0.5).exp_().mul_(scale * (1 / math.sqrt(2 * math.pi)))
    return density, slice(first, last)


def _product(phi: Tensor, psi: Tensor) -> Tensor:
    """Φᵀ Ψ in float64; its float32 factors are never rounded further, whatever torch's matmul precision is set to."""
    if phi.device.type == "cpu":
        return torch.from_numpy(phi.numpy().T @ psi.numpy()).double()
    return phi.double().T @ psi.double()
