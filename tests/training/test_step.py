"""Ways to run a step: compiled, and as a CUDA graph, they train the model that the plain step trains."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ibvit.config import TrainConfig
from ibvit.training import train
from ibvit.training.checkpoint import read_checkpoint
from ibvit.training.distributed import Processes
from ibvit.training.step import TrainStep
from tests.needs import needs_library
from tests.training import processes
from tests.training.runs import SMALL, curve, elsewhere, make_trainer, write_curve

TINY = TrainConfig(
    data="repetition", device="cpu", latent_dim=4, hidden_dim=8, batch_size=16, beta=0.5, beta_warmup_epochs=1
)
traced = functools.partial(torch.compile, backend="aot_eager")  # dynamo and autograd without code generation


@pytest.fixture(autouse=True)
def _fresh_compiler():
    yield
    torch.compiler.reset()


@pytest.fixture
def without_code_generation(monkeypatch):
    monkeypatch.setattr(torch, "compile", traced)


def write_traced_curve(config: TrainConfig, steps: int, path: Path) -> None:
    torch.compile = traced
    write_curve(config, steps, path)


@functools.cache
def reference_curve() -> np.ndarray:
    return np.array(curve(replace(TINY, impl="reference"), 200))


@pytest.mark.parametrize(
    ("impl", "way"),
    [
        pytest.param("native", False, marks=needs_library),
        pytest.param("native", True, marks=needs_library),
        ("reference", True),
    ],
)
def test_every_way_to_run_a_step_follows_the_reference_over_200_steps(impl, way):
    """Compiled with code generation: the loss and K of each step, to float32's rounding as training spreads it."""
    points = np.array(curve(replace(TINY, compile=way, impl=impl), 200))
    np.testing.assert_allclose(points[:20], reference_curve()[:20], rtol=1e-4)
    np.testing.assert_allclose(points, reference_curve(), rtol=0.05, atol=0.02)


def test_nothing_is_compiled_twice(without_code_generation):
    """Learning rate, β and noise change from step to step; the graph does not."""
    with torch._dynamo.config.patch(error_on_recompile=True):
        points = curve(replace(TINY, compile=True), 8)
    assert len(set(points)) == 8


def test_compiled_processes_follow_one(tmp_path):
    config = replace(TINY, compile=True)
    assert processes.run(write_traced_curve, config, 10, tmp_path / "curve", world_size=2) == [0, 0]
    many = np.array(json.loads((tmp_path / "curve").read_text()))
    np.testing.assert_allclose(many, np.array(curve(TINY, 10)), rtol=1e-4, atol=1e-5)


def test_a_compiled_run_that_goes_on_is_the_same_run(without_code_generation, tmp_path):
    config = replace(SMALL, data="repetition", epochs=1, batch_size=800, compile=True)
    train(elsewhere(config, tmp_path / "whole"))
    for steps in (3, 7, 100):
        train(elsewhere(config, tmp_path / "broken", max_steps=steps))
    whole, broken = (read_checkpoint(tmp_path / run / "checkpoints" / "last.pt") for run in ("whole", "broken"))
    assert whole["progress"] == broken["progress"]
    assert all(torch.equal(whole["model"][name], broken["model"][name]) for name in whole["model"])


def test_a_graph_needs_a_gpu():
    with pytest.raises(ValueError, match="cuda_graph: expected a CUDA device, got cpu"):
        curve(replace(TINY, cuda_graph=True), 1)


def test_the_optimiser_may_move_between_host_and_device():
    """A checkpoint of a graph holds its learning rate as a tensor; a plain step goes on from it, and the other way."""
    with Processes.from_environment("cpu") as alone:
        trainer = make_trainer(TINY, alone)
        trainer.train_step(next(iter(trainer.data.train.epoch(0))))
        state = trainer.step.state_dict()
        for group in state["optimizer"]["param_groups"]:
            group |= {"lr": torch.tensor(0.5), "capturable": True}
        other: TrainStep = make_trainer(TINY, alone).step
        other.load_state_dict(state, step=1)
    assert all(not group["capturable"] and isinstance(group["lr"], float) for group in other.optimizer.param_groups)
    assert int(other.keys[0][1]) == 1


def test_new_tensors_are_not_filled():
    """Deterministic algorithms would fill each one with NaN first: a tenth of a small step."""
    curve(TINY, 1)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory
