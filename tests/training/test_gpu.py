"""Training on a GPU: the fused kernels give the reference's run, and a run that goes on is the same run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import ibvit
from ibvit.data.types import Batch
from ibvit.training import train
from ibvit.training.checkpoint import read_checkpoint
from ibvit.training.distributed import Processes
from ibvit.training.entry import make_deterministic
from ibvit.training.step import TrainStep
from tests.training.runs import SMALL, curve, elsewhere, make_trainer

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


WAYS = {
    "compiled": {"compile": True},
    "graph": {"cuda_graph": True},
    "compiled graph": {"compile": True, "cuda_graph": True},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize(("amp", "rtol"), [("off", 0.02), ("bf16", 0.1)])
def test_every_way_to_run_a_step_follows_the_reference_over_200_steps(way, impl, amp, rtol):
    config = replace(ON_GPU, batch_size=48, impl="reference", amp=amp)
    plain = np.array(curve(config, 200))
    other = np.array(curve(replace(config, impl=impl, **WAYS[way]), 200))
    np.testing.assert_allclose(other[:20], plain[:20], rtol=rtol)
    # Rounding spreads: later single steps may differ more than their average.
    np.testing.assert_allclose(other[20:].reshape(6, 30, 2).mean(1), plain[20:].reshape(6, 30, 2).mean(1), rtol=rtol)


def test_a_replayed_step_is_the_plain_step_bit_for_bit():
    plain, graph = (curve(replace(ON_GPU, batch_size=48, cuda_graph=way), 40) for way in (False, True))
    assert plain == graph


def test_a_graph_draws_fresh_noise():
    """The same images each time: without fresh noise every replay would price them alike at a learning rate of 0."""
    with Processes.from_environment("cuda") as alone:
        trainer = make_trainer(replace(ON_GPU, batch_size=48, cuda_graph=True), alone)
        batch = next(iter(trainer.data.train.epoch(0)))
        losses = []
        for _ in range(16):
            before = trainer.step.sums[0].clone()
            trainer.step(batch, lr=0.0, beta=0.0)
            losses.append(float(trainer.step.sums[0] - before))
    assert trainer.step.graph.graph is not None
    assert len(set(losses)) == len(losses)


def test_many_tokens_in_low_precision_repeat_bit_for_bit():
    """196 tokens: attention's backward pass has several blocks of keys to add up."""
    images, labels = torch.randn(8, 3, 224, 224, device="cuda"), torch.arange(8, device="cuda")
    config = replace(ON_GPU, batch_size=8, lr=1e-3, amp="bf16")
    results = []
    with Processes.from_environment("cuda") as alone:
        for _ in range(2):
            make_deterministic(0)
            model = ibvit.create_model("vit_tiny_patch16_224", attention="ib", num_classes=8, depth=2).cuda().train()
            step = TrainStep(model, config, alone)
            for _ in range(5):
                step(Batch(images, labels, labels), lr=1e-3, beta=0.1)
            results.append([parameter.detach() for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("options", [{}, {"amp": "fp16"}, *WAYS.values(), {"cuda_graph": True, "amp": "fp16"}], ids=str)
def test_a_run_that_goes_on_is_the_same_run(options, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(elsewhere(ON_GPU, whole, **options))
    for steps in (4, 7, 15):
        train(elsewhere(ON_GPU, broken, max_steps=steps, **options))
    a, b = (read_checkpoint(run / "checkpoints" / "last.pt") for run in (whole, broken))
    assert a["progress"] == b["progress"]
    assert all(torch.equal(a["model"][name], b["model"][name]) for name in a["model"])
