"""AdamW with the paper's parameter groups."""

from __future__ import annotations

import torch
from torch import nn

from ibvit.models import VisionTransformer
from ibvit.models.attention import BottleneckAttention


def parameter_groups(model: VisionTransformer, weight_decay: float) -> list[dict[str, object]]:
    """Two groups: weights that decay, and those that do not: biases, one-dimensional and all bottleneck parameters."""
    bottleneck_ids = {
        id(p) for attention in model.attentions if isinstance(attention, BottleneckAttention) for p in attention.params
    }
    with_decay: list[nn.Parameter] = []
    without_decay: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_exempt = parameter.ndim <= 1 or name.endswith("bias") or id(parameter) in bottleneck_ids
        (without_decay if is_exempt else with_decay).append(parameter)
    groups: list[dict[str, object]] = [
        {"params": with_decay, "weight_decay": weight_decay},
        {"params": without_decay, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(model: VisionTransformer, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW(0.9, 0.999), one fused kernel per group. On a GPU the learning rate is a tensor there: graphs read it."""
    groups, device = parameter_groups(model, weight_decay), model.noise_key.device
    for group in groups:
        group["lr"] = torch.full((), lr, device=device) if device.type == "cuda" else lr
    return torch.optim.AdamW(groups, betas=(0.9, 0.999), fused=True)
