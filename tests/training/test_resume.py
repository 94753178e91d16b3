"""A run that is killed and goes on is the run that was never killed, bit for bit."""

from __future__ import annotations

import json
import random
import signal

import pytest
import torch
from PIL import Image

from ibvit.config import TrainConfig
from ibvit.training import train
from ibvit.training.checkpoint import read_checkpoint
from ibvit.training.trainer import Trainer
from tests.training import processes
from tests.training.runs import SMALL, elsewhere, sigkill, train_command


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    assert processes.run(train, elsewhere(SMALL, out)) == [0]
    return out


def same_end(first, second) -> bool:
    a, b = (read_checkpoint(run / "checkpoints" / "last.pt") for run in (first, second))
    assert a["progress"] == b["progress"] == {"epoch": 3, "step_in_epoch": 0, "step": 15}
    weights = all(torch.equal(a["model"][name], b["model"][name]) for name in a["model"])
    moments = all(
        torch.equal(a["optimizer"]["state"][i][name], b["optimizer"]["state"][i][name])
        for i in a["optimizer"]["state"]
        for name in ("exp_avg", "exp_avg_sq", "step")
    )
    return weights and moments


def lines(run) -> list[dict]:
    return [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]


def test_sigkill_at_five_random_steps(undisturbed, tmp_path):
    out = tmp_path / "run"
    for step in sorted(random.Random(0).sample(range(2, 15), 5)):
        assert processes.run(sigkill, elsewhere(SMALL, out), step) == [-signal.SIGKILL]
    assert processes.run(train, elsewhere(SMALL, out)) == [0]
    assert same_end(undisturbed, out)
    for kept, repeated in zip(lines(undisturbed), lines(out), strict=True):
        assert kept["epoch"] == repeated["epoch"]
        assert kept["val_ce"] == repeated["val_ce"]
        assert kept["train_ce"] == pytest.approx(repeated["train_ce"], rel=1e-12)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
def test_signals_save_and_exit_with_their_code(undisturbed, tmp_path, signum, code):
    out = tmp_path / "run"
    assert processes.run(train_command, elsewhere(SMALL, out), 8, signum) == [code]
    assert read_checkpoint(out / "checkpoints" / "last.pt")["progress"]["step"] == 8
    assert processes.run(train, elsewhere(SMALL, out)) == [0]
    assert same_end(undisturbed, out)


def test_two_processes_are_killed_and_go_on(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert processes.run(train, elsewhere(SMALL, whole), world_size=2) == [0, 0]
    assert processes.run(train_command, elsewhere(SMALL, broken), 8, signal.SIGTERM, world_size=2) == [143, 143]
    assert processes.run(train, elsewhere(SMALL, broken), world_size=2) == [0, 0]
    assert same_end(whole, broken)


def test_max_steps_goes_on_where_it_stopped(undisturbed, tmp_path):
    out = tmp_path / "run"
    train(elsewhere(SMALL, out, max_steps=7))
    assert lines(out)[-1]["step"] == 7
    train(elsewhere(SMALL, out, max_steps=7))  # nothing is left to do, and nothing is lost
    assert [line["step"] for line in lines(out)] == [5, 7]
    train(elsewhere(SMALL, out))
    assert same_end(undisturbed, out)
    assert [line["step"] for line in lines(out)] == [5, 10, 15]


@pytest.mark.parametrize(
    ("every", "saved"),
    [(0.4, [2, 4, 5, 6, 8, 10, 12, 14, 15]), (1.0, [5, 10, 15]), (1.6, [8, 15]), (2.0, [10, 15]), (50.0, [15])],
)
def test_checkpoints_are_as_many_epochs_apart_as_asked(tmp_path, monkeypatch, every, saved):
    steps = []
    monkeypatch.setattr(Trainer, "save", lambda trainer: steps.append(trainer.position.step))
    train(elsewhere(SMALL, tmp_path / "run", checkpoint_every=every))
    assert steps == saved


def test_an_image_that_patches_do_not_cover_is_refused(tmp_path):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (16, 16)).save(tmp_path / split / name / "0.png")
    config = TrainConfig(data=str(tmp_path), recipe="tiny100", image_size=65, batch_size=2, epochs=1, device="cpu",
                         loader="torchvision", cache="off", workers=0, out=tmp_path / "run")  # fmt: skip
    with pytest.raises(ValueError, match=r"image_size: expected a multiple of the patch size 8 .*, got 65"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_other_options_are_refused_and_none_does_not_overwrite(undisturbed):
    with pytest.raises(ValueError, match=r"out: .* other options \(beta: 2 now, 0\.5 in the run\)"):
        train(elsewhere(SMALL, undisturbed, beta=2))
    with pytest.raises(ValueError, match=r"out: .* holds a run already"):
        train(elsewhere(SMALL, undisturbed, resume="none"))
