"""The training loop."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ibvit.config import RunConfig, as_dict
from ibvit.data.build import DataSet
from ibvit.data.types import Batch
from ibvit.errors import Interrupted, NonFiniteLossError
from ibvit.models import VisionTransformer, save_model
from ibvit.progress import Progress
from ibvit.run_folder import CHECKPOINTS
from ibvit.training import schedules
from ibvit.training.checkpoint import LAST, save_checkpoint
from ibvit.training.distributed import Processes
from ibvit.training.evaluation import Evaluation, evaluate
from ibvit.training.interrupt import SignalWatch
from ibvit.training.metrics import MetricsWriter
from ibvit.training.step import TrainStep

log = logging.getLogger(__name__)

_CHECK_STEPS = 20  # steps between checks of the loss on a GPU; each check waits for the device


@dataclass
class Position:
    """How far training is; ``step`` counts the optimiser steps of all epochs."""

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0


class Trainer:
    """Trains one model; all state that a resumed run needs is in :meth:`state_dict`.

    Losses add up on the device and are read every few steps.

    Args:
        model: on its device.

    Attributes:
        step: what runs one optimiser step, called once per batch.
        position: how many steps were done; ``position.step`` is their number.
    """

    def __init__(self, model: VisionTransformer, data: DataSet, config: RunConfig, processes: Processes) -> None:
        self.model, self.data, self.config, self.processes = model, data, config, processes
        self.device = processes.device
        self.epochs, self.peak_lr = config.epochs, config.lr
        self.steps_per_epoch = len(data.train)
        self.total_steps = self.epochs * self.steps_per_epoch
        self.steps_per_checkpoint = max(1, round(config.checkpoint_every * self.steps_per_epoch))
        self.step = TrainStep(model, config, processes)
        self.position = Position()

    # One step.

    def lr_at(self, step: int) -> float:
        return schedules.learning_rate(
            step,
            total_steps=self.total_steps,
            warmup_steps=round(self.config.warmup_epochs * self.steps_per_epoch),
            peak=self.peak_lr,
            floor=self.config.min_lr,
        )

    def beta_at(self, step: int) -> float:
        ramp = round(self.config.beta_warmup_epochs * self.steps_per_epoch)
        return schedules.beta(step, warmup_steps=ramp, target=self.config.beta)

    def train_step(self, batch: Batch) -> None:
        """One optimiser step on this rank's share of the global batch."""
        self.step(batch, self.lr_at(self.position.step), self.beta_at(self.position.step))
        self.position.step += 1
        self.position.step_in_epoch += 1

    # The whole run.

    def run(self, writer: MetricsWriter | None) -> None:
        """Train to the end, or to ``max_steps``.

        Raises:
            Interrupted: a signal came; the checkpoint is saved.
            NonFiniteLossError: names the step and the part of the loss.
        """
        with SignalWatch() as signals:
            while self.position.epoch < self.epochs and not self._reached_max():
                started, first_step = time.perf_counter(), self.position.step
                waited = self._train_epoch(signals)
                seconds = time.perf_counter() - started
                self._end_epoch(writer, seconds, waited, self.position.step - first_step)

    def _reached_max(self) -> bool:
        return self.config.max_steps is not None and self.position.step >= self.config.max_steps

    def _train_epoch(self, signals: SignalWatch) -> float:
        """Train to the end of the epoch; returns the seconds spent waiting for data."""
        check_interval = _CHECK_STEPS if self.device.type == "cuda" else 1
        waited = 0.0
        bar = Progress(
            self.steps_per_epoch,
            f"epoch {self.position.epoch + 1}/{self.epochs}",
            "steps",
            done=self.position.step_in_epoch,
            show=self.processes.is_main,
        )
        batches = iter(self.data.train.epoch(self.position.epoch, self.position.step_in_epoch))
        self.model.train()
        with bar:
            while self.position.step_in_epoch < self.steps_per_epoch and not self._reached_max():
                before = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - before
                self.train_step(batch)
                bar.advance()
                if self.position.step % check_interval == 0:
                    self._check_loss()
                    self._check_signals(signals)
                if self.position.step % self.steps_per_checkpoint == 0 and not self._at_end_of_epoch:
                    self.save()
        self._check_loss()
        return waited

    def _end_epoch(self, writer: MetricsWriter | None, seconds: float, waited: float, steps: int) -> None:
        ce, kl, count = self._mean_sums().tolist()
        line: dict[str, Any] = {
            "epoch": self.position.epoch,
            "step": self.position.step,
            "lr": self.lr_at(self.position.step - 1),
            "beta": self.beta_at(self.position.step - 1),
            "train_ce": ce / count,
            "train_kl": kl / count,
            "images_per_second": steps * self.config.batch_size / seconds,
            "data_wait": waited / seconds,
            "skipped_steps": self.step.skipped,
        }
        if self.device.type == "cuda":
            line["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        if self.data.bad is not None:
            line["replaced_images"] = int(self.processes.sum(torch.tensor(self.data.bad.replaced, device=self.device)))
        epoch_is_over = self._at_end_of_epoch  # else ``max_steps`` came first
        if self._is_evaluation_due(self.position.epoch, epoch_is_over):
            result = self.evaluate(self.config.eval_repeats)
            line |= {f"val_{name}": value for name, value in result.as_dict().items()}
        if epoch_is_over:
            self.position.epoch, self.position.step_in_epoch = self.position.epoch + 1, 0
            self.step.sums.zero_()
        if writer is not None:
            writer.write(line)
            log.info("%s", _describe(line, self.epochs))
        if self.position.epoch == self.epochs or self._reached_max() or self._is_checkpoint_due():
            self.save()

    @property
    def _at_end_of_epoch(self) -> bool:
        return self.position.step_in_epoch == self.steps_per_epoch

    def _is_checkpoint_due(self) -> bool:
        """At the end of an epoch; always if an epoch holds several checkpoints."""
        return self.steps_per_checkpoint < self.steps_per_epoch or self.position.step % self.steps_per_checkpoint == 0

    def _is_evaluation_due(self, epoch: int, epoch_is_over: bool) -> bool:
        return not epoch_is_over or (epoch + 1) % self.config.eval_every == 0 or epoch + 1 == self.epochs

    def evaluate(self, repeats: int) -> Evaluation:
        """Validate with the noise that belongs to evaluation."""
        return evaluate(
            self.model, self.data.val, self.processes, repeats=repeats, seed=self.config.seed, amp=self.step.amp
        )

    # Checks, state and checkpoints.

    def _mean_sums(self) -> Tensor:
        return self.processes.sum(self.step.sums.clone()) / self.processes.world_size

    def _check_loss(self) -> None:
        bad_step = int(self.processes.max(self.step.bad_step.clone()))
        if bad_step < 0:
            return
        ce, kl, _ = self._mean_sums().tolist()
        parts = [name for name, value in (("cross-entropy", ce), ("KL", kl)) if not torch.isfinite(torch.tensor(value))]
        raise self._non_finite(f"loss: not finite at step {bad_step} ({' and '.join(parts) or 'their sum'})")

    def _non_finite(self, what: str) -> NonFiniteLossError:
        last = self.config.out / CHECKPOINTS / LAST
        checkpoint = f"the last good checkpoint is {last}" if last.exists() else "no checkpoint was written yet"
        return NonFiniteLossError(f"{what}; {checkpoint}")

    def _check_signals(self, signals: SignalWatch) -> None:
        """All ranks stop at the same step, whichever of them the signal has reached."""
        received = signals.received
        if self.processes.world_size > 1:
            received = int(self.processes.max(torch.tensor(received, device=self.device)))
        if received:
            self.save()
            raise Interrupted(received)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        rng = [torch.get_rng_state()]
        if self.device.type == "cuda":
            rng.append(torch.cuda.get_rng_state(self.device))
        return {
            "model": self.model.state_dict(),
            **self.step.state_dict(),
            "progress": vars(self.position),
            "sums": self._mean_sums(),
            "sizes": self.sizes,
            "options": as_dict(self.config),
            "rng": self.processes.gather(rng),
        }

    @property
    def sizes(self) -> dict[str, int]:
        """What the position of a checkpoint refers to."""
        return {"steps_per_epoch": self.steps_per_epoch, "batch_size": self.config.batch_size, "epochs": self.epochs}

    def check_state(self, state: dict[str, Any]) -> None:
        """Check that :meth:`load_state_dict` can take a state.

        Raises:
            ValueError, KeyError: it lacks a part, is of another model, or has a position that this run never reaches.
        """
        own = {name: tuple(value.shape) for name, value in self.model.state_dict().items()}
        stored = {name: tuple(value.shape) for name, value in state["model"].items()}
        if own != stored:
            name = sorted(own.items() ^ stored.items())[0][0]
            raise ValueError(f"its {name} is {stored.get(name, 'absent')}, the model's {own.get(name, 'absent')}")
        for name in ("optimizer", "sums", "rng"):
            _ = state[name]
        position, steps = Position(**state["progress"]), self.steps_per_epoch
        stored_steps = state.get("sizes", self.sizes)["steps_per_epoch"]
        if stored_steps != steps and (position.step_in_epoch or not self.config.accept_changed_data):
            raise ValueError(f"it counts {stored_steps} steps per epoch, this run {steps}: other data or batch size")
        done = position.epoch * stored_steps + position.step_in_epoch
        if position.step != done or not 0 <= position.epoch <= self.epochs or not 0 <= position.step_in_epoch <= steps:
            raise ValueError(f"its position is {position}, which this run of {self.epochs} epochs does not reach")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a state; after an error a state before it may be loaded, which replaces all of it.

        Raises:
            ValueError, KeyError, TypeError, AttributeError, RuntimeError: it does not fit.
        """
        self.check_state(state)
        self.model.load_state_dict(state["model"])
        self.position = Position(**state["progress"])
        self.position.step = self.position.epoch * self.steps_per_epoch + self.position.step_in_epoch
        self.step.load_state_dict(state, self.position.step)
        self.step.sums.copy_(state["sums"])
        if len(state["rng"]) == self.processes.world_size:
            rng = state["rng"][self.processes.rank]
            torch.set_rng_state(rng[0])
            if self.device.type == "cuda" and len(rng) > 1:
                torch.cuda.set_rng_state(rng[1], self.device)

    def save(self) -> None:
        """Checkpoint now, if all weights are finite; only rank 0 writes."""
        self._check_loss()
        norm = torch.nn.utils.get_total_norm(self.model.parameters())  # not finite if one of the weights is not
        if not bool(torch.isfinite(norm)):
            raise self._non_finite(f"weights: not finite after step {self.position.step - 1}")
        state = self.state_dict()
        if self.processes.is_main:
            save_checkpoint(self.config.out / CHECKPOINTS, state)
            self.export()
        self.processes.barrier()

    def export(self) -> None:
        """Write the weights as they are now, with the position of training."""
        position = {"epoch": self.position.epoch, "step": self.position.step, "epochs": self.epochs}
        save_model(self.model, self.config.out, position)


def _describe(line: dict[str, Any], epochs: int) -> str:
    """One line for a person."""
    text = f"epoch {line['epoch'] + 1}/{epochs}  step {line['step']}  train ce {line['train_ce']:.3f}"
    if "val_top1" in line:
        text += f"  val top1 {line['val_top1']:.2f} %"
    if "val_nats_per_patch" in line:
        text += f"  {line['val_nats_per_patch']:.4g} nats/patch  {len(line['val_active_heads'])} active heads"
    return text + f"  {line['images_per_second']:.0f} images/s"
