"""Small runs on digits that the training tests share."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

from ibvit.config import TrainConfig
from ibvit.data.build import DataSpec, build_data
from ibvit.data.sets.recipes import apply_recipe
from ibvit.models import create_model
from ibvit.training import train
from ibvit.training.distributed import Processes
from ibvit.training.entry import make_deterministic
from ibvit.training.run import model_arguments
from ibvit.training.trainer import Trainer

SMALL = TrainConfig(
    data="digits", beta=0.5, device="cpu", latent_dim=8, hidden_dim=16, batch_size=240, epochs=3, checkpoint_every=0.4
)
"""Five steps an epoch, a checkpoint every second one."""


def make_trainer(config: TrainConfig, processes: Processes) -> Trainer:
    run, recipe = apply_recipe(config)
    make_deterministic(run.seed)
    data = build_data(DataSpec.of(run), rank=processes.rank, world_size=processes.world_size, device=processes.device)
    model = create_model(**model_arguments(run, recipe, len(data.classes)), impl=run.impl)
    return Trainer(model.to(processes.device), data, run, processes)


def curve(config: TrainConfig, steps: int) -> list[tuple[float, float]]:
    """Cross-entropy and K of each of the first steps, means over all processes."""
    with Processes.from_environment(config.device) as processes:
        trainer = make_trainer(config, processes)
        points, before = [], trainer._mean_sums()
        while len(points) < steps:
            for batch in trainer.data.train.epoch(trainer.position.epoch):
                trainer.train_step(batch)
                after = trainer._mean_sums()
                points.append(tuple((after - before)[:2].tolist()))
                before = after
                if len(points) == steps:
                    break
            trainer.position.epoch += 1
    return points


def write_curve(config: TrainConfig, steps: int, path: Path) -> None:
    points = curve(config, steps)
    if int(os.environ.get("RANK", 0)) == 0:
        path.write_text(json.dumps(points))


def train_until_killed(config: TrainConfig, at_step: int, signum: int) -> None:
    """Train, and send this process a signal when ``at_step`` steps are done."""
    step = Trainer.train_step

    def killed(trainer: Trainer, batch) -> None:
        step(trainer, batch)
        if trainer.position.step == at_step:
            os.kill(os.getpid(), signum)

    Trainer.train_step = killed
    train(config)


def train_command(config: TrainConfig, at_step: int, signum: int) -> None:
    """The same under the command line's handling of errors and signals."""
    from ibvit.command_line import run_command

    run_command(lambda: train_until_killed(config, at_step, signum))


def sigkill(config: TrainConfig, at_step: int) -> None:
    train_until_killed(config, at_step, signal.SIGKILL)


def elsewhere(config: TrainConfig, out: Path, **changes) -> TrainConfig:
    return replace(config, out=out, **changes)
