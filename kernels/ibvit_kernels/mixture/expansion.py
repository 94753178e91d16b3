"""The quadratic in a Gaussian exponent, expanded into a product of features with little cancellation.

With x = u - centre, nu = mu - centre and s as in `sorting`,

    -sum_j s_j^2 (x_j - nu_j)^2 = (x^2, x) . (-s^2, 2 s^2 nu) - sum_j s_j^2 nu_j^2.

The mean of the features is subtracted from each factor. The part that all components share goes to the reference of the
sample, and the part that all samples share goes to the constant of the component. The features that remain are small
where components overlap, and there many components count.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ibvit_kernels.mixture.gemm import GemmChannel
from ibvit_kernels.mixture.sorting import LOG2_E, Components

ROUNDING = 2**-23  # error of a sum of products per sum of absolute products: halves of 22 bits, float32 accumulation
SCALED_MAXIMUM = 2.0**28  # of the product of the largest values of a feature; each stays below 2^15 in float16
FARTHEST = 8.0  # standard deviations at which a sample still has finite features
NEGLIGIBLE = 2.0**-30  # a feature this small needs no digits


class Expansion(NamedTuple):
    """The side of the components in the product, in float16 halves, and the numbers that `gemm_channel` needs."""

    centre: Tensor  # [d] float64
    square: Tensor  # [d] float64: mean of x^2 over the mixture
    common: Tensor  # [2d] float64: mean features of the components
    exponent: Tensor  # [2d] float64: the features of the samples are scaled by two to this power
    high: Tensor  # [M, K] float16, K >= 2d
    low: Tensor  # [M, K] float16
    const: Tensor  # [M] float32, mean 0 over the components; -inf on padding
    offset: float  # was subtracted from the factor of the density to give const
    unit: float  # exponent of the density = unit * product of scaled features; a power of two
    error: float  # estimated rms error of a log-density where it counts, nats


def padded_features(dims: int) -> int:
    """K, the number of features of a channel as the matrix products take it: a power of two from 16."""
    return max(16, 1 << (2 * dims - 1).bit_length())


def expand(components: Components) -> Expansion:
    """Features and constants of the components, and the error of rounding them.

    Each feature is scaled by a power of two, so that samples and components have the same size. Another power of two,
    one for all features, brings the largest near the limit of float16, so that the halves lose nothing to underflow. A
    sample so far from every component that features overflow gives no finite sum.
    """
    d = components.mu.shape[1]
    mu, scale = components.mu[: components.component_count], components.scale[: components.component_count]
    centre = mu.mean(0)
    nu = mu - centre
    precision = scale.square()
    variance = 0.5 * LOG2_E / precision
    square = (nu.square() + variance).mean(0)
    features = torch.cat([-precision, 2 * precision * nu], 1)
    common = features.mean(0)
    const = components.const[: components.component_count] - (precision * nu.square()).sum(1) + features[:, :d] @ square
    mean = const.mean()
    features -= common
    const -= mean

    reach = (nu.abs() + FARTHEST * variance.sqrt()).amax(0)
    sample_size = torch.cat([torch.maximum(reach.square(), square), reach]).clamp(min=NEGLIGIBLE).log2().ceil()
    size = features.abs().amax(0).clamp(min=NEGLIGIBLE).log2().ceil()
    total = math.log2(SCALED_MAXIMUM) - (sample_size + size).max().item()
    exponent = ((total + size - sample_size) / 2).floor()
    padding = (0, 0, 0, len(components.mu) - components.component_count)
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
    that each component generates. Given a sample, the terms of the sum are the weights of the components.
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
    reference = reference - expansion.offset - features @ expansion.common
    high, low = halves(features, expansion.exponent)
    reference32 = reference.float()
    channel = GemmChannel(high, low, reference32, expansion.high, expansion.low, expansion.const, expansion.unit)
    return channel, reference32 - reference


def halves(rows: Tensor, exponent: Tensor) -> tuple[Tensor, Tensor]:
    """High and low float16 halves [n, K] of rows [n, 2d] times 2^exponent, padded with zeros."""
    width = padded_features(rows.shape[1] // 2)
    scaled = torch.nn.functional.pad(torch.ldexp(rows, exponent), (0, width - rows.shape[1]))
    high = scaled.half()
    return high, (scaled - high).half()
