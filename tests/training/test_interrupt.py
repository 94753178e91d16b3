"""Signals let training save and stop; processes of torchrun stop with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ibvit.training.checkpoint import read_checkpoint
from tests.training import processes
from tests.training.living import ends, of_run, wait_for
from tests.training.runs import SMALL, elsewhere, train_command


@pytest.mark.parametrize("signum", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP], ids=lambda signum: signum.name)
def test_what_slurm_and_terminals_send_saves_and_stops(tmp_path: Path, signum: signal.Signals) -> None:
    run = tmp_path / "run"
    assert processes.run(train_command, elsewhere(SMALL, run, checkpoint_every=9.0), 3, signum) == [128 + signum]
    assert read_checkpoint(run / "checkpoints" / "last.pt")["progress"]["step"] == 3


def test_nohup_is_respected() -> None:
    program = """
import os, signal
from ibvit.training.interrupt import SignalWatch
with SignalWatch() as signals:
    os.kill(os.getpid(), signal.SIGHUP)
print(signals.received)
"""
    done = subprocess.run(["nohup", sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0"]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel signals a parent's end on Linux only")
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGUSR1], ids=lambda signum: signum.name)
def test_processes_of_a_torchrun_that_is_killed_save_and_stop(tmp_path: Path, signum: signal.Signals) -> None:
    run = tmp_path / "run"
    options = ["--attention", "none", "--device", "cpu", "--epochs", "1000", "--checkpoint-every", "1000",
               "--out", str(run)]  # fmt: skip
    torchrun = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "ibvit", "train",
         *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(lambda: (run / "metrics.jsonl").exists(), torchrun)
        workers = of_run(run) - {torchrun.pid}
        assert len(workers) == 2
        torchrun.send_signal(signum)
        assert ends(workers)
    finally:
        torchrun.kill()
        torchrun.wait()
    assert read_checkpoint(run / "checkpoints" / "last.pt")["progress"]["step"] > 0
