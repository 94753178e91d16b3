"""A sweep as an array job of Slurm: tasks save before their time limit, are requeued, and resume."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ibvit.config import command_line
from ibvit.errors import MissingExtraError
from ibvit.training.interrupt import SignalWatch, start_training
from ibvit.training.sweep_runs import SweepRun

_NAME = "ibvit-sweep"
_WARNING = 120  # seconds before the time limit at which Slurm signals: enough for a step and a checkpoint
_GRACE = 3600  # seconds; longer than what Slurm leaves a job that is preempted
_REQUEUES = 1000  # in effect no limit: each one is a time slot in which the run has made progress

_SCRIPT = r"""
gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l)
eval "torchrun --standalone --nproc-per-node=$((gpus > 0 ? gpus : 1)) -m ibvit train ${runs[$SLURM_ARRAY_TASK_ID]} &"
training=$!

# Slurm warns this shell alone. Training saves and stops at SIGTERM, also under torchrun.
warnings=0
trap 'warnings=$((warnings + 1)); kill -TERM "$training" 2>/dev/null' TERM USR1 USR2
seen=-1
while ((seen != warnings)); do  # a signal ends wait before training has ended
  seen=$warnings
  wait "$training"
  code=$?
done

# torchrun ends with 1, whatever code its processes end with. A job that was cancelled is completing already.
job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID  # SLURM_JOB_ID of the last task would requeue the whole array
if ((warnings && code)) && [[ $(squeue --noheader --job "$job" --format %T 2>/dev/null) != COMPLETING ]]; then
  scontrol requeue "$job"
fi
exit "$code"
"""


def sbatch_script(runs: Sequence[SweepRun], options: Sequence[str] = ()) -> str:
    """A Slurm array job with one task per run; submit it with `sbatch`.

    Args:
        options: further #SBATCH options, such as "--gres=gpu:8".
    """
    lines = [
        "#!/bin/bash",
        f"#SBATCH --job-name={_NAME}",
        f"#SBATCH --array=0-{len(runs) - 1}",
        f"#SBATCH --output={_NAME}-%A-%a.log",
        "#SBATCH --open-mode=append",
        "#SBATCH --requeue",
        f"#SBATCH --signal=B:TERM@{_WARNING}",
        *(f"#SBATCH {option}" for option in options),
        "runs=(",
        *(f"  {shlex.quote(shlex.join(command_line(run.config)))}" for run in runs),
        ")",
    ]
    return "\n".join(lines) + _SCRIPT


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
    executor = submitit.SlurmExecutor(folder=str(folder / "slurm"), max_num_timeout=_REQUEUES)
    executor.update_parameters(
        job_name=_NAME, signal_delay_s=_WARNING, additional_parameters={"requeue": True, **options}
    )
    jobs = executor.map_array(TrainOnNode(), list(runs))
    return [job.job_id for job in jobs]


class TrainOnNode:
    """What a submitted job does: the GPUs that count are those of its node, not of the one that submits.

    Submitit calls `checkpoint` when Slurm preempts the job or its time is nearly over; then it requeues the job.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, run: SweepRun) -> None:
        with SignalWatch([signal.SIGTERM]) as signals:
            self._process = start_training(run.command)
            code = self._process.wait()
            if code and signals.received:
                time.sleep(_GRACE)  # preempted: the signal that has submitit requeue the job is still to come
        if code:
            raise subprocess.CalledProcessError(code, run.command)

    def checkpoint(self, run: SweepRun) -> Any:
        """Let training save and stop; gives what the requeued job does: the same, and training resumes."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            # Popen.wait would wait for its own lock: this runs in a signal handler, inside __call__'s wait.
            with suppress(ChildProcessError):  # it has ended
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(TrainOnNode(), run)
