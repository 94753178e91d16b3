"""Schedules are pure functions of the step; the optimiser's groups are the paper's."""

from __future__ import annotations

import pytest
import torch

import ibvit
from ibvit.training.optimizer import build_optimizer
from ibvit.training.schedules import beta, learning_rate


def test_learning_rate_against_torchs_scheduler():
    """Cosine part equals CosineAnnealingLR from the peak at the end of the warm-up to the floor at the last step."""
    total, warmup, peak, floor = 50, 10, 6e-4, 1e-6
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=peak)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total - 1 - warmup, eta_min=floor)
    for step in range(warmup, total):
        expected = optimizer.param_groups[0]["lr"]
        actual = learning_rate(step, total_steps=total, warmup_steps=warmup, peak=peak, floor=floor)
        assert actual == pytest.approx(expected, rel=1e-6)
        optimizer.step()
        scheduler.step()
    rates = [learning_rate(s, total_steps=total, warmup_steps=warmup, peak=peak, floor=floor) for s in range(warmup)]
    assert rates == pytest.approx([peak * (s + 1) / warmup for s in range(warmup)])


def test_beta_ramp():
    assert beta(0, warmup_steps=0, target=4.0) == 4.0
    assert [beta(s, warmup_steps=2, target=4.0) for s in range(4)] == [0.0, 2.0, 4.0, 4.0]


def test_parameter_groups():
    model = ibvit.create_model(img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, num_classes=5)
    decay, keep = build_optimizer(model, lr=1e-3, weight_decay=0.05).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = {names[id(p)] for p in decay["params"]}
    kept = {names[id(p)] for p in keep["params"]}
    assert decayed | kept == set(names.values())
    assert not decayed & kept
    assert {"pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "head.weight"} <= decayed
    assert {"blocks.1.attn.w2", "blocks.1.attn.b3", "norm.weight", "head.bias", "blocks.0.attn.proj.bias"} <= kept
    assert (decay["weight_decay"], keep["weight_decay"]) == (0.05, 0.0)
