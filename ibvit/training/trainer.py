"""The training loop."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from ibvit import ops
from ibvit.config import TrainConfig
from ibvit.data.build import DataSet
from ibvit.data.types import Batch
from ibvit.models import VisionTransformer
from ibvit.models.kl import penalty
from ibvit.training import schedules
from ibvit.training.checkpoint import LAST, save_checkpoint
from ibvit.training.distributed import Processes
from ibvit.training.evaluation import Evaluation, evaluate
from ibvit.training.interrupt import Interrupted, SignalWatch
from ibvit.training.metrics import MetricsWriter
from ibvit.training.optimizer import build_optimizer
from ibvit.training.run import CHECKPOINTS

log = logging.getLogger(__name__)

_CHECK_STEPS = 20  # steps between looks at the device on a GPU: each one waits for it


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or NaN."""


@dataclass
class Progress:
    """Where training stands; ``step`` optimiser steps are done in all."""

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0


class Trainer:
    """Trains one model; all state that a resumed run needs is in :meth:`state_dict`.

    The host never waits for the device inside a step: losses add up on the device and are read every few steps.

    Args:
        model: on its device.
        config: resolved.
    """

    def __init__(self, model: VisionTransformer, data: DataSet, config: TrainConfig, processes: Processes) -> None:
        assert config.epochs is not None
        assert config.batch_size is not None
        assert config.lr is not None
        self.model, self.data, self.config, self.processes = model, data, config, processes
        self.device = processes.device
        self.epochs, self.peak_lr = config.epochs, config.lr
        self.steps_per_epoch = len(data.train)
        self.total_steps = self.epochs * self.steps_per_epoch
        self.amp_dtype = amp_dtype(config.amp, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp_dtype is torch.float16)
        self.optimizer = build_optimizer(model, config.lr, config.weight_decay)
        self.net = _wrap(model, config, processes)
        self.progress = Progress()
        # Sums since the epoch began: cross-entropy, K, steps; and the first step whose loss was not finite.
        self.sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=self.device)
        self.keys = self._noise_keys()

    # One step.

    def lr_at(self, step: int) -> float:
        assert self.config.warmup_epochs is not None
        return schedules.learning_rate(
            step,
            total_steps=self.total_steps,
            warmup_steps=round(self.config.warmup_epochs * self.steps_per_epoch),
            peak=self.peak_lr,
            floor=self.config.min_lr,
        )

    def beta_at(self, step: int) -> float:
        assert self.config.beta_warmup_epochs is not None
        ramp = round(self.config.beta_warmup_epochs * self.steps_per_epoch)
        return schedules.beta(step, warmup_steps=ramp, target=self.config.beta)

    def _noise_keys(self) -> list[Tensor]:
        """The key of each micro-batch, for the step that comes next."""
        assert self.config.batch_size is not None
        share = self.config.batch_size // self.processes.world_size
        micro = share // self.config.accumulate
        first = [self.processes.rank * share + part * micro for part in range(self.config.accumulate)]
        return [ops.noise_key(self.config.seed, self.progress.step, sample, self.device) for sample in first]

    def train_step(self, batch: Batch) -> None:
        """One optimiser step on this rank's share of the global batch."""
        lr, beta = self.lr_at(self.progress.step), self.beta_at(self.progress.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        images = batch.images.to(self.device, non_blocking=True).chunk(self.config.accumulate)
        labels = batch.labels.to(self.device, non_blocking=True).chunk(self.config.accumulate)
        for part, key in enumerate(self.keys):
            last = part == len(self.keys) - 1
            hold = nullcontext() if last or not isinstance(self.net, DistributedDataParallel) else self.net.no_sync()
            with hold:
                self._backward(images[part], labels[part], key, beta)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        for key in self.keys:
            key[1] += 1
        self.progress.step += 1
        self.progress.step_in_epoch += 1

    def _backward(self, images: Tensor, labels: Tensor, key: Tensor, beta: float) -> None:
        with torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
            if self.model.attention == "ib":
                logits, kl = self.net(images, return_kl=True, key=key)
                price = penalty(kl, self.config.kl_reduction)
            else:
                logits = self.net(images)
                price = torch.zeros((), device=self.device)
        ce = F.cross_entropy(logits.float(), labels)
        loss = ce + beta * price
        self.scaler.scale(loss / len(self.keys)).backward()
        with torch.no_grad():
            self.sums += torch.stack([ce, price, torch.ones_like(ce)]).double() / len(self.keys)
            first_bad = (self.bad_step < 0) & ~torch.isfinite(loss)
            self.bad_step.masked_fill_(first_bad, self.progress.step)

    # The whole run.

    def run(self, writer: MetricsWriter | None) -> None:
        """Train to the end, or to ``max_steps``.

        Raises:
            Interrupted: SIGTERM or SIGINT came; the checkpoint is saved.
            NonFiniteLossError: names the step and the part of the loss.
        """
        with SignalWatch() as signals:
            while self.progress.epoch < self.epochs and not self._reached_max():
                started, first_step = time.perf_counter(), self.progress.step
                waited = self._train_epoch(signals)
                seconds = time.perf_counter() - started
                self._end_epoch(writer, seconds, waited, self.progress.step - first_step)

    def _reached_max(self) -> bool:
        return self.config.max_steps is not None and self.progress.step >= self.config.max_steps

    def _train_epoch(self, signals: SignalWatch) -> float:
        """Train to the end of the epoch; seconds spent waiting for data."""
        every = max(1, round(self.config.checkpoint_every * self.steps_per_epoch))
        look = _CHECK_STEPS if self.device.type == "cuda" else 1
        waited = 0.0
        bar = tqdm(
            total=self.steps_per_epoch,
            initial=self.progress.step_in_epoch,
            desc=f"epoch {self.progress.epoch + 1}/{self.epochs}",
            leave=False,
            disable=not (self.processes.is_main and sys.stderr.isatty()),
        )
        batches = iter(self.data.train.epoch(self.progress.epoch, self.progress.step_in_epoch))
        self.model.train()
        with bar:
            while self.progress.step_in_epoch < self.steps_per_epoch and not self._reached_max():
                before = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - before
                self.train_step(batch)
                bar.update()
                if self.progress.step % look == 0:
                    self._check_loss()
                    self._check_signals(signals)
                if self.progress.step % every == 0 and self.progress.step_in_epoch < self.steps_per_epoch:
                    self.save()
        self._check_loss()
        return waited

    def _end_epoch(self, writer: MetricsWriter | None, seconds: float, waited: float, steps: int) -> None:
        ce, price, count = self._mean_sums().tolist()
        line: dict[str, Any] = {
            "epoch": self.progress.epoch,
            "step": self.progress.step,
            "lr": self.lr_at(self.progress.step - 1),
            "beta": self.beta_at(self.progress.step - 1),
            "train_ce": ce / count,
            "train_kl": price / count,
            "images_per_second": steps * (self.config.batch_size or 0) / seconds,
            "data_wait": waited / seconds,
            "skipped_steps": self._skipped_steps(),
        }
        if self.device.type == "cuda":
            line["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        if self.data.bad is not None:
            line["replaced_images"] = self.data.bad.replaced
        finished = self.progress.step_in_epoch == self.steps_per_epoch
        if self._is_due(self.progress.epoch, finished):
            result = self.evaluate(self.config.eval_repeats)
            line |= {f"val_{name}": value for name, value in result.as_dict().items()}
        if finished:
            self.progress.epoch, self.progress.step_in_epoch = self.progress.epoch + 1, 0
            self.sums.zero_()
        if writer is not None:
            writer.write(line)
            log.info("%s", _describe(line, self.epochs))
        self.save()

    def _is_due(self, epoch: int, finished: bool) -> bool:
        assert self.config.eval_every is not None
        return not finished or (epoch + 1) % self.config.eval_every == 0 or epoch + 1 == self.epochs

    def evaluate(self, repeats: int) -> Evaluation:
        """Validate with the noise that belongs to evaluation."""
        return evaluate(
            self.model, self.data.val, self.processes, repeats=repeats, seed=self.config.seed, amp=self.amp_dtype
        )

    # Looking after the run.

    def _mean_sums(self) -> Tensor:
        return self.processes.sum(self.sums.clone()) / self.processes.world_size

    def _skipped_steps(self) -> int:
        """Steps that the GradScaler left out: the optimiser counts the others itself."""
        if not self.scaler.is_enabled():
            return 0
        done = max((int(state["step"]) for state in self.optimizer.state.values()), default=0)
        return self.progress.step - done

    def _check_loss(self) -> None:
        bad = int(self.processes.max(self.bad_step.clone()))
        if bad < 0:
            return
        ce, price, _ = self._mean_sums().tolist()
        parts = [
            name for name, value in (("cross-entropy", ce), ("KL", price)) if not torch.isfinite(torch.tensor(value))
        ]
        raise self._non_finite(f"loss: not finite at step {bad} ({' and '.join(parts) or 'their sum'})")

    def _non_finite(self, what: str) -> NonFiniteLossError:
        last = self.config.run_dir / CHECKPOINTS / LAST
        kept = f"the last good checkpoint is {last}" if last.exists() else "no checkpoint was written yet"
        return NonFiniteLossError(f"{what}; {kept}")

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
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": vars(self.progress),
            "sums": self._mean_sums(),
            "rng": self.processes.gather(rng),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        self.sums.copy_(state["sums"])
        if len(state["rng"]) == self.processes.world_size:
            rng = state["rng"][self.processes.rank]
            torch.set_rng_state(rng[0])
            if self.device.type == "cuda" and len(rng) > 1:
                torch.cuda.set_rng_state(rng[1], self.device)
        self.keys = self._noise_keys()

    def save(self) -> None:
        """Checkpoint now, if all weights are finite; only rank 0 writes."""
        self._check_loss()
        norms = torch.stack(torch._foreach_norm(list(self.model.parameters())))
        if not bool(torch.isfinite(norms).all()):
            raise self._non_finite(f"weights: not finite after step {self.progress.step - 1}")
        state = self.state_dict()
        if self.processes.is_main:
            save_checkpoint(self.config.run_dir / CHECKPOINTS, state)
        self.processes.barrier()


def amp_dtype(amp: str, device: torch.device) -> torch.dtype | None:
    """The autocast dtype that ``--amp`` means on this device; None: float32 throughout."""
    if amp == "auto":
        if device.type != "cuda":
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[amp]


def _wrap(model: VisionTransformer, config: TrainConfig, processes: Processes) -> nn.Module:
    net: nn.Module = model
    if processes.world_size > 1:
        # The one buffer, the model's own noise key, is not used in training: nothing to broadcast.
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ["noise_key"])
        net = DistributedDataParallel(
            model,
            device_ids=[processes.device] if processes.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            static_graph=config.accumulate == 1,
        )
    return torch.compile(net) if config.compile else net  # type: ignore[return-value]


def _describe(line: dict[str, Any], epochs: int) -> str:
    """One line for a person."""
    text = f"epoch {line['epoch'] + 1}/{epochs}  step {line['step']}  train ce {line['train_ce']:.3f}"
    if "val_top1" in line:
        text += f"  val top1 {line['val_top1']:.2f} %"
    if "val_nats_per_patch" in line:
        text += f"  {line['val_nats_per_patch']:.4g} nats/patch  {len(line['val_active_heads'])} active heads"
    return text + f"  {line['images_per_second']:.0f} images/s"
