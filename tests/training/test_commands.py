"""``ibvit eval`` on data that are elsewhere now, and through another loader."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ibvit import cli
from ibvit.config import TrainConfig
from ibvit.training import train
from ibvit.training.commands import evaluate_run


def make_images(root: Path) -> Path:
    """Two classes of smooth pictures: bright and dark."""
    for split, count in (("train", 4), ("val", 3)):
        for label, level in (("bright", 150), ("dark", 20)):
            folder = root / split / label
            folder.mkdir(parents=True)
            for at in range(count):
                coarse = np.random.default_rng(at).integers(level, level + 100, (5, 6, 3), dtype=np.uint8)
                Image.fromarray(coarse).resize((60, 50), Image.Resampling.BICUBIC).save(folder / f"{at}.jpg")
    return root


@pytest.fixture
def run(tmp_path):
    images = make_images(tmp_path / "images")
    config = TrainConfig(
        data=str(images), recipe="tiny100", image_size=16, model="vit_tiny_patch16_224", latent_dim=4, hidden_dim=8,
        loader="torchvision", batch_size=4, epochs=1, max_steps=1, device="cpu", workers=0, out=tmp_path / "run",
    )  # fmt: skip
    return train(config)


def test_evaluation_where_the_data_are_now(run, tmp_path):
    """The same images in another place give the same numbers; in the old place there are none any more."""
    before = json.loads(evaluate_run(run, repeats=2))
    moved = (tmp_path / "images").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="data: expected digits, repetition, or an existing folder"):
        evaluate_run(run, repeats=2)
    assert json.loads(evaluate_run(run, repeats=2, data=str(moved))) == before


def test_both_loaders_give_the_same_evaluation(run):
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    one, other = (json.loads(evaluate_run(run, repeats=1, loader=loader)) for loader in ("torchvision", "dali"))
    assert one["top1"] == other["top1"]
    assert one["ce"] == pytest.approx(other["ce"], rel=0.02)


def test_data_of_other_classes(run, tmp_path):
    (tmp_path / "images" / "train" / "dark").rename(tmp_path / "dark")
    (tmp_path / "images" / "val" / "dark").rename(tmp_path / "dark of val")
    with pytest.raises(
        ValueError,
        match=r"data: .*images has other classes .*run \(classes: fewer now, dark then\)",
    ):
        evaluate_run(run, repeats=1)


@pytest.mark.parametrize("command", ["eval", "record"])
def test_damaged_weights_are_named_with_the_option(run, command, monkeypatch):
    (run / "model.safetensors").write_bytes(b"cut")
    monkeypatch.setattr("sys.argv", ["ibvit", command, "--run", str(run)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert re.match(r"error: (run|weights): .*model\.safetensors is damaged", str(stop.value.code))
