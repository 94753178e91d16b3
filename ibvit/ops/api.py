"""The public op: validate, choose an implementation, run it."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ibvit import arguments
from ibvit.errors import UnavailableError
from ibvit.ops import reference
from ibvit.ops.contracts import NATIVE, TRITON, BottleneckOp, Parameters
from ibvit.ops.noise import MAX_BLOCKS, MAX_HEADS, MAX_LATENTS, check_key
from ibvit.ops.reference import BottleneckParams, BottleneckWrite

Impl = Literal["auto", "triton", "native", "reference"]
"""How the bottleneck is computed; see :func:`bottleneck_write`."""

_TENSORS = ("y", *(f"params.{name}" for name in BottleneckParams._fields), "proj_weight", "proj_bias")
_IMPLS = get_args(Impl)
_LOG = logging.getLogger(__name__)
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_HEAD_WIDTHS = (32, 64, 128)
_INNER = (8, 16, 32, 64, 128)  # hidden and latent sizes that the kernels have tiles for


def bottleneck_write(
    y: Tensor,
    params: BottleneckParams,
    proj_weight: Tensor,
    proj_bias: Tensor,
    key: Tensor,
    block: int,
    impl: Impl = "auto",
) -> BottleneckWrite:
    """One block's write to the residual stream: attention output → projected update and its KL (Eqs. 1-3).

    Args:
        y: attention output ``[B, N, H·D]``, heads concatenated. Under autocast it is cast to autocast's precision.
        params: the H bottlenecks; may be float32 under activations of lower precision.
        proj_weight, proj_bias: the attention's output projection, ``[C, H·D]`` and ``[C]`` (``nn.Linear`` layout).
        key: noise key, int64 ``[3]`` on y's device, see :mod:`ibvit.ops.noise`.
        block: index of the transformer block, part of the noise's address.
        impl: ``"triton"`` (fused kernels for CUDA devices), ``"native"`` (the fused CPU library, float32),
            ``"reference"`` (plain PyTorch), or ``"auto"``: the fused one of y's device if it can, else the reference.
            All draw the same noise.

    Returns:
        update ``[B, N, C]`` in y's dtype, KL ``[B, H, N]`` in nats, float32. Differentiable once in everything but
        the key; twice with ``impl="reference"``.

    Raises:
        TypeError: an argument has the wrong type or dtype; tensors are dense, and floating-point but for the key.
        ValueError: an argument has the wrong shape, device or value.
        UnavailableError: ``impl="triton"`` or ``"native"`` where that cannot run; the message says why.

    Example:
        >>> H, D, h, r = 2, 32, 16, 8
        >>> sizes = [(D, h), (h,), (h, 2 * r), (2 * r,), (r, h), (h,), (h, D), (D,)]
        >>> params = BottleneckParams(*(torch.randn(H, *size) for size in sizes))
        >>> y, weight, bias = torch.randn(1, 5, H * D), torch.randn(H * D, H * D), torch.zeros(H * D)
        >>> update, kl = bottleneck_write(y, params, weight, bias, torch.tensor([0, 0, 0]), block=0)
        >>> update.shape, kl.shape
        (torch.Size([1, 5, 64]), torch.Size([1, 2, 5]))
    """
    _validate(y, params, proj_weight, proj_bias, key, block)
    arguments.choice("impl", impl, _IMPLS)
    if y.device.type != "meta" and torch.is_autocast_enabled(y.device.type):
        y = y.to(torch.get_autocast_dtype(y.device.type))
    _, width, hidden = params.w1.shape
    chosen = _choose(impl, y.device.type, y.dtype, width, hidden, params.w3.shape[1])
    if chosen != "reference":
        dense = Parameters(*(tensor.contiguous() for tensor in (*params, proj_weight, proj_bias)))
        return BACKENDS[chosen].op.write(y.contiguous(), dense, key.contiguous(), block)
    weight, bias = proj_weight.to(y.dtype), proj_bias.to(y.dtype)
    return reference.bottleneck_write(y, params, weight, bias, key, block)


def _validate(
    y: Tensor,
    params: BottleneckParams,
    proj_weight: Tensor,
    proj_bias: Tensor,
    key: Tensor,
    block: int,
) -> None:
    if not isinstance(params, BottleneckParams):
        raise TypeError(f"params: expected BottleneckParams, got {arguments.shown(params)}")
    for name, tensor in zip(_TENSORS, (y, *params, proj_weight, proj_bias), strict=True):
        arguments.tensor(name, tensor)
    arguments.whole("block", block, 0, MAX_BLOCKS - 1)
    if y.dim() != 3:
        raise ValueError(f"y: expected [B, N, H·D], got {list(y.shape)}")
    if params.w1.dim() != 3 or params.w3.dim() != 3 or proj_weight.dim() != 2:
        raise ValueError(
            "params.w1, params.w3, proj_weight: expected [H, D, h], [H, r, h] and [C, H·D], got "
            f"{list(params.w1.shape)}, {list(params.w3.shape)} and {list(proj_weight.shape)}"
        )
    total = y.shape[2]
    heads, width, hidden = params.w1.shape
    latent, columns = params.w3.shape[1], proj_weight.shape[0]
    if total != heads * width:
        raise ValueError(f"y: expected a last axis of H·D = {heads}·{width} = {heads * width}, got {total}")
    for name, tensor, shape in (
        ("params.w1", params.w1, (heads, width, hidden)),
        ("params.b1", params.b1, (heads, hidden)),
        ("params.w2", params.w2, (heads, hidden, 2 * latent)),
        ("params.b2", params.b2, (heads, 2 * latent)),
        ("params.w3", params.w3, (heads, latent, hidden)),
        ("params.b3", params.b3, (heads, hidden)),
        ("params.w4", params.w4, (heads, hidden, width)),
        ("params.b4", params.b4, (heads, width)),
        ("proj_weight", proj_weight, (columns, total)),
        ("proj_bias", proj_bias, (columns,)),
    ):
        if tensor.shape != shape:
            raise ValueError(f"{name}: expected shape {list(shape)}, got {list(tensor.shape)}")
        if tensor.device != y.device:
            raise ValueError(f"{name}: expected y's device {y.device}, got {tensor.device}")
    check_key(key, y.device)
    for size, value, most in (("heads H", heads, MAX_HEADS), ("latents r", latent, MAX_LATENTS)):
        if not 1 <= value <= most:
            raise ValueError(f"params: expected 1 to {most} {size}, got {value}")


@torch.compiler.assume_constant_result
def _choose(*case: Any) -> str:
    """The result of `_decide`, which torch.compile treats as a constant."""
    return _decide(*case)


@functools.cache
def _decide(impl: Impl, device: str, dtype: torch.dtype, width: int, hidden: int, latent: int) -> str:
    """The implementation for these sizes; decided, and for "auto" logged, once."""
    if impl == "reference":
        return "reference"
    fused = _fused_for(device) if impl == "auto" else impl
    backend = BACKENDS[fused]
    obstacle = backend.why_not(device) or backend.why_not_sizes(dtype, width, hidden, latent)
    if impl != "auto" and obstacle is not None:
        raise UnavailableError(f"impl={impl!r} is not available: {obstacle}")
    chosen = fused if obstacle is None else "reference"
    if impl == "auto":
        _LOG.info("bottleneck: impl=auto chose %s%s", chosen, "" if obstacle is None else f" ({fused}: {obstacle})")
    return chosen


def _fused_for(device: str) -> str:
    """The backend that "auto" tries on this kind of device: the first that is made for it, else the CPU library."""
    return next((name for name, backend in BACKENDS.items() if backend.device == device), "native")


def why_not_native(device: str = "cpu") -> str | None:
    """Why the CPU library cannot compute the bottleneck on this kind of device, or None if it can."""
    if device != "cpu":
        return f"the library computes on the CPU, got tensors on {device}"
    if find_spec("ibvit_kernels") is None:
        return "ibvit_kernels is not installed"
    from ibvit_kernels import library

    return library.why_absent()


def why_not_triton(device: str = "cuda") -> str | None:
    """Why the fused kernels cannot run on this kind of device, or None if they can."""
    if device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the kernels need a CUDA device, got tensors on {device}"
    if device == "cuda" and not torch.cuda.is_available():
        return "torch sees no CUDA device"
    capability = torch.cuda.get_device_capability() if device == "cuda" else None
    if capability is not None and capability < (8, 0):
        return f"the kernels need compute capability 8.0, got {capability}"
    if find_spec("ibvit_kernels") is None:
        return "ibvit_kernels is not installed"
    from ibvit_kernels import why_no_triton

    return why_no_triton(capability)


def _sizes_without_kernel(dtype: torch.dtype, width: int, hidden: int, latent: int) -> str | None:
    if dtype not in _DTYPES:
        return f"dtype: expected float32, bfloat16 or float16, got {dtype}"
    if width not in _HEAD_WIDTHS:
        return f"head width D: expected one of {_HEAD_WIDTHS}, got {width}"
    if hidden not in _INNER or latent not in _INNER:
        return f"hidden h and latent r: expected powers of two in 8…128, got {hidden} and {latent}"
    if dtype == torch.float32 and hidden == 128 and latent >= 64:
        return f"hidden h = 128 with latent r = {latent} in float32: TF32 parts do not fit into shared memory"
    return None


def _not_float32(dtype: torch.dtype, width: int, hidden: int, latent: int) -> str | None:
    return None if dtype == torch.float32 else f"dtype: expected float32, got {dtype}"


class Backend(NamedTuple):
    """A fused implementation of the bottleneck: a row of `BACKENDS`.

    Attributes:
        device: the kind of device for which ``impl="auto"`` takes it.
        op: its operators.
        why_not: kind of device → why it cannot run there, or None.
        why_not_sizes: dtype of y, D, h, r → why it cannot compute these, or None.
    """

    device: str
    op: BottleneckOp
    why_not: Callable[[str], str | None]
    why_not_sizes: Callable[[torch.dtype, int, int, int], str | None]


BACKENDS = {
    "triton": Backend("cuda", TRITON, why_not_triton, _sizes_without_kernel),
    "native": Backend("cpu", NATIVE, why_not_native, _not_float32),
}
