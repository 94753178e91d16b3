"""`ibvit sweep`: the runs of a spectrum, one folder each; finished ones are skipped, interrupted ones go on."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count, repeat
from pathlib import Path
from threading import Event
from typing import Literal

import torch

from ibvit.config import TrainConfig, command_line
from ibvit.data.sets.recipes import apply_recipe
from ibvit.errors import MissingExtraError
from ibvit.kinds import KINDS, EndName
from ibvit.run_folder import CONFIG, LOG, MODEL, read_metrics
from ibvit.training.run import check_same_run

log = logging.getLogger(__name__)

INTERRUPTED = (128 + signal.SIGINT, -signal.SIGINT)  # exit codes of a run that Ctrl-C has reached


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep, and how it stands on disk."""

    config: TrainConfig

    @property
    def folder(self) -> Path:
        return self.config.run_dir

    @property
    def finished(self) -> bool:
        """Whether the run is there, whole.

        Raises:
            ValueError: the folder holds a run with other options.
        """
        if (self.folder / CONFIG).is_file():
            check_same_run(self.folder, apply_recipe(replace(self.config, out=self.folder))[0])
        return (self.folder / MODEL).is_file()

    @property
    def command(self) -> list[str]:
        """What trains it: on all GPUs of this machine together, or on whatever one device there is."""
        gpus = torch.cuda.device_count()
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}"] if gpus > 1 else []
        return [sys.executable, *launcher, "-m", "ibvit", "train", *command_line(self.config)]


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
        ValueError: as `plan` and `submit`; an option of sbatch is not name=value; or a run failed.
    """
    if wrong := [option for option in sbatch if "=" not in option]:
        raise ValueError(f"sbatch: expected name=value, such as gres=gpu:8, got {wrong[0]!r}")
    runs = plan(betas, seeds, ends, common, folder)
    missing = [run for run in runs if not run.finished]
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


def plan(
    betas: Sequence[float],
    seeds: Sequence[int],
    ends: Sequence[EndName],
    common: TrainConfig,
    folder: Path,
) -> list[SweepRun]:
    """The runs of a sweep, seed by seed along the spectrum, so that an early stop leaves whole spectra.

    Args:
        common: options of all runs; beta, seed, attention and out are the sweep's own.
        folder: where the run folders go, under their usual names.

    Raises:
        ValueError: there is nothing to run, or `common` sets what the sweep sets.
    """
    for name in ("beta", "seed", "attention", "out"):
        value, default = getattr(common, name), getattr(TrainConfig(), name)
        if value != default:
            raise ValueError(f"train.{name}: the sweep sets it; expected {default}, got {value}")
    points: list[dict[str, object]] = []
    for name, kind in KINDS.items():
        if kind.has_kl:
            points += [{"attention": name, "beta": beta} for beta in sorted(set(betas), reverse=True)]
        elif name in ends:
            points.append({"attention": name})
    if not points or not seeds:
        raise ValueError("betas: expected at least one run: give --betas or --attention, and --seeds")
    configs = [replace(common, seed=seed, **point) for seed in dict.fromkeys(seeds) for point in points]  # type: ignore[arg-type]
    return [SweepRun(replace(config, out=folder / config.run_dir.name)) for config in configs]


def train_missing(runs: Sequence[SweepRun], jobs: int = 1) -> list[Path]:
    """Train the runs that are not finished, `jobs` at a time, each in its own process with its own train.log.

    Ctrl-C lets each process save its checkpoint; the same call resumes there.

    Returns:
        Folders of runs that failed.

    Raises:
        ValueError: jobs < 1, or a folder holds a run with other options.
    """
    if jobs < 1:
        raise ValueError(f"jobs: expected at least 1, got {jobs}")
    missing = [run for run in runs if not run.finished]
    log.info("%d of %d runs are finished already", len(runs) - len(missing), len(runs))
    # Runs side by side share the cores; left alone, each would start a thread on every one of them.
    threads = str(max(1, len(os.sched_getaffinity(0)) // jobs))
    environment = os.environ | ({} if jobs == 1 else {"OMP_NUM_THREADS": threads})
    # A run may end at Ctrl-C before this process has noticed it: then the run's exit code is what stops the sweep.
    stopped = Event()
    pool = ThreadPoolExecutor(max_workers=jobs)
    try:
        common = repeat(len(missing)), repeat(environment), repeat(stopped)
        outcomes = list(pool.map(_train_one, count(1), missing, *common))
    except KeyboardInterrupt:
        # The terminal has sent Ctrl-C to the running processes too; only those not yet started are dropped.
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()
    return [run.folder for run, code in zip(missing, outcomes, strict=True) if code != 0]


def _train_one(number: int, run: SweepRun, total: int, environment: Mapping[str, str], stopped: Event) -> int:
    if stopped.is_set():
        return INTERRUPTED[0]
    run.folder.mkdir(parents=True, exist_ok=True)
    log.info("[%d/%d] %s: training, see %s", number, total, run.folder.name, run.folder / LOG)
    start = time.monotonic()
    with (run.folder / LOG).open("ab") as output:
        done = subprocess.run(run.command, stdout=output, stderr=subprocess.STDOUT, env=environment, check=False)
    if done.returncode in INTERRUPTED:
        stopped.set()
    state = "finished" if done.returncode == 0 else f"stopped with exit code {done.returncode}"
    log.info("[%d/%d] %s: %s after %.0f s", number, total, run.folder.name, state, time.monotonic() - start)
    return done.returncode


def sbatch_script(runs: Sequence[SweepRun], options: Sequence[str] = ()) -> str:
    """A Slurm array job with one task a run; submit it with `sbatch`.

    Args:
        options: further #SBATCH options, such as "--gres=gpu:8".
    """
    lines = [
        "#!/bin/bash",
        "#SBATCH --job-name=ibvit-sweep",
        f"#SBATCH --array=0-{len(runs) - 1}",
        "#SBATCH --output=ibvit-sweep-%A-%a.log",
        *(f"#SBATCH {option}" for option in options),
        # Slurm's warning before the time limit lets a run save its checkpoint.
        "#SBATCH --signal=TERM@120",
        "runs=(",
        *(f"  {shlex.quote(shlex.join(command_line(run.config)))}" for run in runs),
        ")",
        "gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l)",
        'eval "exec torchrun --standalone --nproc-per-node=$((gpus > 0 ? gpus : 1)) -m ibvit train '
        '${runs[$SLURM_ARRAY_TASK_ID]}"',
    ]
    return "\n".join(lines) + "\n"


def submit(runs: Sequence[SweepRun], folder: Path, options: Mapping[str, str]) -> list[str]:
    """Submit runs as one Slurm array through submitit; gives the ids of the jobs.

    Args:
        folder: Slurm's logs go into `folder`/slurm.
        options: of sbatch, such as {"gres": "gpu:8", "time": "24:00:00"}.

    Raises:
        MissingExtraError: submitit is not installed.
    """
    try:
        import submitit
    except ImportError as error:
        raise MissingExtraError("slurm: submit", "submitit", "slurm") from error
    executor = submitit.SlurmExecutor(folder=str(folder / "slurm"))
    executor.update_parameters(job_name="ibvit-sweep", additional_parameters=dict(options))
    jobs = executor.map_array(train_on_node, list(runs))
    return [job.job_id for job in jobs]


def train_on_node(run: SweepRun) -> None:
    """What a submitted job does: the GPUs that count are those of its node, not of the one that submits."""
    subprocess.check_call(run.command)


def table(runs: Sequence[SweepRun]) -> str:
    """How each run stands, a line each: epochs done, accuracy, information, active heads."""
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
