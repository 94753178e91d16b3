"""The fused bottleneck as PyTorch operators: schema, shapes, autograd. Torch alone; kernels load at the first call.

``ibvit::bottleneck_forward`` and ``ibvit::bottleneck_backward`` are registered when this module is imported, before
anything compiles, so torch.compile traces through them and CUDA graphs capture them. Parameters may be float32 masters
under activations of lower precision: the kernels cast, and give float32 gradients. Shapes: :mod:`ibvit.ops.reference`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

_PARAMS = (
    "Tensor w1, Tensor b1, Tensor w2, Tensor b2, Tensor w3, Tensor b3, Tensor w4, Tensor b4, "
    "Tensor proj_weight, Tensor proj_bias"
)
_PARAM_COUNT = 10

# d_inner: the gradients of w1, b1, w2, b2, w3, b3, of the merged map, and of proj_bias, one after the other.
# weights, biases: the parameters as the kernels read them, W4 folded into the projection; the backward reuses them.
_library = torch.library.Library("ibvit", "DEF")
_library.define(
    f"bottleneck_forward(Tensor y, {_PARAMS}, Tensor? residual, Tensor key, int block) "
    "-> (Tensor update, Tensor kl, Tensor weights, Tensor biases)"
)
_library.define(
    f"bottleneck_backward(Tensor d_update, Tensor d_kl, Tensor y, {_PARAMS}, Tensor weights, Tensor biases, "
    "Tensor key, int block) -> (Tensor d_y, Tensor d_inner, Tensor d_w4, Tensor d_b4, Tensor d_proj_weight)"
)
_FORWARD = torch.ops.ibvit.bottleneck_forward.default


def fused_write(
    y: Tensor, params: Sequence[Tensor], residual: Tensor | None, key: Tensor, block: int
) -> tuple[Tensor, Tensor]:
    """update ``[B, N, C]`` and KL ``[B, H, N]``. params: w1, b1, … b4, proj_weight, proj_bias. Nothing is checked."""
    update, kl, _, _ = torch.ops.ibvit.bottleneck_forward(y, *params, residual, key, block)
    return update, kl


@functools.cache
def _kernels() -> ModuleType:
    from ibvit_kernels import bottleneck

    return bottleneck


def _shape(params: Sequence[Tensor]) -> Any:
    return _kernels().shape_of(params[0], params[4], params[8])


def _forward(y: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    params, (residual, key, block) = rest[:_PARAM_COUNT], rest[_PARAM_COUNT:]
    kernels, shape = _kernels(), _shape(params)
    with torch.cuda.device_of(y):
        packed = kernels.pack(shape, y.dtype, params)
        return *kernels.forward(shape, y, packed, residual, key, block)[:2], *packed


def _forward_fake(y: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    params, residual = rest[:_PARAM_COUNT], rest[_PARAM_COUNT]
    shape = _shape(params)
    update = y.new_empty(*y.shape[:2], shape.columns) if residual is None else torch.empty_like(residual)
    kl = y.new_empty(y.shape[0], shape.heads, y.shape[1], dtype=torch.float32)
    weights = y.new_empty(shape.heads, shape.weights_per_head)
    return update, kl, weights, y.new_empty(shape.biases, dtype=torch.float32)


def _backward(d_update: Tensor, d_kl: Tensor, y: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    params, (weights, biases, key, block) = rest[:_PARAM_COUNT], rest[_PARAM_COUNT:]
    with torch.cuda.device_of(y):
        packed = _kernels().Packed(weights, biases)
        return _kernels().backward(_shape(params), d_update, d_kl, y, params, packed, key, block)


def _backward_fake(d_update: Tensor, d_kl: Tensor, y: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    params = rest[:_PARAM_COUNT]
    outer = (torch.empty_like(params[i], dtype=torch.float32) for i in (6, 7, 8))
    d_inner = y.new_empty(sum(_kernels().gradient_sizes(_shape(params))), dtype=torch.float32)
    return torch.empty_like(y), d_inner, *outer


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    y, params, (residual, key, block) = inputs[0], inputs[1 : _PARAM_COUNT + 1], inputs[_PARAM_COUNT + 1 :]
    ctx.save_for_backward(y, *params, *output[2:], key)
    ctx.mark_non_differentiable(*output[2:])
    ctx.block, ctx.has_residual = block, residual is not None


def _gradients(ctx: Any, d_update: Tensor, d_kl: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    y, params = saved[0], saved[1 : _PARAM_COUNT + 1]
    d_update, d_kl = d_update.contiguous(), d_kl.contiguous()
    d_y, d_inner, *outer = torch.ops.ibvit.bottleneck_backward(d_update.to(y.dtype), d_kl, *saved, ctx.block)
    *inner, _, d_proj_bias = d_inner.split(_kernels().gradient_sizes(_shape(params)))
    grads = (*inner, *outer, d_proj_bias)
    d_params = (grad.view_as(param).to(param.dtype) for grad, param in zip(grads, params, strict=True))
    return d_y, *d_params, d_update if ctx.has_residual else None, None, None


class _Differentiable(torch.autograd.Function):
    """What `torch.library.register_autograd` makes, without its search through the schema for default values.

    With so many arguments that search costs more host time than everything else in a call.
    """

    @staticmethod
    def forward(ctx: Any, keyset: Any, *inputs: Any) -> tuple[Tensor, ...]:
        output = _below_autograd(keyset, inputs)
        _save(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_gradients(ctx, *gradients)


def _below_autograd(keyset: Any, inputs: Sequence[Any]) -> tuple[Tensor, ...]:
    with torch._C._AutoDispatchBelowAutograd():
        return _FORWARD.redispatch(keyset & torch._C._after_autograd_keyset, *inputs)


def _with_autograd(keyset: Any, *inputs: Any) -> tuple[Tensor, ...]:
    if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
        return _Differentiable.apply(keyset, *inputs)
    return _below_autograd(keyset, inputs)


def _no_double_backward(ctx: Any, *_: Any) -> None:
    raise RuntimeError(
        "the fused bottleneck has no second derivative; use impl='reference' where you need one (create_graph=True)"
    )


for _device in ("CUDA", "CPU"):  # on the CPU the kernels run in Triton's interpreter
    _library.impl("bottleneck_forward", _forward, _device)
    _library.impl("bottleneck_backward", _backward, _device)
torch.library.register_fake("ibvit::bottleneck_forward", _forward_fake, lib=_library)
torch.library.register_fake("ibvit::bottleneck_backward", _backward_fake, lib=_library)
_library.impl("bottleneck_forward", _with_autograd, "Autograd", with_keyset=True)
torch.library.register_autograd("ibvit::bottleneck_backward", _no_double_backward, lib=_library)
