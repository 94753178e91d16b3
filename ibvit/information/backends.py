"""Where the sums over components are done: the CPU library, Triton, or plain torch.

`torch` is the plain path and the specification of the estimator, as `reference` is that of the bottleneck.

A *column* is one draw of u for every sample, from one of the channels; two columns of one channel are U and U′. For
sample s and component i let ℓ_c = log N(u_c(s); mu[i], exp(logvar[i])) − reference_c(s). Every backend computes

    single[c, s] = log Σ_i exp(ℓ_c)            pair[p, s] = log Σ_i exp(ℓ_a + ℓ_b),  p = (a, b)

The reference is the log-density of the component that u was drawn from: its own term is exp(0), so the sums are at
least 1 and need no running maximum.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from ibvit import arguments
from ibvit.errors import UnavailableError
from ibvit.information.channel import Channel

Impl = Literal["auto", "native", "triton", "torch"]
WORKSPACE_BYTES = 1 << 28  # of one call on a CPU, beside a backend's layout of the channels and the results
GPU_WORKSPACE_BYTES = 1 << 32  # the same on a CUDA device
PAIRS_PER_CALL = 1 << 30  # per call on a CPU, so that Ctrl-C and the progress bar respond within about a second


class Mixture(Protocol):
    """Channels over the same components, ready to be summed over."""

    impl: str

    def log_sums(
        self, u: Sequence[Tensor], channel: Sequence[int], reference: Sequence[Tensor], pairs: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The sums of the module's docstring, in float64.

        Args:
            u: for each column `[S, d]` float32, a draw from channel `channel[c]`.
            channel: the channel of each column.
            reference: for each column `[S]` float64.
            pairs: `[P, 2]` int64, column indices.

        Returns:
            single `[columns, S]` and pair `[P, S]`, float64.
        """
        ...

    def samples_per_call(self, channel: Sequence[int]) -> int:
        """How many samples to pass at once, so that memory stays bounded and an interrupt is answered."""
        ...


def open_mixture(channels: Sequence[Channel], impl: Impl = "auto", threads: int | None = None) -> Mixture:
    """Prepare channels for one backend.

    Args:
        impl: `auto` takes Triton for CUDA tensors and the CPU library for others, torch where that is not available;
            any other value takes that backend or raises.
        threads: of the CPU library; None: as many as torch uses.

    Raises:
        ValueError: no such backend, or not for tensors on this device.
        UnavailableError: the backend is not available here; the message says why.
    """
    arguments.choice("impl", impl, get_args(Impl))
    device = channels[0].mu.device.type
    if impl == "auto":
        impl = _best(device)
    if impl == "torch":
        return TorchMixture(channels)
    expected = {"native": "cpu", "triton": "cuda"}[impl]
    if device != expected:
        raise ValueError(f"impl: {impl!r} takes {expected} tensors, got tensors on {device}")
    if (reason := why_missing(impl)) is not None:
        raise UnavailableError(f"impl: {impl!r} is not available: {reason}")
    return NativeMixture(channels, threads) if impl == "native" else TritonMixture(channels)


@lru_cache
def _best(device: str) -> Literal["native", "triton", "torch"]:
    preferred: dict[str, Literal["native", "triton"]] = {"cpu": "native", "cuda": "triton"}
    log = logging.getLogger("ibvit")
    if device not in preferred:
        return "torch"
    if (reason := why_missing(preferred[device])) is not None:
        log.warning("information: %s is not available (%s); using torch", preferred[device], reason)
        return "torch"
    log.info("information: using %s for tensors on %s", preferred[device], device)
    return preferred[device]


@lru_cache
def why_missing(impl: str) -> str | None:
    """Why a backend cannot be used, or None."""
    try:
        if impl == "native":
            from ibvit_kernels import library

            return library.why_absent()
        from ibvit_kernels import why_no_triton
    except ImportError as error:
        return str(error)
    return why_no_triton()


class NativeMixture:
    """The CPU library of csrc/, float32 direct differences."""

    impl = "native"

    def __init__(self, channels: Sequence[Channel], threads: int | None) -> None:
        from ibvit_kernels.mixture import native

        self._sums = native.Mixture([c.mu.numpy() for c in channels], [c.logvar.numpy() for c in channels])
        self._threads = threads or torch.get_num_threads()
        self._channels = channels

    def samples_per_call(self, channel: Sequence[int]) -> int:
        work = sum(8 + self._channels[c].dims for c in channel) / 8 * self._channels[0].components
        return max(64 * self._threads, int(PAIRS_PER_CALL / work))

    def threads(self, channel: Sequence[int], pairs: int) -> int:
        """As many as were asked for, as far as the workspace goes."""
        return max(1, min(self._threads, WORKSPACE_BYTES // self._sums.bytes_per_thread(channel, pairs)))

    def log_sums(
        self, u: Sequence[Tensor], channel: Sequence[int], reference: Sequence[Tensor], pairs: Tensor
    ) -> tuple[Tensor, Tensor]:
        threads = self.threads(channel, len(pairs))
        single, pair = self._sums.log_sums(
            [x.numpy() for x in u], channel, [r.numpy() for r in reference], pairs.numpy(), threads=threads
        )
        return torch.from_numpy(single), torch.from_numpy(pair)


class TritonMixture:
    """The GPU kernels of `ibvit_kernels.mixture.host`."""

    impl = "triton"

    def __init__(self, channels: Sequence[Channel]) -> None:
        from ibvit_kernels.mixture import host

        self._sums = host.Mixture([c.mu for c in channels], [c.logvar for c in channels])
        self._channels = channels

    def samples_per_call(self, channel: Sequence[int]) -> int:
        from ibvit_kernels.mixture.layouts import samples_at_once

        widest = sorted((self._channels[c].dims for c in channel), reverse=True)
        return samples_at_once(widest[:2])  # channels are summed one by one, or in pairs

    def log_sums(
        self, u: Sequence[Tensor], channel: Sequence[int], reference: Sequence[Tensor], pairs: Tensor
    ) -> tuple[Tensor, Tensor]:
        single, pair = self._sums.log_sums(u, channel, reference, pairs)
        return single, pair


class TorchMixture:
    """Float64 matrix products on any device: the specification.

    log N is the inner product of (u², u) with (−½/σ², μ/σ²) plus a constant. Its cancellation costs (μ/σ)² roundings,
    which float64 affords and float32 does not.
    """

    impl = "torch"
    _SAFE = 300.0  # exp(2 · 300) and the sum of many such terms are finite in float64

    def __init__(self, channels: Sequence[Channel]) -> None:
        self._channels = channels
        self._workspace = GPU_WORKSPACE_BYTES if channels[0].mu.is_cuda else WORKSPACE_BYTES

    def samples_per_call(self, channel: Sequence[int]) -> int:
        return max(1, min(256, self._workspace // (32 * len(channel) ** 2)))

    def log_sums(
        self, u: Sequence[Tensor], channel: Sequence[int], reference: Sequence[Tensor], pairs: Tensor
    ) -> tuple[Tensor, Tensor]:
        samples = len(u[0])
        gram = torch.zeros(samples, len(u), len(u), dtype=torch.float64, device=u[0].device)
        total = torch.zeros(len(u), samples, dtype=torch.float64, device=u[0].device)
        for rows in self._slices(channel, samples):
            terms = self._log_ratios(u, channel, reference, rows).clamp_(max=self._SAFE).exp_()  # [columns, S, rows]
            total += terms.sum(-1)
            if len(pairs):
                gram += terms.permute(1, 0, 2) @ terms.permute(1, 2, 0)
        single, pair = total.log(), gram[:, pairs[:, 0], pairs[:, 1]].T.log()
        for s in (single >= self._SAFE).any(0).nonzero():  # u where other components are denser by e^300: in logarithms
            one, own = [x[s] for x in u], [r[s] for r in reference]
            slices = self._slices(channel, 1 + 3 * len(pairs) // len(u))
            parts = [self._logarithms(one, channel, own, pairs, rows) for rows in slices]
            single[:, s], pair[:, s] = torch.stack(parts).logsumexp(0).split([len(u), len(pairs)])
        return single, pair

    def _slices(self, channel: Sequence[int], samples: int) -> Iterator[slice]:
        """Components at once: terms and their copies in float64, and a channel's parameters, fit the workspace."""
        dims = max(self._channels[c].dims for c in channel)
        at_once = max(1, self._workspace // 2 // (24 * len(channel) * max(samples, 1) + 96 * dims))
        for start in range(0, self._channels[0].components, at_once):
            yield slice(start, start + at_once)

    def _logarithms(
        self, u: Sequence[Tensor], channel: Sequence[int], reference: Sequence[Tensor], pairs: Tensor, rows: slice
    ) -> Tensor:
        """log Σ over some components for one sample, singles then pairs, `[columns + P, 1]`."""
        terms = self._log_ratios(u, channel, reference, rows)
        return torch.cat([terms, terms[pairs[:, 0]] + terms[pairs[:, 1]]]).logsumexp(-1)

    def _log_ratios(
        self, u: Sequence[Tensor], channel: Sequence[int], reference: Sequence[Tensor], rows: slice
    ) -> Tensor:
        """ℓ `[columns, S, rows]`, float64."""
        ratios = []
        for x, c, r in zip(u, channel, reference, strict=True):
            x, mu, rho = x.double(), self._channels[c].mu[rows].double(), self._channels[c].logvar[rows].double()
            precision = torch.exp(-rho)
            constant = -0.5 * (mu.square() * precision + rho + _LOG_2PI).sum(1)
            features = torch.cat([x.square(), x], 1)
            weights = torch.cat([-0.5 * precision, mu * precision], 1)
            ratios.append(torch.addmm(constant - r[:, None], features, weights.T))
        return torch.stack(ratios)


_LOG_2PI = 1.8378770664093453
