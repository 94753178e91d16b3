"""The fused bottleneck as PyTorch operators: schema, shapes, autograd. Torch alone; kernels load at the first call.

Each backend, a module of ibvit_kernels, is one pair of operators, registered when this module is imported, before
anything compiles, so torch.compile traces through them and CUDA graphs capture them. Parameters may be float32 masters
under activations of lower precision: the kernels cast, and give float32 gradients. Shapes: :mod:`ibvit.ops.reference`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib import import_module
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
_FORWARD = (
    f"(Tensor y, {_PARAMS}, Tensor? residual, Tensor key, int block) "
    "-> (Tensor update, Tensor kl, Tensor weights, Tensor biases)"
)
_BACKWARD = (
    f"(Tensor d_update, Tensor d_kl, Tensor y, {_PARAMS}, Tensor weights, Tensor biases, "
    "Tensor key, int block) -> (Tensor d_y, Tensor d_inner, Tensor d_w4, Tensor d_b4, Tensor d_proj_weight)"
)
_library = torch.library.Library("ibvit", "DEF")


class Fused:
    """The operators ``ibvit::<name>_forward`` and ``ibvit::<name>_backward``, computed by a module of ibvit_kernels.

    Args:
        name: of the operators.
        module: in ibvit_kernels, imported at the first call.
        devices: dispatch keys for which it computes.
    """

    def __init__(self, name: str, module: str, devices: Sequence[str]) -> None:
        self._module = module
        _library.define(f"{name}_forward{_FORWARD}")
        _library.define(f"{name}_backward{_BACKWARD}")
        self.forward = getattr(torch.ops.ibvit, f"{name}_forward").default
        self.backward = getattr(torch.ops.ibvit, f"{name}_backward").default
        for device in devices:
            _library.impl(f"{name}_forward", self._forward, device)
            _library.impl(f"{name}_backward", self._backward, device)
        torch.library.register_fake(f"ibvit::{name}_forward", self._forward_fake, lib=_library)
        torch.library.register_fake(f"ibvit::{name}_backward", self._backward_fake, lib=_library)
        _library.impl(f"{name}_forward", self._with_autograd, "Autograd", with_keyset=True)
        torch.library.register_autograd(f"ibvit::{name}_backward", _no_double_backward, lib=_library)

    def write(
        self, y: Tensor, params: Sequence[Tensor], residual: Tensor | None, key: Tensor, block: int
    ) -> tuple[Tensor, Tensor]:
        """update ``[B, N, C]``, KL ``[B, H, N]``. params: w1, b1, … b4, proj_weight, proj_bias. Nothing is checked."""
        update, kl, _, _ = self.forward(y, *params, residual, key, block)
        return update, kl

    @functools.cached_property
    def _kernels(self) -> Any:
        return import_module(f"ibvit_kernels.{self._module}")

    def _shape(self, params: Sequence[Tensor]) -> Any:
        return self._kernels.shape_of(params[0], params[4], params[8])

    def _forward(self, y: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        params, (residual, key, block) = rest[:_PARAM_COUNT], rest[_PARAM_COUNT:]
        kernels, shape = self._kernels, self._shape(params)
        with torch.cuda.device_of(y):
            packed = kernels.pack(shape, y.dtype, params)
            return *kernels.forward(shape, y, packed, residual, key, block)[:2], *packed

    def _forward_fake(self, y: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        params, residual = rest[:_PARAM_COUNT], rest[_PARAM_COUNT]
        shape = self._shape(params)
        update = y.new_empty(*y.shape[:2], shape.columns) if residual is None else torch.empty_like(residual)
        kl = y.new_empty(y.shape[0], shape.heads, y.shape[1], dtype=torch.float32)
        weights = y.new_empty(shape.heads, shape.weights_per_head)
        return update, kl, weights, y.new_empty(shape.biases, dtype=torch.float32)

    def _backward(self, d_update: Tensor, d_kl: Tensor, y: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        params, (weights, biases, key, block) = rest[:_PARAM_COUNT], rest[_PARAM_COUNT:]
        with torch.cuda.device_of(y):
            packed = self._kernels.Packed(weights, biases)
            return self._kernels.backward(self._shape(params), d_update, d_kl, y, params, packed, key, block)

    def _backward_fake(self, d_update: Tensor, d_kl: Tensor, y: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        params = rest[:_PARAM_COUNT]
        outer = (torch.empty_like(params[i], dtype=torch.float32) for i in (6, 7, 8))
        d_inner = y.new_empty(sum(self._kernels.gradient_sizes(self._shape(params))), dtype=torch.float32)
        return torch.empty_like(y), d_inner, *outer

    def _with_autograd(self, keyset: Any, *inputs: Any) -> tuple[Tensor, ...]:
        if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
            return _Differentiable.apply(self, keyset, *inputs)
        return self._below_autograd(keyset, inputs)

    def _below_autograd(self, keyset: Any, inputs: Sequence[Any]) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            return self.forward.redispatch(keyset & torch._C._after_autograd_keyset, *inputs)

    def _gradients(self, ctx: Any, d_update: Tensor | None, d_kl: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        y, params = saved[0], saved[1 : _PARAM_COUNT + 1]
        d_residual = d_update if ctx.has_residual else None
        d_update = y.new_zeros(ctx.update_shape) if d_update is None else d_update.contiguous()
        d_kl = y.new_zeros(ctx.kl_shape, dtype=torch.float32) if d_kl is None else d_kl.contiguous()
        d_y, d_inner, *outer = self.backward(d_update.to(y.dtype), d_kl, *saved, ctx.block)
        *inner, _, d_proj_bias = d_inner.split(self._kernels.gradient_sizes(self._shape(params)))
        grads = (*inner, *outer, d_proj_bias)
        d_params = (grad.view(param.shape).to(param.dtype) for grad, param in zip(grads, params, strict=True))
        return d_y, *d_params, d_residual, None, None


class _Differentiable(torch.autograd.Function):
    """What `torch.library.register_autograd` makes, without its search through the schema for default values.

    With so many arguments that search costs more host time than everything else in a call.
    """

    @staticmethod
    def forward(ctx: Any, fused: Fused, keyset: Any, *inputs: Any) -> tuple[Tensor, ...]:
        output = fused._below_autograd(keyset, inputs)
        y, params, (residual, key, block) = inputs[0], inputs[1 : _PARAM_COUNT + 1], inputs[_PARAM_COUNT + 1 :]
        ctx.save_for_backward(y, *params, *output[2:], key)
        ctx.mark_non_differentiable(*output[2:])
        ctx.set_materialize_grads(False)  # else those of the packed parameters are made as well
        ctx.update_shape, ctx.kl_shape = output[0].shape, output[1].shape
        ctx.fused, ctx.block, ctx.has_residual = fused, block, residual is not None
        return output

    @staticmethod
    def backward(ctx: Any, d_update: Tensor | None, d_kl: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.fused._gradients(ctx, d_update, d_kl)


def _no_double_backward(ctx: Any, *_: Any) -> None:
    raise RuntimeError(
        "the fused bottleneck has no second derivative; use impl='reference' where you need one (create_graph=True)"
    )


TRITON = Fused("bottleneck", "bottleneck.host", ("CUDA", "CPU"))  # on the CPU in Triton's interpreter
NATIVE = Fused("bottleneck_native", "bottleneck.native", ("CPU",))
