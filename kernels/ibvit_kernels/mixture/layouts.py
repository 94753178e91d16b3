"""One or two channels laid out for one kernel, and the choice of the kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ibvit_kernels.mixture.direct import DirectChannel, direct_components, launch_direct
from ibvit_kernels.mixture.expansion import Expansion, expand, gemm_channel, padded_features
from ibvit_kernels.mixture.gemm import gemm_tile, generation, launch_gemm, launch_screen
from ibvit_kernels.mixture.sorting import (
    COMPONENT_PADDING,
    LOG2_E,
    SAMPLE_TILE,
    SORTED_RUN,
    Components,
    bounding_boxes,
    box_flags,
    pad_samples,
    prepare_components,
    sort_axes,
    spatial_order,
)

Form = Literal["auto", "direct", "gemm", "screen"]
SKIPPED = 2.0**-24  # the most that a sum may lose to skipping, of a sum that is at least 1
# Dimensions from which tensor cores win: direct differences take 3 d + 3 instructions, and exp2 the time of 8.
GEMM_FROM = 3
GEMM_ERROR = 2e-5  # nats, rms: the expansion is used up to this estimated error
FUSED_ERROR = 2e-6  # nats, rms: up to this error u * scale - mu * scale replaces (u - mu) * scale, an instruction less
DIRECT_BLOCK = 128  # components that share a bounding box in the direct form
WORKSPACE_BYTES = 1 << 32  # of one call, beside the channels' layouts and the results
SAMPLES_AT_ONCE = 1 << 19  # at most: more sort no better
SAMPLE_BYTES, SAMPLE_DIMENSION_BYTES = 1024, 80  # of the operands: per sample, and per sample and dimension


def samples_at_once(dims: Sequence[int]) -> int:
    """How many samples of channels of these dimensions WORKSPACE_BYTES have room for."""
    capacity = WORKSPACE_BYTES // (SAMPLE_BYTES + SAMPLE_DIMENSION_BYTES * sum(dims))
    return min(SAMPLES_AT_ONCE, max(1, capacity // SAMPLE_TILE) * SAMPLE_TILE)


class Layout:
    """One or two channels over the same components, which are sorted for these channels together."""

    def __init__(self, mu: Sequence[Tensor], logvar: Sequence[Tensor], form: Form = "auto") -> None:
        self._axes = [sort_axes(m, v) for m, v in zip(mu, logvar, strict=True)]
        order = spatial_order(self._points(mu), SORTED_RUN)
        count = 1 if mu[0] is mu[-1] and logvar[0] is logvar[-1] else 2  # different channels
        components = [prepare_components(m, v, order) for m, v in zip(mu[:count], logvar[:count], strict=True)]
        if form == "auto" and max(m.shape[1] for m in mu) < GEMM_FROM:
            form = "direct"
        expansions = [expand(c) for c in components] if form != "direct" else []
        self.form = _choose([m.shape[1] for m in mu], expansions, generation(mu[0])) if form == "auto" else form
        block = DIRECT_BLOCK if self.form == "direct" else COMPONENT_PADDING
        self.fused = _fused_error(components) <= FUSED_ERROR
        self._threshold = math.log2(SKIPPED / components[0].component_count)
        repeats = len(mu) // count
        self._boxes = [bounding_boxes(c, block) for c in components] * repeats
        self._expansions = expansions * repeats
        self._direct = [direct_components(c, self.fused) for c in components] * repeats if self.form != "gemm" else []

    def log_sums(self, u: Sequence[Tensor], reference: Sequence[Tensor]) -> Tensor:
        """[1 or 3, S] log-sums of S <= samples_at_once(dims) samples: of each channel, and of the pair.

        u: [S, d] float32 for each channel; reference: [S], nats.
        """
        count = len(u[0])
        order = spatial_order(self._points(u), SAMPLE_TILE)
        u = [pad_samples(x[order]) for x in u]
        reference = [LOG2_E * pad_samples(r[order].double()) for r in reference]
        # A block that is negligible in both channels is so in their product.
        flags = [box_flags(x, r, b, self._threshold) for x, r, b in zip(u, reference, self._boxes, strict=True)]
        coarse = torch.stack(flags).any(0).to(torch.int8)
        sums, rounding = (self._gemm if self.form == "gemm" else self._differences)(u, reference, coarse)
        if len(u) == 2:
            rounding = torch.cat([rounding, rounding.sum(0, keepdim=True)])
        logs = torch.empty(len(sums), count, dtype=torch.float64, device=sums.device)
        logs[:, order] = (sums.log() + math.log(2) * rounding)[:, :count]
        return logs

    def _points(self, rows: Sequence[Tensor]) -> Tensor:
        """Coordinates of means or samples in the space in which they are sorted."""
        return torch.cat([r[:, axes] * inverse for r, (axes, inverse) in zip(rows, self._axes, strict=True)], 1)

    def _gemm(self, u: Sequence[Tensor], reference: Sequence[Tensor], flags: Tensor) -> tuple[Tensor, Tensor]:
        operands = [gemm_channel(x, r, e) for x, r, e in zip(u, reference, self._expansions, strict=True)]
        channels, rounding = zip(*operands, strict=True)
        return launch_gemm(channels, flags), torch.stack(rounding)

    def _differences(self, u: Sequence[Tensor], reference: Sequence[Tensor], flags: Tensor) -> tuple[Tensor, Tensor]:
        if self.form == "screen":
            products = [gemm_channel(x, r, e)[0] for x, r, e in zip(u, reference, self._expansions, strict=True)]
            flags = torch.stack([launch_screen(p, flags, self._threshold) for p in products]).amax(0)
        reference = [r - c.offset for r, c in zip(reference, self._direct, strict=True)]
        channels = [
            DirectChannel(x.T.contiguous(), r.float(), c.centre, c.scale, c.const)
            for x, r, c in zip(u, reference, self._direct, strict=True)
        ]
        return launch_direct(channels, flags, self.fused), torch.stack([r.float() - r for r in reference])


def _choose(dims: Sequence[int], expansions: Sequence[Expansion], device_generation: int) -> Form:
    fits = gemm_tile([padded_features(d) for d in dims], device_generation) is not None
    return "gemm" if fits and all(e.error <= GEMM_ERROR for e in expansions) else "screen"


def _fused_error(components: Sequence[Components]) -> float:
    """Estimated rms error, nats, of a log-density whose mu / sigma were rounded to float32."""
    squares = [(c.scale * c.mu)[: c.component_count].square().sum(1).mean() for c in components]
    return 2.0**-25 * math.sqrt(max(squares).item() / (0.5 * LOG2_E))
