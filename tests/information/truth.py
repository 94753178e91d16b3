"""Mutual information computed independently of the package: definitions in float64, summed without sampling."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
from numpy.typing import NDArray

from benchmarks.problems import log_densities, log_sum

Array = NDArray[np.float64]
Parameters = tuple[Array, Array]


def information(mu: Array, logvar: Array, nodes: int = 40) -> float:
    """Eq. 4 with the expectation over u by a product Gauss–Hermite rule around every component."""
    components, dims = mu.shape
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    grid = np.array(list(product(points, repeat=dims)))
    weight = np.array([math.prod(w) for w in product(weights / weights.sum(), repeat=dims)])
    total = 0.0
    for x in range(components):
        terms = log_densities(mu[x] + np.exp(0.5 * logvar[x]) * grid, mu, logvar)
        total += float(weight @ (terms[:, x] - log_sum(terms) + math.log(components)))
    return total / components


def joint(first: Parameters, second: Parameters) -> Parameters:
    """The joint channel: parameters side by side."""
    return np.concatenate([first[0], second[0]], 1), np.concatenate([first[1], second[1]], 1)


def shared(first: Parameters, second: Parameters, nodes: int = 40) -> float:
    """Eq. 5; with one channel twice, I(U;U′)."""
    parts = [information(*channel, nodes) for channel in (first, second, joint(first, second))]
    return parts[0] + parts[1] - parts[2]


def nmi(first: Parameters, second: Parameters, nodes: int = 40) -> float:
    """Eq. 6."""
    own = shared(first, first, nodes) * shared(second, second, nodes)
    return shared(first, second, nodes) / math.sqrt(own)


def author_definition(mu: Array, logvar: Array, u: Array, x: NDArray[np.int64]) -> float:
    """Mean over given draws of log2 p(u|x) / p(u), densities in linear space and base 2, as a formula; in bits."""
    density = np.ones((len(u), len(mu)))
    for j in range(mu.shape[1]):
        sigma = np.exp(0.5 * logvar[:, j])
        density *= np.exp(-0.5 * ((u[:, j, None] - mu[:, j]) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
    return float(np.log2(density[np.arange(len(u)), x] / density.mean(1)).mean())


def channel(
    components: int, dims: int, spread: float, logvar: float, seed: int = 0, *, like: Array | None = None
) -> Parameters:
    """Means of a given spread, independent or around those of another channel; widths that differ a little."""
    rng = np.random.default_rng(seed)
    mu = spread * rng.normal(size=(components, dims))
    if like is not None:
        mu = 0.8 * like + 0.6 * mu
    return mu, logvar + 0.3 * rng.normal(size=(components, dims))
