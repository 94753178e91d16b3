"""`ibvit sweep`: the runs of a spectrum, one folder each; finished ones are skipped, interrupted ones resume."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, Self

import torch

from ibvit.config import RunConfig, TrainConfig
from ibvit.data.build import DataSpec, build_data
from ibvit.data.sets.folder import choose_loader
from ibvit.data.sets.recipes import apply_recipe
from ibvit.errors import Interrupted
from ibvit.kinds import EndName
from ibvit.models import create_model
from ibvit.run_folder import CONFIG, LOG, read_metrics
from ibvit.training.checkpoint import read_checkpoint
from ibvit.training.distributed import Processes
from ibvit.training.entry import check_patches
from ibvit.training.interrupt import SignalWatch, start_training
from ibvit.training.run import model_arguments
from ibvit.training.slurm import sbatch_script, submit
from ibvit.training.step import TrainStep
from ibvit.training.sweep_runs import SweepRun, plan
from ibvit.training.trackers import tracker_entry

log = logging.getLogger(__name__)

_POLL = 0.1  # seconds between looks at processes and signals


def launch(
    betas: Sequence[float],
    seeds: Sequence[int],
    ends: Sequence[EndName],
    common: TrainConfig,
    folder: Path,
    *,
    jobs: int = 1,
    slurm: Literal["no", "print", "submit"] = "no",
    sbatch: Sequence[str] = (),
) -> None:
    """What `ibvit sweep` does.

    Args:
        sbatch: options of the Slurm job as "name=value".

    Raises:
        ValueError: as `plan`, `check_options` and `submit`; an option of sbatch is not name=value; or a run failed.
        Interrupted: a signal came; what was running is saved.
    """
    if wrong := [option for option in sbatch if "=" not in option]:
        raise ValueError(f"sbatch: expected name=value, such as gres=gpu:8, got {wrong[0]!r}")
    runs = plan(betas, seeds, ends, common, folder)
    missing = [run for run in runs if not run.finished]
    check_options(missing, on_this_machine=slurm == "no")
    failed: list[Path] = []
    if slurm == "no":
        failed = train_missing(runs, jobs)
    elif not missing:
        log.info("all %d runs are finished already", len(runs))
    elif slurm == "print":
        print(sbatch_script(missing, [f"--{option}" for option in sbatch]), end="")
        return
    else:
        options = dict(option.split("=", 1) for option in sbatch)
        print(f"submitted: {', '.join(submit(missing, folder, options))}")
    print(table(runs))
    if failed:
        raise ValueError(f"{len(failed)} run(s) failed; see {', '.join(str(path / LOG) for path in failed)}")


def check_options(runs: Sequence[SweepRun], on_this_machine: bool = True) -> None:
    """Check the options of runs as training does, before the first of them starts; images are not read.

    Args:
        on_this_machine: the runs are trained here, so the devices that they need are checked too.

    Raises:
        ValueError: an option is wrong, or the data are not usable.
        MissingExtraError: a package that an option needs is not installed.
    """
    checked: set[RunConfig] = set()
    for planned in runs:
        run, recipe = apply_recipe(planned.config)
        is_new = not (run.out / CONFIG).is_file()
        if is_new:
            run.check()
        shared = replace(run, beta=1.0, seed=0, out=Path(), resume=run.resume)
        if shared in checked:
            continue
        checked.add(shared)
        if run.track != "none":
            tracker_entry(run.track)
        if run.resume not in ("auto", "none"):
            read_checkpoint(Path(run.resume))
        if run.loader != "auto" and Path(run.data).is_dir():
            choose_loader(run.loader)
        gpus = torch.cuda.device_count() if on_this_machine else 0
        spec = DataSpec(run.data, run.image_size, run.batch_size, run.accumulate)
        data = build_data(spec, rank=0, world_size=max(1, gpus), device=torch.device("cpu"))
        data.close()
        model = create_model(
            **model_arguments(run, recipe, len(data.classes)), impl=run.impl, pretrained=run.pretrained or False
        )
        if is_new:
            check_patches(run.image_size, model)
        if on_this_machine and (processes := Processes.from_environment(run.device)).device.type == "cpu":
            TrainStep(model, run, processes)


def train_missing(runs: Sequence[SweepRun], jobs: int = 1) -> list[Path]:
    """Train the runs that are not finished, `jobs` at a time, each in its own process with its own train.log.

    A signal lets each process save its checkpoint and stop; the same call resumes there.

    Returns:
        Folders of runs that failed.

    Raises:
        ValueError: jobs < 1, or a folder holds a run with other options.
        Interrupted: a signal came; what was running is saved.
    """
    if jobs < 1:
        raise ValueError(f"jobs: expected at least 1, got {jobs}")
    missing = [run for run in runs if not run.finished]
    log.info("%d of %d runs are finished already", len(runs) - len(missing), len(runs))
    # Runs side by side share the cores. Without this, each run would start a thread on every core.
    threads = str(max(1, len(os.sched_getaffinity(0)) // jobs))
    environment = os.environ | ({} if jobs == 1 else {"OMP_NUM_THREADS": threads})
    waiting = deque(_Training(run, f"[{number}/{len(missing)}]") for number, run in enumerate(missing, start=1))
    running: list[_Training] = []
    failed: list[Path] = []
    with SignalWatch() as signals:
        try:
            while running or (waiting and not signals.received):
                while waiting and len(running) < jobs and not signals.received:
                    running.append(waiting.popleft().start(environment))
                if signals.received:
                    for training in running:
                        training.stop()
                time.sleep(_POLL)
                failed += [training.run.folder for training in running if training.end()]
                running = [training for training in running if training.process.returncode is None]
        finally:  # empty, unless a second Ctrl-C came or a run could not be started
            for training in running:
                training.process.kill()
    if signals.received:
        raise Interrupted(signals.received)
    return failed


class _Training:
    """A run that is trained in a process of its own.

    Attributes:
        label: its number among those of the sweep, for the log.
    """

    process: subprocess.Popen[bytes]

    def __init__(self, run: SweepRun, label: str) -> None:
        self.run, self.label = run, label
        self._is_stopping = False

    def start(self, environment: Mapping[str, str]) -> Self:
        folder = self.run.folder
        folder.mkdir(parents=True, exist_ok=True)
        log.info("%s %s: training, see %s", self.label, folder.name, folder / LOG)
        self._started = time.monotonic()
        with (folder / LOG).open("ab") as output:
            self.process = start_training(
                self.run.command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
            )
        return self

    def stop(self) -> None:
        """Ask the process to save its checkpoint and stop."""
        if not self._is_stopping:
            self._is_stopping = True
            self.process.send_signal(signal.SIGTERM)

    def end(self) -> bool:
        """Whether the process has failed; logs that it has ended."""
        code = self.process.poll()
        if code is not None:
            state = "finished" if code == 0 else f"stopped with exit code {code}"
            log.info(
                "%s %s: %s after %.0f s", self.label, self.run.folder.name, state, time.monotonic() - self._started
            )
        return code not in (0, None)


def table(runs: Sequence[SweepRun]) -> str:
    """The state of each run, one per line: epochs done, accuracy, information, active heads."""
    rows = [("run", "state", "epochs", "top-1 %", "nats/patch", "active heads")]
    for run in runs:
        epochs = read_metrics(run.folder)
        state = "finished" if run.finished else "interrupted" if epochs else "missing"
        validated = [epoch for epoch in epochs if "val_top1" in epoch]
        last = validated[-1] if validated else {}
        rows.append(
            (
                run.folder.name,
                state,
                str(epochs[-1]["epoch"] + 1) if epochs else "0",
                f"{last['val_top1']:.1f}" if last else "",
                f"{last['val_nats_per_patch']:.3g}" if "val_nats_per_patch" in last else "",
                str(len(last["val_active_heads"])) if "val_active_heads" in last else "",
            )
        )
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
