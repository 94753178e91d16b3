"""Products in Triton's interpreter as tensor cores compute them; importing this module is enough.

The interpreter keeps bfloat16 in uint16, truncates on conversion, and hands the integers to `tl.dot`: here conversion
rounds to nearest and values are multiplied. It ignores `input_precision`: here "tf32x3" multiplies TF32 parts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter as _triton_interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

_cast, _dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot
_patch_tensor = _triton_interpreter._patch_lang_tensor


def _widen(handle: TensorHandle) -> TensorHandle:
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    bits = torch.from_numpy(np.ascontiguousarray(handle.data).view(np.int16))
    return TensorHandle(bits.view(torch.bfloat16).float().numpy(), tl.float32)


def _cast_impl(self: InterpreterBuilder, handle: TensorHandle, target: tl.dtype) -> TensorHandle:
    if (handle.dtype.scalar, target.scalar) == (tl.float32, tl.bfloat16):
        rounded = torch.from_numpy(np.ascontiguousarray(handle.data)).bfloat16()
        return TensorHandle(rounded.view(torch.int16).numpy().view(np.uint16), tl.bfloat16)
    if (handle.dtype.scalar, target.scalar) == (tl.bfloat16, tl.float32):
        return _widen(handle)
    return _cast(self, handle, target)


def _tf32_parts(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x ≈ big + small, each with TF32's ten bits of mantissa."""

    def round_to_tf32(x: np.ndarray) -> np.ndarray:
        bits = np.ascontiguousarray(x).view(np.uint32)
        return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)

    big = round_to_tf32(x)
    return big, round_to_tf32(x - big)


def _create_dot(
    self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, d: TensorHandle, precision: Any, imprecise: Any
) -> TensorHandle:
    if a.dtype.scalar != tl.float32 or precision.name != "TF32x3":
        return _dot(self, _widen(a), _widen(b), d, precision, imprecise)
    big_a, small_a = _tf32_parts(a.data)
    big_b, small_b = _tf32_parts(b.data)
    return TensorHandle(small_a @ big_b + big_a @ small_b + big_a @ big_b + d.data, d.dtype.scalar)


def _get_bf16(self: InterpreterBuilder, value: float) -> TensorHandle:
    """A constant; the interpreter of Triton 3.6 has none of this type."""
    return self.cast_impl(self.get_fp32(value), tl.bfloat16)


def _patch_lang_tensor(tensor: Any, *scope: Any) -> None:
    """Numbers are arrays of one element, which numpy 2.5 turns into no integer; that of Triton 3.6 relies on it."""
    _patch_tensor(tensor, *scope)
    tensor.__index__ = lambda self: int(self.handle.data.item())


_triton_interpreter._patch_lang_tensor = _patch_lang_tensor
InterpreterBuilder.cast_impl = _cast_impl
InterpreterBuilder.get_bf16 = _get_bf16
InterpreterBuilder.create_dot = _create_dot
