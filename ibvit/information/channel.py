"""A channel p(u|x): checked parameters, without the dimensions that carry nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ibvit import arguments

Array = Tensor | np.ndarray
ROWS_AT_ONCE = 1 << 16  # parameters are read in slices of this many rows: a memory-mapped file never loads as a whole
MAX_RATIO = 2.0**16  # |μ − average| / σ: there μ in float32 is off by up to 2⁻⁸ σ, I(X;U) by 3e-5 nats in a test
MAX_LOGVAR = 60.0  # exp(±60) is far outside anything a posterior does, and safely inside float32


@dataclass(frozen=True)
class Channel:
    """Diagonal Gaussians p(u|x) = N(mu[x], diag exp(logvar[x])) for equally likely x = 0 … M−1."""

    mu: Tensor  # [M, d] float32, each dimension shifted to mean 0 (no information depends on it)
    logvar: Tensor  # [M, d] float32
    divergence: Tensor  # [M] float32, KL(p(u|x) ‖ q) in nats; q: the Gaussian with the channel's mean and variances
    bias_bound: float  # nats; the dropped dimensions carry at most this much of I(X;U), given the kept ones

    @property
    def components(self) -> int:
        """M, the number of equally likely inputs."""
        return self.mu.shape[0]

    @property
    def dims(self) -> int:
        """d, the number of dimensions that were kept."""
        return self.mu.shape[1]


def load_channel(path: str | Path) -> tuple[Array, Array]:
    """Read the arrays `mu` and `logvar` of a `.npz` or `.safetensors` file.

    Raises:
        TypeError: not a path.
        OSError: the file cannot be opened; FileNotFoundError: there is none.
        ValueError: another suffix, a damaged file, or an array is missing.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "head.npz"
        >>> np.savez(file, mu=np.zeros((5, 2)), logvar=np.zeros((5, 2)))
        >>> mu, logvar = load_channel(file)
        >>> mu.shape
        (5, 2)
    """
    path = arguments.path("path", path)
    if path.suffix not in (".npz", ".safetensors"):
        raise ValueError(f"path: expected a .npz or .safetensors file, got {path.name!r}")
    with path.open("rb"):  # a missing file is named by the system's own error
        pass
    try:
        arrays = _read(path)
    except Exception as error:  # numpy, zipfile and safetensors each have several for a damaged file
        raise ValueError(
            f"{path}: expected a {path.suffix} file, cannot read it ({' '.join(str(error).split())})"
        ) from error
    missing = [name for name in ("mu", "logvar") if name not in arrays]
    if missing:
        raise ValueError(f"{path.name}: expected arrays mu and logvar, missing {' and '.join(missing)}")
    return arrays["mu"], arrays["logvar"]


def _read(path: Path) -> dict[str, Array]:
    if path.suffix == ".npz":
        with np.load(path) as stored:
            return {name: stored[name] for name in stored.files if name in ("mu", "logvar")}
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys() if name in ("mu", "logvar")}  # noqa: SIM118


def make_channel(mu: Array, logvar: Array, idle_nats: float, name: str = "") -> Channel:
    """Check parameters, and drop the dimensions that together carry at most `idle_nats`.

    For any split of the dimensions into kept A and dropped, and any density q_j,

        I(X; U_A)  ≤  I(X; U)  ≤  I(X; U_A) + Σ_{j∉A} mean_x KL(p(u_j|x) ‖ q_j)

    because the dimensions are independent given x. The Gaussian with the aggregate's mean and variance s_j² is the best
    Gaussian q_j: its mean KL, ½(log s_j² − mean ρ_j), is never above the KL to the prior N(0, 1).

    Args:
        mu, logvar: `[M, d]`, float32 or float64, torch or numpy (memory-mapped too); logvar is ln σ².
        idle_nats: budget of the dropped dimensions; 0 keeps all but those that carry exactly nothing.
        name: prefix of the arguments in error messages.

    Raises:
        TypeError, ValueError: not such a pair of arrays; the message names the argument.
    """
    prefix = f"{name}." if name else ""
    _check_array(mu, prefix + "mu")
    _check_array(logvar, prefix + "logvar")
    if tuple(mu.shape) != tuple(logvar.shape):
        raise ValueError(
            f"{prefix}logvar: expected the shape of {prefix}mu, {tuple(mu.shape)}, got {tuple(logvar.shape)}"
        )
    devices = [str(array.device) if isinstance(array, Tensor) else "cpu" for array in (mu, logvar)]
    if devices[0] != devices[1]:
        raise ValueError(f"{prefix}logvar: expected on the device of {prefix}mu, {devices[0]}, got {devices[1]}")

    mean, variance, mean_logvar = _moments(mu, logvar, prefix)
    nats = (0.5 * (variance.log() - mean_logvar)).clamp_min(0)  # [d] nats at most
    smallest_first = torch.argsort(nats)
    idle = int((nats[smallest_first].cumsum(0) <= idle_nats).sum())
    kept = smallest_first[idle:].sort().values

    device = mean.device
    kept_mu = torch.empty(len(mu), len(kept), device=device)
    kept_logvar = torch.empty_like(kept_mu)
    divergence = torch.empty(len(mu), device=device)
    mean, variance = mean[kept], variance[kept]
    for rows, mu_rows, logvar_rows in _slices(mu, logvar, kept.tolist()):
        centred = mu_rows - mean
        _check_resolved(centred, logvar_rows, rows.start, kept, prefix)
        kept_mu[rows], kept_logvar[rows] = centred.float(), logvar_rows.float()
        ratio = (logvar_rows.exp() + centred.square()) / variance
        divergence[rows] = (0.5 * (variance.log() - logvar_rows + ratio - 1).sum(1)).float()
    return Channel(kept_mu, kept_logvar, divergence, float(nats[smallest_first[:idle]].sum()))


def _check_resolved(centred: Tensor, logvar: Tensor, start: int, columns: Tensor, prefix: str) -> None:
    """Refuse means that float32 cannot tell apart: its spacing at μ must stay far below σ."""
    ratio = centred.abs() * torch.exp(-0.5 * logvar)
    if bool((ratio > MAX_RATIO).any()):
        row, column = divmod(int(ratio.argmax()), ratio.shape[1])
        index = f"[{start + row}, {int(columns[column])}]"
        raise ValueError(
            f"{prefix}mu: expected means within {MAX_RATIO:g} σ of their average, beyond which float32 is too coarse, "
            f"got {float(ratio[row, column]):.3g} σ at {index}"
        )


def _check_array(array: Array, name: str) -> None:
    if not isinstance(array, Tensor | np.ndarray):
        raise TypeError(f"{name}: expected a torch tensor or a numpy array, got {type(array).__name__}")
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected an array without a mask, got MaskedArray; fill it, or take its valid rows")
    if isinstance(array, Tensor) and (array.layout != torch.strided or array.is_nested or array.is_meta):
        kind = "nested" if array.is_nested else "meta" if array.is_meta else str(array.layout).removeprefix("torch.")
        raise TypeError(f"{name}: expected a dense tensor with values, got a {kind} tensor")
    if str(array.dtype).removeprefix("torch.") not in ("float32", "float64"):
        raise TypeError(f"{name}: expected float32 or float64, got {str(array.dtype).removeprefix('torch.')}")
    if array.ndim != 2 or array.shape[0] < 2 or array.shape[1] < 1:
        raise ValueError(f"{name}: expected [components ≥ 2, dimensions ≥ 1], got shape {tuple(array.shape)}")


def _slices(mu: Array, logvar: Array, columns: list[int] | None = None) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Float64 rows of both arrays, all columns or some, a slice at a time, on the device of `mu`."""
    selection = slice(None) if columns is None else columns
    for start in range(0, len(mu), ROWS_AT_ONCE):
        rows = slice(start, min(start + ROWS_AT_ONCE, len(mu)))
        yield rows, _double(mu[rows][:, selection]), _double(logvar[rows][:, selection])


def _double(array: Array) -> Tensor:
    if isinstance(array, np.ndarray):
        return torch.from_numpy(np.array(array, np.float64))  # a copy, for a mapped file may be read-only
    return array.detach().double()


def _moments(mu: Array, logvar: Array, prefix: str) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of the aggregate Σ_i p(u|x_i) / M, and the mean logvar; each `[d]`, float64."""
    totals, shift = torch.zeros(()), torch.zeros(())
    for rows, mu_rows, rho in _slices(mu, logvar):
        if rows.start == 0:
            shift = mu_rows.mean(0)
        largest = float(rho.abs().amax())
        if largest > MAX_LOGVAR and math.isfinite(largest):
            raise ValueError(f"{prefix}logvar: expected ln σ² within ±{MAX_LOGVAR:g}, got a magnitude of {largest:g}")
        centred = mu_rows - shift
        sums = torch.stack([centred.sum(0), centred.square().sum(0), rho.exp().sum(0), rho.sum(0)])
        if not bool(sums.isfinite().all()):
            _raise_for_first_bad_value(mu_rows, rho, rows.start, prefix)
        totals = totals + sums
    offset, square, noise, mean_logvar = totals / len(mu)
    return shift + offset, square - offset.square() + noise, mean_logvar


def _raise_for_first_bad_value(mu: Tensor, logvar: Tensor, start: int, prefix: str) -> None:
    """Raise for the first value that is not finite, or too large to square, in rows from `start` on."""
    for values, name in ((logvar, "logvar"), (mu, "mu")):
        bad = ~(values.abs() < 1e150)
        if bool(bad.any()):
            row, column = (int(i) for i in bad.nonzero()[0])
            value = f"{float(values[row, column])} at [{start + row}, {column}]"
            raise ValueError(f"{prefix}{name}: expected finite values, got {value}")


def log_density(u: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """log N(u; mu, exp(logvar)) summed over the last dimension: in float64 for any dtype."""
    mu, rho = mu.double(), logvar.double()
    return -0.5 * ((u.double() - mu).square() * torch.exp(-rho) + rho + math.log(2 * math.pi)).sum(-1)
