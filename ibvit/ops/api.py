"""The public op: validate, then run the chosen implementation."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ibvit.ops import reference
from ibvit.ops.reference import BottleneckParams, BottleneckWrite

Impl = Literal["auto", "triton", "reference"]


def bottleneck_write(
    y: Tensor,
    params: BottleneckParams,
    proj_weight: Tensor,
    proj_bias: Tensor,
    key: Tensor,
    block: int,
    impl: Impl = "auto",
) -> BottleneckWrite:
    """One block's write to the residual stream, see :func:`ibvit.ops.reference.bottleneck_write`."""
    return reference.bottleneck_write(y, params, proj_weight, proj_bias, key, block)
