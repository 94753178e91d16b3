"""The layout of samples and components for the mixture kernels: sorted in space and padded, with bounds on boxes.

Exponents are in units of log 2 throughout: with s = sqrt(log2(e) / 2) / sigma,

    log2 N(u; mu, sigma^2) = const - sum_j (s_j (u_j - mu_j))^2.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

SAMPLE_TILE = 256  # samples that share a flag
COMPONENT_PADDING = 1024  # components are padded to a multiple of this
SORTED_DIMENSIONS = 8  # as many dimensions take part in the sort, the widest ones; narrow ones separate nothing
SORTED_RUN = 64  # the sort stops at runs of this many components
PROGRAMS = 1024  # where samples have fewer tiles than this, components are divided too
BOUNDS_AT_ONCE = 1 << 22  # bounds of a tile of samples and a block of components
LOG2_E = math.log2(math.e)


class Components(NamedTuple):
    """The components of one channel, sorted and padded to M, a multiple of COMPONENT_PADDING. float64."""

    mu: Tensor  # [M, d]
    scale: Tensor  # [M, d]: sqrt(log2(e) / 2) / sigma
    const: Tensor  # [M], mean 0 over the components; -inf on padding
    offset: float  # was subtracted from const
    component_count: int  # without padding


class Boxes(NamedTuple):
    """Bounds on the parameters of runs of components. float64."""

    low: Tensor  # [blocks, d]: smallest mu
    high: Tensor  # [blocks, d]: largest mu
    least_scale: Tensor  # [blocks, d]
    top: Tensor  # [blocks]: largest const
    offset: float  # of the components' const


def spatial_order(points: Tensor, leaf: int) -> Tensor:
    """Permutation of the rows of `points` [n, d] that makes each run of `leaf` rows a small box.

    Median splits along the widest dimension, down to runs of `leaf` rows (a k-d tree with implicit nodes).
    """
    count = len(points)
    order = torch.arange(count, device=points.device)
    length = leaf << max(0, math.ceil(math.log2(count / leaf)))
    while length > leaf:
        runs = -(-count // length)
        padded_order = torch.cat([order, order[-1:].expand(runs * length - count)]).view(runs, length)
        cells = points[padded_order]
        axis = (cells.amax(1) - cells.amin(1)).argmax(1)
        keys = cells.gather(2, axis[:, None, None].expand(-1, length, 1)).reshape(-1)
        keys[count:] = math.inf  # padding stays behind the last point
        order = padded_order.gather(1, keys.view(runs, length).argsort(dim=1, stable=True)).view(-1)[:count]
        length //= 2
    return order


def sort_axes(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """The widest dimensions, in units of their typical sigma: (indices, 1 / sigma)."""
    inverse = torch.exp(-0.5 * logvar.mean(0))
    spread = (mu.amax(0) - mu.amin(0)) * inverse
    axes = spread.topk(min(SORTED_DIMENSIONS, len(spread))).indices
    return axes, inverse[axes]


def prepare_components(mu: Tensor, logvar: Tensor, order: Tensor) -> Components:
    """Sort, pad and convert [M, d] means and log-variances."""
    mean, rho = mu[order].double(), logvar[order].double()
    const = -0.5 * LOG2_E * (rho.sum(1) + rho.shape[1] * math.log(2 * math.pi))
    offset = const.mean().item()
    padding = -len(mean) % COMPONENT_PADDING
    pad = torch.nn.functional.pad
    return Components(
        pad(mean, (0, 0, 0, padding)),
        pad(math.sqrt(0.5 * LOG2_E) * torch.exp(-0.5 * rho), (0, 0, 0, padding)),
        pad(const - offset, (0, padding), value=-math.inf),
        offset,
        len(mean),
    )


def pad_samples(rows: Tensor) -> Tensor:
    """Repeat the last row until there are a multiple of SAMPLE_TILE."""
    return torch.cat([rows, rows[-1:].expand(-len(rows) % SAMPLE_TILE, *rows.shape[1:])])


def bounding_boxes(components: Components, block: int) -> Boxes:
    """Boxes around runs of `block` components."""
    mu, scale = (rows.view(-1, block, rows.shape[1]) for rows in (components.mu, components.scale))
    return Boxes(mu.amin(1), mu.amax(1), scale.amin(1), components.const.view(-1, block).amax(1), components.offset)


def box_flags(u: Tensor, reference: Tensor, boxes: Boxes, threshold: float) -> Tensor:
    """[S / SAMPLE_TILE, blocks] bool: may an exponent of the block exceed `threshold` for a sample of the tile?

    u: [S, d], reference: [S] in units of log 2, S a multiple of SAMPLE_TILE. The bound for two boxes is the largest
    constant, less the smallest reference, less the squares of the gaps between the boxes at the smallest scale.
    """
    tiles = u.view(-1, SAMPLE_TILE, u.shape[1])
    low, high = tiles.amin(1).double(), tiles.amax(1).double()
    floor = reference.view(-1, SAMPLE_TILE).amin(1) - boxes.offset
    flags = torch.empty(len(tiles), len(boxes.top), dtype=torch.bool, device=u.device)
    at_once = max(1, BOUNDS_AT_ONCE // len(boxes.top))
    for first in range(0, len(tiles), at_once):
        part = slice(first, first + at_once)
        bound = boxes.top - floor[part, None]
        for j in range(u.shape[1]):
            gap = torch.maximum(boxes.low[:, j] - high[part, None, j], low[part, None, j] - boxes.high[:, j])
            bound -= (gap.clamp_(min=0) * boxes.least_scale[:, j]).square_()
        flags[part] = bound > threshold
    return flags


def split_components(tiles: int, blocks: int) -> tuple[int, int]:
    """(splits, blocks per split): enough programs for a GPU where samples have few tiles. The shape alone decides."""
    per_split = -(-blocks // min(blocks, -(-PROGRAMS // tiles)))
    return -(-blocks // per_split), per_split
