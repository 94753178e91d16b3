"""The quadratic in a Gaussian exponent, expanded into a product of features, with as little cancellation as can be had.

With x = u - centre, nu = mu - centre and s as in `sorting`,

    -sum_j s_j^2 (x_j - nu_j)^2 = (x^2, x) . (-s^2, 2 s^2 nu) - sum_j s_j^2 nu_j^2.

From both factors their means are taken: what all components share goes to the sample's reference, what all samples
share to the component's constant. What is left is small where components overlap, which is where many of them count.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ibvit_kernels.mixture.gemm import GemmChannel
from ibvit_kernels.mixture.sorting import LOG2_E, Components

ROUNDING = 2**-23  # of a sum of products, in parts of the sum of their sizes: halves of 22 bits, float32 accumulation
SCALED_MAXIMUM = 2.0**28  # of the product of a feature's largest values; each stays below 2^15 in float16
FARTHEST = 8.0  # standard deviations at which a sample still has finite features
NEGLIGIBLE = 2.0**-30  # a feature this small needs no digits


class Expansion(NamedTuple):
    """The components' side of the product, in float16 halves; x and the reference of a sample are prepared to suit."""

    centre: Tensor  # [d] float64
    square: Tensor  # [d] float64: mean of x^2 over the mixture
    common: Tensor  # [2d] float64: mean features of the components
    exponent: Tensor  # [2d] float64: the samples' features are scaled by two to this power
    high: Tensor  # [M, K] float16, K >= 2d
    low: Tensor  # [M, K] float16
    const: Tensor  # [M] float32, mean 0 over the components; -inf on padding
    offset: float  # what was subtracted from the density's factor to make const
    unit: float  # scaled product * unit = exponent of the density
    error: float  # estimated rms error of a log-density where it counts, nats


def padded_features(dims: int) -> int:
    """K, the number of features of a channel as the matrix products take it: a power of two from 16."""
    return max(16, 1 << (2 * dims - 1).bit_length())


def expand(components: Components) -> Expansion:
    """Features and constants of the components, and what rounding them costs.

    A power of two moves each feature's size to the middle between samples and components, and another one for all
    brings the largest near float16's limit, so that the halves lose nothing to underflow. A sample so far from every
    component that its features overflow gives no finite sum.
    """
    d = components.mu.shape[1]
    mu, scale = components.mu[: components.real], components.scale[: components.real]
    centre = mu.mean(0)
    nu = mu - centre
    precision = scale.square()
    variance = 0.5 * LOG2_E / precision
    square = (nu.square() + variance).mean(0)
    features = torch.cat([-precision, 2 * precision * nu], 1)
    common = features.mean(0)
    const = components.const[: components.real] - (precision * nu.square()).sum(1) + features[:, :d] @ square
    mean = const.mean()
    features -= common
    const -= mean

    reach = (nu.abs() + FARTHEST * variance.sqrt()).amax(0)
    sample_size = torch.cat([torch.maximum(reach.square(), square), reach]).clamp(min=NEGLIGIBLE).log2().ceil()
    size = features.abs().amax(0).clamp(min=NEGLIGIBLE).log2().ceil()
    total = math.log2(SCALED_MAXIMUM) - (sample_size + size).max().item()
    exponent = ((total + size - sample_size) / 2).floor()
    padding = (0, 0, 0, len(components.mu) - components.real)
    high, low = halves(torch.nn.functional.pad(features, padding), total - exponent)
    return Expansion(
        centre,
        square,
        common,
        exponent,
        high,
        low,
        torch.nn.functional.pad(const, padding[2:], value=-math.inf).float(),
        components.offset + mean.item(),
        2.0**-total,
        _rounding_error(nu, variance, square, features, const),
    )


def _rounding_error(nu: Tensor, variance: Tensor, square: Tensor, features: Tensor, const: Tensor) -> float:
    """Estimated rms error of a log-density, nats.

    ROUNDING times the sum of the sizes of the products, in the root mean square over components and over the samples
    that each generates: given a sample, its component is distributed as the terms of the sum weigh.
    """
    fourth = nu.square().square() + 6 * nu.square() * variance + 3 * variance.square()
    second = nu.square() + variance
    spread = (fourth - 2 * square * second + square.square()).clamp(min=0).sqrt()
    gross = (torch.cat([spread, second.sqrt()], 1) * features.abs()).sum(1) + const.abs() / 4
    return ROUNDING * math.log(2) * gross.square().mean().sqrt().item()


def gemm_channel(u: Tensor, reference: Tensor, expansion: Expansion) -> tuple[GemmChannel, Tensor]:
    """Operands for samples u [S, d] with float64 references [S] in units of log 2, and the rounding of those [S]."""
    x = u.double() - expansion.centre
    features = torch.cat([x.square() - expansion.square, x], 1)
    exact = reference - expansion.offset - features @ expansion.common
    high, low = halves(features, expansion.exponent)
    rounded = exact.float()
    channel = GemmChannel(high, low, rounded, expansion.high, expansion.low, expansion.const, expansion.unit)
    return channel, rounded - exact


def halves(rows: Tensor, exponent: Tensor) -> tuple[Tensor, Tensor]:
    """High and low float16 halves [n, K] of rows [n, 2d] times 2^exponent, padded with zeros."""
    width = padded_features(rows.shape[1] // 2)
    scaled = torch.nn.functional.pad(torch.ldexp(rows, exponent), (0, width - rows.shape[1]))
    high = scaled.half()
    return high, (scaled - high).half()
