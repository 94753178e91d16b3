"""Sums of Gaussian densities over many components, for many samples, by the CPU library (csrc/mixture/)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ibvit_kernels import library

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
# As in csrc/: samples per tile of the widest instruction set, samples per thread, components at once.
_LARGEST_TILE, _SAMPLES_PER_THREAD, _COMPONENTS_AT_ONCE = 64, 8 * 64, 32
_FLOATS, _DOUBLES, _INTS = (ctypes.POINTER(c) for c in (ctypes.c_float, ctypes.c_double, ctypes.c_int32))


class Mixture:
    """Channels over the same components, in the layout of the library.

    Args:
        mu, logvar: for each channel `[M, d]` float32, d ≥ 1; they are copied.

    Raises:
        ValueError: shapes or types differ from that.
        RuntimeError: there is no library.

    Example:
        >>> mu = np.array([[-20.0], [20.0]], np.float32)
        >>> reference = np.full(2, -0.5 * np.log(2 * np.pi))
        >>> single, _ = Mixture([mu], [0 * mu]).log_sums([mu], [0], [reference], np.empty((0, 2), int))
        >>> single.round(6).tolist()  # each point sees its own component only: log 1
        [[0.0, 0.0]]
    """

    def __init__(self, mu: Sequence[Float32], logvar: Sequence[Float32]) -> None:
        self._library = library.load()
        self._packed: list[Float32] = []
        self._offset: list[float] = []
        self._dims: list[int] = []
        self._components = len(mu[0])
        for k, (means, logvars) in enumerate(zip(mu, logvar, strict=True)):
            means = _checked(means, f"mu[{k}]", np.float32, (self._components, None))
            logvars = _checked(logvars, f"logvar[{k}]", np.float32, means.shape)
            dims, offset = means.shape[1], ctypes.c_double()
            packed = np.empty(self._library.ibvit_mixture_packed_size(self._components, dims), np.float32)
            status = self._library.ibvit_mixture_pack(
                self._components,
                dims,
                means.ctypes.data_as(_FLOATS),
                logvars.ctypes.data_as(_FLOATS),
                packed.ctypes.data_as(_FLOATS),
                ctypes.byref(offset),
                os.cpu_count() or 1,
            )
            library.check(status)
            self._packed.append(packed)
            self._offset.append(offset.value)
            self._dims.append(dims)

    def bytes_per_thread(self, channel: Sequence[int], pairs: int) -> int:
        """Bytes per thread that `log_sums` allocates at most, for these columns and so many pairs."""
        width, rows = sum(self._dims[k] for k in channel), len(channel) + pairs
        operands = _SAMPLES_PER_THREAD * (4 * width + 4 * len(channel) + 8 * rows)
        return operands + _LARGEST_TILE * 4 * (rows + _COMPONENTS_AT_ONCE * len(channel)) + 64 * 8 * len(channel)

    def log_sums(
        self,
        u: Sequence[Float32],
        channel: Sequence[int],
        reference: Sequence[Float64],
        pairs: NDArray[np.int64],
        *,
        threads: int | None = None,
        instruction_set: str | None = None,
    ) -> tuple[Float64, Float64]:
        """Logarithms of sums over components i::

            l_c(s, i)    = log N(u_c[s]; mu[i], exp(logvar[i])) − reference_c[s]
            single[c, s] = log Σ_i exp(l_c(s, i))
            pair[p, s]   = log Σ_i exp(l_a(s, i) + l_b(s, i)),  p = (a, b)

        Args:
            u: for each column `[S, d]` float32, finite: points of channel `channel[c]`.
            channel: the channel of each column.
            reference: for each column `[S]` float64, in nats; ideally the log-density of u's own component, any finite
                numbers are right.
            pairs: `[P, 2]` columns.
            threads: None: one per core.
            instruction_set: one of `library.instruction_sets()`; None: the first.

        Returns:
            single `[columns, S]` and pair `[P, S]`, float64, nats. Terms are float32, in the direct-difference form;
            float64 from the second level of addition on.

        Raises:
            ValueError: shapes or types differ from that; no such instruction set.
            MemoryError: no room for the workspace, see `bytes_per_thread`.
        """
        columns, samples = len(u), len(u[0])
        dims = [self._dims[k] for k in channel]
        u = [_checked(x, f"u[{c}]", np.float32, (samples, dims[c])) for c, x in enumerate(u)]
        reference = [_checked(r, f"reference[{c}]", np.float64, (samples,)) for c, r in enumerate(reference)]
        pair = np.ascontiguousarray(pairs, np.int32)
        if pair.shape != (len(pair), 2) or (pair.size and not 0 <= pair.min() <= pair.max() < columns):
            raise ValueError(f"pairs: expected [P, 2] indices below {columns}, got {np.asarray(pairs).tolist()}")
        single, pair_sums = np.empty((columns, samples)), np.empty((len(pair), samples))
        status = self._library.ibvit_mixture_log_sums(
            self._components,
            samples,
            columns,
            np.asarray(dims, np.int32).ctypes.data_as(_INTS),
            _pointers([self._packed[k] for k in channel], _FLOATS),
            np.asarray([self._offset[k] for k in channel]).ctypes.data_as(_DOUBLES),
            _pointers(u, _FLOATS),
            _pointers(reference, _DOUBLES),
            len(pair),
            pair.ctypes.data_as(_INTS),
            single.ctypes.data_as(_DOUBLES),
            pair_sums.ctypes.data_as(_DOUBLES),
            threads or os.cpu_count() or 1,
            library.instruction_set_index(instruction_set),
        )
        library.check(status)
        return single, pair_sums


def _checked(array: Any, name: str, dtype: type, shape: tuple[int | None, ...]) -> Any:
    """The array in C order, if dtype and shape are as expected."""
    fits = array.ndim == len(shape) and all(e is None or e == n for e, n in zip(shape, array.shape, strict=True))
    if array.dtype != dtype or not fits or 0 in array.shape[1:]:
        raise ValueError(f"{name}: expected {np.dtype(dtype)} {list(shape)}, got {array.dtype} {list(array.shape)}")
    return np.ascontiguousarray(array)


def _pointers(arrays: Sequence[NDArray[Any]], pointer: Any) -> Any:
    return (pointer * len(arrays))(*(a.ctypes.data_as(pointer) for a in arrays))
