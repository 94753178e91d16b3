"""Information in one or two dimensions by quadrature: no sampling, no seed, whatever the number of components.

The coordinates are the two dimensions of one channel, one dimension each of two channels, or U and U′ of one. All
components are axis-aligned, so on a grid the density of two coordinates is a matrix product, p = Φᵀ Ψ / M with
Φ[i, g] = N(g; μ_i, σ_i²).

*Density.* A component of width σ is band-limited: sampled at steps of 0.48 σ it loses exp(−½ (π / 0.48)²) = 5e-10 of
itself. So each goes on the coarsest of the grids with 2^m points that has such steps, together with its neighbours and
only as far as it reaches, and the grids are brought together by padding their Fourier transforms.

*Integral.* The trapezoid rule on a smooth density that vanishes at both ends converges geometrically in the number of
points (Trefethen and Weideman 2014, "The exponentially convergent trapezoidal rule"). The grid is doubled until the
result agrees with that of every second point to `AGREEMENT`; halving the step about squares an error that small, which
leaves `RESOLUTION` with a wide margin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ibvit.information.channel import Channel

AGREEMENT = 1e-6  # nats, between a grid and its every second point
RESOLUTION = 1e-6  # nats, the error that then remains
STEP = 0.48  # standard deviations, the largest step that represents a component
REACH = 6.2  # standard deviations; beyond are 6e-10 of a component
LARGEST_GRID = {1: 20, 2: 12}  # log2 of the points of an axis, by the number of coordinates: under 1 GiB in all
TILE = 16  # points; components whose means share a tile are neighbours
CHUNK = 2048  # components per matrix product

Functional = Callable[[Tensor, float], float]
Part = tuple[tuple[slice, ...], Tensor]


class NotResolvedError(ArithmeticError):
    """Too many dimensions, or the largest grid is too coarse for these posteriors."""


class Coordinate(NamedTuple):
    """One dimension of a channel: `[M]` float64 each, on the CPU."""

    mu: Tensor
    sigma: Tensor

    @property
    def entropy(self) -> float:
        """Mean over the components, in nats."""
        return float(self.sigma.log().mean()) + 0.5 * math.log(2 * math.pi * math.e)

    @property
    def box(self) -> tuple[float, float]:
        """Start and length of an interval that holds all the components."""
        margin = 1.3 * REACH * self.sigma
        low = float((self.mu - margin).min())
        return low, float((self.mu + margin).max()) - low


class Axis(NamedTuple):
    """Equally spaced points, the last one step before start + length."""

    start: float
    length: float
    points: int

    @property
    def step(self) -> float:
        return self.length / self.points


def information(channel: Channel) -> float:
    """I(X;U) in nats for a channel of one or two dimensions: h(U) less the mean entropy of the components."""
    coordinates = _coordinates(channel, most=2)
    noise = sum(c.entropy for c in coordinates)
    return _integrate(coordinates, lambda p, cell: _entropy(p, cell) - noise)


def shared_information(first: Channel, second: Channel) -> float:
    """I(U;V) in nats of two one-dimensional channels over the same inputs; of a channel with itself, I(U;U′)."""
    return _integrate([*_coordinates(first, most=1), *_coordinates(second, most=1)], _dependence)


def _coordinates(channel: Channel, most: int) -> list[Coordinate]:
    if channel.dims > most:
        raise NotResolvedError(f"expected at most {most} active dimension{'s' * (most > 1)}, got {channel.dims}")
    mu, sigma = channel.mu.cpu().double().T, torch.exp(0.5 * channel.logvar.cpu().double().T)
    return [Coordinate(mu[j].contiguous(), sigma[j].contiguous()) for j in range(channel.dims)]


def _entropy(p: Tensor, cell: float) -> float:
    """−∫ p log p for densities p on cells of equal volume; p is normalised first."""
    mass = p / p.sum()
    return math.log(cell) - float(torch.special.xlogy(mass, mass).sum())


def _dependence(p: Tensor, cell: float) -> float:
    """∫∫ p log p(u,v)/(p(u) p(v)); the marginals come from the same grid, so the volume of a cell does not enter."""
    mass = p / p.sum()
    return sum(
        sign * float(torch.special.xlogy(part, part).sum())
        for sign, part in ((1, mass), (-1, mass.sum(0)), (-1, mass.sum(1)))
    )


def _integrate(coordinates: Sequence[Coordinate], functional: Functional) -> float:
    """Double the grid until `functional` of it and of its every second point agree."""
    boxes = [c.box for c in coordinates]
    levels = [
        torch.log2(length / (STEP * c.sigma)).ceil().long() for c, (_, length) in zip(coordinates, boxes, strict=True)
    ]
    largest = LARGEST_GRID[len(coordinates)]
    finest = [int(level.max()) for level in levels]
    if max(finest) <= largest:
        spectrum = _spectrum(coordinates, boxes, levels, finest)
    while max(finest) <= largest:
        shape = [1 << m for m in finest]
        p = torch.fft.irfftn(_padded(spectrum, shape), shape, norm="forward").clamp_min_(0)
        cell = math.prod(length / points for (_, length), points in zip(boxes, shape, strict=True))
        fine = functional(p, cell)
        coarse = functional(p[tuple(slice(None, None, 2) for _ in shape)], cell * 2 ** len(shape))
        if abs(fine - coarse) <= AGREEMENT:
            return fine
        finest = [m + 1 for m in finest]
    raise NotResolvedError(f"the posteriors are too narrow for {1 << largest} points per axis")


def _spectrum(
    coordinates: Sequence[Coordinate],
    boxes: Sequence[tuple[float, float]],
    levels: Sequence[Tensor],
    finest: Sequence[int],
) -> Tensor:
    """Fourier coefficients of the mean density of the components, of all that 2^finest points can have."""
    total = torch.zeros(_half_shape([1 << m for m in finest]), dtype=torch.complex128)
    code = sum(level << 8 * i for i, level in enumerate(levels))
    assert isinstance(code, Tensor)
    for group in code.unique().tolist():
        members = (code == group).nonzero()[:, 0]
        axes = [Axis(start, length, 1 << (group >> 8 * i & 0xFF)) for i, (start, length) in enumerate(boxes)]
        density = torch.zeros([axis.points for axis in axes], dtype=torch.float64)
        chunks = [members[chunk] for chunk in _neighbours([c.mu[members] for c in coordinates], axes)]
        for window, part in _in_threads(partial(_part, coordinates, axes), chunks):
            density[window] += part
        _add_padded(torch.fft.rfftn(density / len(levels[0]), norm="forward"), total)
    return total


def _neighbours(mu: Sequence[Tensor], axes: Sequence[Axis]) -> Iterator[Tensor]:
    """Indices of components in chunks that lie close together: tile by tile, up one column and down the next."""
    tiles = [((m - axis.start) / (TILE * axis.step)).long() for m, axis in zip(mu, axes, strict=True)]
    code = tiles[0]
    if len(tiles) == 2:
        width = int(tiles[1].max()) + 1
        code = code * width + torch.where(tiles[0] % 2 == 1, width - 1 - tiles[1], tiles[1])
    yield from code.argsort(stable=True).split(CHUNK)


def _part(coordinates: Sequence[Coordinate], axes: Sequence[Axis], indices: Tensor) -> Part:
    """Summed density of some components, and the window that it belongs to."""
    pairs = [_factor(c, indices, axis) for c, axis in zip(coordinates, axes, strict=True)]
    factors = [factor for factor, _ in pairs]
    return tuple(window for _, window in pairs), factors[0].sum(0) if len(factors) == 1 else factors[0].T @ factors[1]


def _in_threads(function: Callable[[Tensor], Part], chunks: Sequence[Tensor]) -> Iterator[Part]:
    """Results in order, a few at a time. Operations are too small to be shared by threads: each thread does its own.

    The number of threads is the one that torch uses; it is 1 inside, and as before afterwards.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            for start in range(0, len(chunks), 8 * threads):
                yield from pool.map(function, chunks[start : start + 8 * threads])
    finally:
        torch.set_num_threads(threads)


def _factor(c: Coordinate, indices: Tensor, axis: Axis) -> tuple[Tensor, slice]:
    """Densities of some components, `[len(indices), window]`, on the window of the axis that they reach."""
    mu, sigma = c.mu[indices], c.sigma[indices]
    first = math.floor((float((mu - REACH * sigma).min()) - axis.start) / axis.step)
    last = math.ceil((float((mu + REACH * sigma).max()) - axis.start) / axis.step) + 1
    points = axis.start + axis.step * torch.arange(first, last, dtype=torch.float64)
    centre = points.mean()  # keeps the cancellation between the terms of the square far below anything that matters
    points, mu, weight = points - centre, mu - centre, -0.5 / sigma.square()
    constant = weight * mu.square() - torch.log(sigma * math.sqrt(2 * math.pi))
    quadratic = torch.stack([weight, -2 * weight * mu, constant], 1)
    exponent = quadratic @ torch.stack([points.square(), points, torch.ones_like(points)])
    return exponent.exp_(), slice(first, last)


def _half_shape(shape: Sequence[int]) -> list[int]:
    """Shape of the Fourier transform of a real array."""
    return [*shape[:-1], shape[-1] // 2 + 1]


def _add_padded(spectrum: Tensor, total: Tensor) -> None:
    """Add a spectrum to one of as many frequencies or more; negative ones stand at the end of the first of two axes."""
    if spectrum.ndim == 1:
        total[: len(spectrum)] += spectrum
        return
    half, columns = len(spectrum) // 2, spectrum.shape[1]
    total[:half, :columns] += spectrum[:half]
    total[len(total) - half :, :columns] += spectrum[half:]


def _padded(spectrum: Tensor, shape: Sequence[int]) -> Tensor:
    padded = torch.zeros(_half_shape(shape), dtype=spectrum.dtype)
    _add_padded(spectrum, padded)
    return padded
