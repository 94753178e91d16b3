"""The fused bottleneck as PyTorch operators: schema, shapes, autograd. Torch alone; kernels load at the first call.

Each backend, a module of ibvit_kernels, is one pair of operators. They are registered when this module is imported,
before anything compiles, so torch.compile traces through them and CUDA graphs capture them. Parameters may be float32
masters under activations of lower precision: the kernels cast, and return float32 gradients. Shapes:
:mod:`ibvit.ops.reference`. The names of `Parameters` and of the gradients are those of `ibvit_kernels.bottleneck`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from ibvit.ops.reference import BottleneckParams, BottleneckWrite


class Parameters(NamedTuple):
    """One block's bottlenecks and its output projection; also their gradients."""

    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    w3: Tensor
    b3: Tensor
    w4: Tensor
    b4: Tensor
    proj_weight: Tensor
    proj_bias: Tensor

    @classmethod
    def of(cls, params: BottleneckParams, proj_weight: Tensor, proj_bias: Tensor) -> Self:
        return cls(*params, proj_weight, proj_bias)


class Kernels(Protocol):
    """What a backend of the bottleneck provides: a module of ibvit_kernels. All tensors are contiguous.

    ``Sizes``, ``Packed``, ``Inner`` and ``Gradients`` are named tuples of ibvit_kernels.bottleneck.
    """

    def sizes_of(self, w1: Tensor, w3: Tensor, proj_weight: Tensor) -> Any:
        """``Shape``: ``Sizes`` with the extents ``weights_per_head`` and ``biases`` of the packed parameters."""

    def pack(self, sizes: Any, dtype: torch.dtype, params: Parameters) -> Any:
        """``Packed``: weights and biases as the kernels read them, for activations of this dtype."""

    def forward(self, sizes: Any, y: Tensor, packed: Any, key: Tensor, block: int) -> tuple[Tensor, Tensor]:
        """Update ``[B, N, C]`` in y's dtype, KL ``[B, H, N]`` in float32."""

    def backward(
        self, sizes: Any, d_update: Tensor, d_kl: Tensor, y: Tensor, params: Parameters, packed: Any, key: Tensor,
        block: int,
    ) -> Any:  # fmt: skip
        """``Gradients``: of y, w4, b4 and proj_weight, and the vector of the others."""

    def gradient_sizes(self, sizes: Any) -> Any:
        """``Inner``: the extent of each gradient in that vector, in its order."""


_PARAMETERS = ", ".join(f"Tensor {name}" for name in Parameters._fields)
# weights, biases: the packed parameters; the backward pass uses them again. d_inner: one vector, see `Inner` in
# ibvit_kernels.bottleneck.
_FORWARD = (
    f"(Tensor y, {_PARAMETERS}, Tensor key, int block) -> (Tensor update, Tensor kl, Tensor weights, Tensor biases)"
)
_BACKWARD = (
    f"(Tensor d_update, Tensor d_kl, Tensor y, {_PARAMETERS}, Tensor weights, Tensor biases, Tensor key, int block) "
    "-> (Tensor d_y, Tensor d_inner, Tensor d_w4, Tensor d_b4, Tensor d_proj_weight)"
)
_library = torch.library.Library("ibvit", "DEF")


class BottleneckOp:
    """The operators ``ibvit::<name>_forward`` and ``ibvit::<name>_backward``, computed by a module of ibvit_kernels.

    The dispatcher of torch stands between the calls, so a search for names does not find them. Forward: `write` →
    ``ibvit::<name>_forward`` → `_with_autograd` → `_Differentiable.forward` → `_below_autograd` → `_forward` → the
    module's `pack` and `forward`. Backward: `_Differentiable.backward` → `_gradients` → ``ibvit::<name>_backward`` →
    `_backward` → the module's `backward`.

    Args:
        name: of the operators.
        module: in ibvit_kernels, with the functions of :class:`Kernels`; imported at the first call.
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

    def write(self, y: Tensor, params: Parameters, key: Tensor, block: int) -> BottleneckWrite:
        """Update ``[B, N, C]``, KL ``[B, H, N]``. Nothing is checked."""
        update, kl, _, _ = self.forward(y, *params, key, block)
        return BottleneckWrite(update, kl)

    @functools.cached_property
    def _kernels(self) -> Kernels:
        module: Any = import_module(f"ibvit_kernels.{self._module}")
        return module

    def _sizes(self, params: Parameters) -> Any:
        return self._kernels.sizes_of(params.w1, params.w3, params.proj_weight)

    def _forward(self, y: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        *tensors, key, block = rest
        params = Parameters(*tensors)
        sizes = self._sizes(params)
        with torch.cuda.device_of(y):
            packed = self._kernels.pack(sizes, y.dtype, params)
            update, kl = self._kernels.forward(sizes, y, packed, key, block)
        return update, kl, packed.weights, packed.biases

    def _forward_fake(self, y: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        *tensors, _, _ = rest
        sizes = self._sizes(Parameters(*tensors))
        batch, tokens, _ = y.shape
        update = y.new_empty(batch, tokens, sizes.columns)
        kl = y.new_empty(batch, sizes.heads, tokens, dtype=torch.float32)
        weights = y.new_empty(sizes.heads, sizes.weights_per_head)
        return update, kl, weights, y.new_empty(sizes.biases, dtype=torch.float32)

    def _backward(self, d_update: Tensor, d_kl: Tensor, y: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        from ibvit_kernels.bottleneck import Packed

        *tensors, weights, biases, key, block = rest
        params, packed = Parameters(*tensors), Packed(weights, biases)
        with torch.cuda.device_of(y):
            grads = self._kernels.backward(self._sizes(params), d_update, d_kl, y, params, packed, key, block)
        return grads.y, grads.inner, grads.w4, grads.b4, grads.proj_weight

    def _backward_fake(self, d_update: Tensor, d_kl: Tensor, y: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        *tensors, _, _, _, _ = rest
        params = Parameters(*tensors)
        inner = y.new_empty(sum(self._kernels.gradient_sizes(self._sizes(params))), dtype=torch.float32)
        d_w4, d_b4, d_proj_weight = (
            torch.empty_like(param, dtype=torch.float32) for param in (params.w4, params.b4, params.proj_weight)
        )
        return torch.empty_like(y), inner, d_w4, d_b4, d_proj_weight

    # `torch.library.register_autograd` would do what the next two functions and `_Differentiable` do, but it searches
    # the schema for default values in each call; with so many arguments that takes longer than all the rest. Applying
    # `_Differentiable` in `write` would need no private name of torch (`_C._AutoDispatchBelowAutograd`,
    # `_C._after_autograd_keyset`). Its host time per call is about the same: 48 µs against 50 of a forward pass with a
    # graph, 265 to 279 µs of forward and backward pass for both (smallest sizes, CPU library, one thread). But then the
    # operator has no derivative where it is called by itself, and opcheck refuses it. The suite runs both names with
    # torch 2.6 and the newest.

    def _with_autograd(self, keyset: Any, *inputs: Any) -> tuple[Tensor, ...]:
        if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
            return _Differentiable.apply(self, keyset, *inputs)
        return self._below_autograd(keyset, inputs)

    def _below_autograd(self, keyset: Any, inputs: Sequence[Any]) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            return self.forward.redispatch(keyset & torch._C._after_autograd_keyset, *inputs)

    def _gradients(self, ctx: Any, d_update: Tensor | None, d_kl: Tensor | None) -> tuple[Tensor, Parameters]:
        """Gradients of y and of the parameters."""
        from ibvit_kernels.bottleneck import Gradients, parameter_gradients

        y, *tensors, weights, biases, key = ctx.saved_tensors
        params = Parameters(*tensors)
        d_update = y.new_zeros(ctx.update_shape) if d_update is None else d_update.contiguous()
        d_kl = y.new_zeros(ctx.kl_shape, dtype=torch.float32) if d_kl is None else d_kl.contiguous()
        grads = Gradients(*self.backward(d_update.to(y.dtype), d_kl, y, *params, weights, biases, key, ctx.block))
        d_params = parameter_gradients(grads, self._kernels.gradient_sizes(self._sizes(params)))
        shaped = (grad.view(param.shape).to(param.dtype) for grad, param in zip(d_params, params, strict=True))
        return grads.y, Parameters(*shaped)


class _Differentiable(torch.autograd.Function):
    """The forward operator with its backward pass."""

    @staticmethod
    def forward(ctx: Any, op: BottleneckOp, keyset: Any, y: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        *tensors, key, block = rest
        update, kl, weights, biases = op._below_autograd(keyset, (y, *rest))
        ctx.save_for_backward(y, *tensors, weights, biases, key)
        ctx.mark_non_differentiable(weights, biases)
        ctx.set_materialize_grads(False)  # else autograd makes zero gradients for the packed parameters
        ctx.update_shape, ctx.kl_shape = update.shape, kl.shape
        ctx.op, ctx.block = op, block
        return update, kl, weights, biases

    @staticmethod
    def backward(ctx: Any, d_update: Tensor | None, d_kl: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        d_y, d_params = ctx.op._gradients(ctx, d_update, d_kl)
        return None, None, d_y, *d_params, None, None  # op, keyset, y, params, key, block


def _no_double_backward(ctx: Any, *_: Any) -> None:
    raise RuntimeError(
        "the fused bottleneck has no second derivative; use impl='reference' where you need one (create_graph=True)"
    )


TRITON = BottleneckOp("bottleneck", "bottleneck.host", ("CUDA", "CPU"))  # on the CPU in Triton's interpreter
NATIVE = BottleneckOp("bottleneck_native", "bottleneck.native", ("CPU",))
