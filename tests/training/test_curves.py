"""The loss curve: golden values, and the same for any number of processes and micro-batches."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ibvit.config import TrainConfig
from tests.needs import needs_triton
from tests.training import processes
from tests.training.runs import SMALL, curve, write_curve

GOLDEN = Path(__file__).with_name("golden_digits.json")


def test_golden_curve():
    """30 steps of cross-entropy and K on digits; regenerate with ``write_curve`` only for a change that is meant."""
    points = np.array(curve(replace(SMALL, batch_size=48), 30))
    np.testing.assert_allclose(points, np.array(json.loads(GOLDEN.read_text())), rtol=1e-3)
    assert points[-1, 1] < 0.9 * points[0, 1]


@pytest.mark.parametrize("world_size", [2, 4])
def test_same_curve_for_any_number_of_processes(world_size, tmp_path):
    config = replace(SMALL, batch_size=16)
    assert processes.run(write_curve, config, 30, tmp_path / "curve", world_size=world_size) == [0] * world_size
    many = np.array(json.loads((tmp_path / "curve").read_text()))
    np.testing.assert_allclose(many, np.array(curve(config, 30)), rtol=1e-5, atol=1e-5)


def test_same_curve_with_micro_batches():
    config = replace(SMALL, batch_size=16)
    split = np.array(curve(replace(config, accumulate=4), 10))
    np.testing.assert_allclose(split, np.array(curve(config, 10)), rtol=1e-5, atol=1e-5)


def test_sum_reduction_with_the_converted_beta_is_the_same_run():
    mean = curve(replace(SMALL, batch_size=16, beta_warmup_epochs=0), 5)
    tokens = 4 * 2 * 16
    total = curve(replace(SMALL, batch_size=16, beta_warmup_epochs=0, kl_reduction="sum", beta=SMALL.beta / tokens), 5)
    np.testing.assert_allclose([ce for ce, _ in mean], [ce for ce, _ in total], rtol=1e-5)
    np.testing.assert_allclose([k * tokens for _, k in mean], [k for _, k in total], rtol=1e-5)


@needs_triton
def test_fused_training_follows_the_reference():
    """The kernels, in Triton's interpreter where there is no GPU, train the model that the reference trains."""
    config = replace(SMALL, batch_size=8)
    fused = np.array(curve(replace(config, impl="triton"), 2))
    np.testing.assert_allclose(fused, np.array(curve(replace(config, impl="reference"), 2)), rtol=1e-4)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_follows_the_curve(amp):
    plain = np.array(curve(replace(SMALL, batch_size=48), 8))
    mixed = np.array(curve(replace(SMALL, batch_size=48, amp=amp), 8))
    np.testing.assert_allclose(mixed, plain, rtol=0.05)


@pytest.mark.parametrize("attention", ["full", "none"])
def test_ends_of_the_spectrum_train(attention):
    points = curve(TrainConfig(data="digits", attention=attention, device="cpu", batch_size=64), 60)
    assert points[-1][0] < 0.7 * points[0][0]
    assert all(k == 0 for _, k in points)
