"""What can go wrong in a long run, and what is left afterwards."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from ibvit import files
from ibvit.training import CheckpointError, NonFiniteLossError, train
from ibvit.training.checkpoint import read_checkpoint
from ibvit.training.trainer import Trainer
from tests.training.runs import SMALL, elsewhere


def poison(monkeypatch, at_step: int, change) -> None:
    """Call ``change(trainer)`` just before a step."""
    step = Trainer.train_step

    def poisoned(trainer, batch):
        if trainer.position.step == at_step:
            change(trainer)
        step(trainer, batch)

    monkeypatch.setattr(Trainer, "train_step", poisoned)


def test_a_non_finite_loss_stops_and_keeps_the_good_checkpoint(tmp_path, monkeypatch):
    poison(monkeypatch, 7, lambda trainer: trainer.model.head.bias.data.fill_(float("nan")))
    with pytest.raises(NonFiniteLossError, match=r"not finite at step 7 \(cross-entropy\).*last good .*last\.pt"):
        train(elsewhere(SMALL, tmp_path / "run"))
    state = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")
    assert state["progress"]["step"] < 7
    assert all(torch.isfinite(value).all() for value in state["model"].values())


def test_the_kl_is_named_too(tmp_path, monkeypatch):
    poison(monkeypatch, 1, lambda trainer: trainer.model.attentions[0].w1.data.fill_(float("inf")))
    with pytest.raises(NonFiniteLossError, match=r"step 1 \(cross-entropy and KL\); no checkpoint was written yet"):
        train(elsewhere(SMALL, tmp_path / "run", checkpoint_every=1.0))


def test_weights_that_broke_without_the_loss_are_not_saved(tmp_path, monkeypatch):
    """A frozen, unused direction of the weights turns NaN at the last step before a checkpoint."""

    def break_after(trainer):
        trainer.step.optimizer.register_step_post_hook(lambda *_: trainer.model.pos_embed.data.fill_(float("nan")))

    poison(monkeypatch, 1, break_after)
    with pytest.raises(NonFiniteLossError, match="weights: not finite after step 1"):
        train(elsewhere(SMALL, tmp_path / "run"))


def test_a_full_disk_ends_the_run_and_keeps_the_good_checkpoint(tmp_path, monkeypatch):
    def full(trainer):
        def fsync(handle: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(files.os, "fsync", fsync)

    poison(monkeypatch, 3, full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*last good checkpoint: .*last\.pt"):
        train(elsewhere(SMALL, tmp_path / "run"))
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")["progress"]["step"] == 2


def test_skips_of_the_grad_scaler_are_counted_not_fatal(tmp_path, monkeypatch):
    import json

    def overflow(trainer):
        trainer.step.scaler._scale.fill_(1e38)

    poison(monkeypatch, 2, overflow)
    run = train(elsewhere(SMALL, tmp_path / "run", amp="fp16", max_steps=5))
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["skipped_steps"] >= 1


ELASTIC = """
import os, sys
from pathlib import Path
from ibvit.training.trainer import Trainer
step = Trainer.train_step
def fragile(trainer, batch):
    step(trainer, batch)
    mark = Path(os.environ["MARK"])
    if trainer.position.step == 3 and os.environ["RANK"] == "1" and not mark.exists():
        mark.touch()
        os._exit(9)
Trainer.train_step = fragile
from ibvit.cli import train_main
train_main()
"""


def test_torchruns_elastic_restart_resumes_by_itself(tmp_path):
    """Rank 1 dies once; torchrun starts both again, and the run ends as if nothing had been."""
    (tmp_path / "fragile.py").write_text(ELASTIC)
    options = ["--data", "digits", "--attention", "none", "--device", "cpu", "--batch-size", "240", "--epochs", "1",
               "--checkpoint-every", "0.2", "--out", str(tmp_path / "run")]  # fmt: skip
    environment = {**os.environ, "MARK": str(tmp_path / "mark"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1",
         str(tmp_path / "fragile.py"), *options],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "mark").exists()
    assert "resuming from" in done.stderr
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")["progress"]["step"] == 5


def test_tensorboard_gets_the_metrics(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is optional")
    run = train(elsewhere(SMALL, tmp_path / "run", track="tensorboard", max_steps=1))
    assert list((run / "tensorboard").glob("events*"))
