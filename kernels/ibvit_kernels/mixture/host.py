"""Log-sums of Gaussian density ratios over many components, on a GPU.

For samples u with a reference r (the log-density of the component that u was drawn from) and components i,

    single[c, s] = log sum_i exp(l_c(s, i) - r_c(s))
    pair[p, s]   = log sum_i exp(l_a(s, i) - r_a(s) + l_b(s, i) - r_b(s)),     p = (a, b)
    l_c(s, i)    = log N(u_c(s); mu_c[i], diag exp(logvar_c[i]))

The term of the sample's own component is exp(0), so a sum is at least 1, needs no running maximum, and may leave out
terms that add up to less than SKIPPED. Three forms, chosen by dimension and by what rounding would do to these data:

- direct: differences u - mu in float32, 2 or 3 instructions per dimension and term (`direct`);
- gemm: the expanded quadratic on tensor cores, float16 halves, where its estimated rms error is below GEMM_ERROR;
- screen: elsewhere. One float16 product with an error bound finds the tiles that matter; these are computed directly.

In all of them components and samples are sorted in space, and blocks of components whose bounding box is too far from a
tile of samples are skipped. Pairs come from products of exponentials, not from the exponential of a sum: one
multiplication instead of one more exp2, the scarcest instruction. The product is safe as long as both sums are below
2^GUARD_BITS times the number of components: no factor overflows, and where one underflows the term is below SKIPPED.
Samples drawn as promised exceed that with probability below 2^-GUARD_BITS (Markov: the mean of exp(l - r) is at most
1). Such samples are computed again in float64. So are samples with a sum below 1/2: their reference belongs to no
component.

Sums run in float32 over a block of components and in float64 beyond; there are no atomics, so results repeat bitwise.

Memory: a call takes at most `layouts.WORKSPACE_BYTES` beside its results. Each of the MOST_LAYOUTS layouts of a
channel or of a pair takes 20 bytes per component and dimension, and 160 during preparation; 8 dimensions at least.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from ibvit_kernels.mixture import layouts
from ibvit_kernels.mixture.layouts import Form, Layout, samples_at_once

GUARD_BITS = 20
MOST_LAYOUTS = 4  # layouts of channels, or of pairs of channels, that stay on the device
CAREFUL_BYTES = 96  # per sample and component that are computed again in float64
LARGEST_DIMENSION = 128


class LogSums(NamedTuple):
    """Natural logarithms of sums over components, float64."""

    single: Tensor  # [C, S]
    pair: Tensor  # [P, S]


class Mixture:
    """Channels over the same components, prepared once for many calls.

    mu, logvar: for each channel [M, d] float32 on one device, d from 1 to 128.
    form: "auto" chooses by dimension and data; the others are for tests and measurements.

    Raises ValueError for an unknown form and for shapes that do not fit, TypeError for other types than float32.

    Four posteriors so far apart that each sample knows its component, two samples of each; I(X;U) = log 4:

    >>> device = "cuda" if torch.cuda.is_available() else "cpu"  # the interpreter, with TRITON_INTERPRET=1
    >>> mu = torch.tensor([[-30.0], [-10.0], [10.0], [30.0]], device=device)
    >>> logvar = torch.zeros_like(mu)
    >>> u = torch.cat([mu, mu + 1])
    >>> reference = -0.5 * ((u - mu.repeat(2, 1)) ** 2 + math.log(2 * math.pi)).sum(1)
    >>> no_pairs = torch.empty(0, 2, dtype=torch.long)
    >>> single, pair = Mixture([mu], [logvar]).log_sums([u], [0], [reference], no_pairs)
    >>> round(math.log(4) - single.mean().item(), 4)
    1.3863
    """

    def __init__(self, mu: Sequence[Tensor], logvar: Sequence[Tensor], form: Form = "auto") -> None:
        if form not in get_args(Form):
            raise ValueError(f"form: expected one of {', '.join(get_args(Form))}, got {form!r}")
        for m, v in zip(mu, logvar, strict=True):
            if m.ndim != 2 or m.shape != v.shape or len(m) != len(mu[0]) or not 1 <= m.shape[1] <= LARGEST_DIMENSION:
                raise ValueError(
                    f"mu, logvar: expected [M, d] with one M for all and d from 1 to {LARGEST_DIMENSION}, "
                    f"got {list(m.shape)} and {list(v.shape)}"
                )
            if m.dtype != torch.float32 or v.dtype != torch.float32:
                raise TypeError(f"mu, logvar: expected float32, got {m.dtype} and {v.dtype}")
        self._mu, self._logvar, self._form = mu, logvar, form
        self._layouts: dict[tuple[int, ...], Layout] = {}

    def log_sums(
        self, u: Sequence[Tensor], channel: Sequence[int], reference: Sequence[Tensor], pairs: Tensor
    ) -> LogSums:
        """Log-sums for columns of samples.

        u: for each column [S, d] float32, drawn from channel `channel[column]`.
        reference: for each column [S], the log-density of the component that the sample was drawn from.
        pairs: [P, 2] integers, columns.

        Raises ValueError for samples of another shape than the channel's, TypeError for other types than float32.
        """
        for x, c in zip(u, channel, strict=True):
            if x.shape != (len(u[0]), self._mu[c].shape[1]):
                expected = [len(u[0]), self._mu[c].shape[1]]
                raise ValueError(f"u: expected {expected} from channel {c}, got {list(x.shape)}")
            if x.dtype != torch.float32:
                raise TypeError(f"u: expected float32, got {x.dtype}")
        shape = (len(u), len(u[0]))
        single = torch.full(shape, math.nan, dtype=torch.float64, device=u[0].device)
        pair = torch.empty(len(pairs), shape[1], dtype=torch.float64, device=u[0].device)
        unpaired_columns = set(range(len(u)))
        with torch.cuda.device_of(u[0]):  # Triton launches on the current device
            for p, (a, b) in enumerate(pairs.tolist()):
                single[a], single[b], pair[p] = self._sums([a, b], u, channel, reference)
                unpaired_columns -= {a, b}
            for c in unpaired_columns:
                (single[c],) = self._sums([c], u, channel, reference)
        return LogSums(single, pair)

    def _sums(
        self, columns: Sequence[int], u: Sequence[Tensor], channel: Sequence[int], reference: Sequence[Tensor]
    ) -> Tensor:
        """[1 or 3, S] log-sums of one or two columns and of their pair."""
        if len(u[0]) == 0:
            return torch.empty(2 * len(columns) - 1, 0, dtype=torch.float64, device=u[0].device)
        layout = self._layout(tuple(channel[c] for c in columns))
        parts = []
        at_once = samples_at_once([x.shape[1] for x in u])
        for start in range(0, len(u[0]), at_once):
            rows = slice(start, start + at_once)
            parts.append(layout.log_sums([u[c][rows] for c in columns], [reference[c][rows] for c in columns]))
        logs = torch.cat(parts, 1)
        largest = math.log(2) * GUARD_BITS + math.log(len(self._mu[0]))
        mask_uncertain = ~((logs >= math.log(0.5)) & (logs[: len(columns)].amax(0) <= largest)).all(0)
        samples_at_a_time = max(1, layouts.WORKSPACE_BYTES // (CAREFUL_BYTES * len(self._mu[0])))
        for s in mask_uncertain.nonzero()[:, 0].split(samples_at_a_time):
            terms = torch.stack([self._log_ratios(u[c][s], channel[c], reference[c][s]) for c in columns])
            if len(columns) == 2:
                terms = torch.cat([terms, terms.sum(0, keepdim=True)])
            logs[:, s] = terms.logsumexp(2)
        return logs

    def _log_ratios(self, u: Tensor, channel: int, reference: Tensor) -> Tensor:
        """[S, M] float64, for a few samples, one dimension after the other."""
        mu, logvar = self._mu[channel], self._logvar[channel]
        ratios = -reference.double()[:, None].expand(-1, len(mu)).clone()
        for x, m, v in zip(u.double().T, mu.T, logvar.T, strict=True):
            v = v.double()
            ratios -= 0.5 * ((x[:, None] - m.double()).square_() * torch.exp(-v) + (v + math.log(2 * math.pi)))
        return ratios

    def _layout(self, channels: tuple[int, ...]) -> Layout:
        if channels not in self._layouts:
            if len(self._layouts) == MOST_LAYOUTS:
                self._layouts.pop(next(iter(self._layouts)))
            mu, logvar = [self._mu[c] for c in channels], [self._logvar[c] for c in channels]
            self._layouts[channels] = Layout(mu, logvar, self._form)
        return self._layouts[channels]
