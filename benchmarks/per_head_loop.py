"""The bottleneck as the paper's released code runs it: one head after the other. A peer to measure against."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ibvit.ops import BottleneckParams
from ibvit.ops.noise import standard_normal
from ibvit.ops.reference import LOGVAR_RANGE, BottleneckWrite


def per_head_loop(
    y: Tensor, params: BottleneckParams, proj_weight: Tensor, proj_bias: Tensor, key: Tensor, block: int, **_: Any
) -> BottleneckWrite:
    """The arguments and results of :func:`ibvit.ops.bottleneck_write`."""
    if torch.is_autocast_enabled(y.device.type):
        y = y.to(torch.get_autocast_dtype(y.device.type))
    batch, tokens, _ = y.shape
    heads, width, _ = params.w1.shape
    eps = standard_normal(key, block, batch, heads, tokens, params.w3.shape[1])
    messages, prices = [], []
    for head, y_h in enumerate(y.split(width, dim=-1)):
        w1, b1, w2, b2, w3, b3, w4, b4 = (p[head].to(y.dtype) for p in params)
        mu, logvar = (F.gelu(y_h @ w1 + b1) @ w2 + b2).float().chunk(2, dim=-1)
        logvar = logvar.clamp(*LOGVAR_RANGE)
        z = mu + torch.exp(logvar / 2) * eps[:, head]
        prices.append(0.5 * (logvar.exp() + mu.square() - 1 - logvar).sum(dim=-1))
        messages.append(F.gelu(z.to(y.dtype) @ w3 + b3) @ w4 + b4)
    update = F.linear(torch.cat(messages, dim=-1), proj_weight.to(y.dtype), proj_bias.to(y.dtype))
    return BottleneckWrite(update, torch.stack(prices, dim=1))
