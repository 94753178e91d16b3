"""Training on a GPU: the fused kernels give the reference's run, and a run that goes on is the same run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ibvit.training import train
from ibvit.training.checkpoint import read_checkpoint
from tests.training.runs import SMALL, curve, elsewhere

pytestmark = pytest.mark.gpu
ON_GPU = replace(SMALL, device="cuda", amp="off")


def test_fused_training_follows_the_reference():
    """The same noise: step by step the same loss and KL, to the rounding of 30 steps."""
    fused, plain = (np.array(curve(replace(ON_GPU, batch_size=48, impl=impl), 30)) for impl in ("triton", "reference"))
    np.testing.assert_allclose(fused, plain, rtol=2e-3)


def test_gpu_follows_the_cpu():
    gpu, cpu = (np.array(curve(replace(ON_GPU, batch_size=48, device=device), 10)) for device in ("cuda", "cpu"))
    np.testing.assert_allclose(gpu, cpu, rtol=2e-3)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_follows_float32(amp):
    mixed, plain = (np.array(curve(replace(ON_GPU, batch_size=48, amp=precision), 8)) for precision in (amp, "off"))
    np.testing.assert_allclose(mixed, plain, rtol=0.05)


@pytest.mark.parametrize("options", [{}, {"amp": "fp16"}, {"compile": True}], ids=["float32", "fp16", "compiled"])
def test_a_run_that_goes_on_is_the_same_run(options, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(elsewhere(ON_GPU, whole, **options))
    for steps in (4, 7, 15):
        train(elsewhere(ON_GPU, broken, max_steps=steps, **options))
    a, b = (read_checkpoint(run / "checkpoints" / "last.pt") for run in (whole, broken))
    assert a["progress"] == b["progress"]
    assert all(torch.equal(a["model"][name], b["model"][name]) for name in a["model"])
