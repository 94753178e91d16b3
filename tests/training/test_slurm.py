"""Array jobs of Slurm, without Slurm: fakes of its commands on PATH note what they are asked."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ibvit.config import TrainConfig, command_line
from ibvit.errors import MissingExtraError
from ibvit.models.storage import save_weights
from ibvit.training.checkpoint import read_checkpoint
from ibvit.training.slurm import sbatch_script, submit
from ibvit.training.sweep import SweepRun, launch, plan
from tests.training.living import is_alive, of_run, wait_for

COMMON = TrainConfig(data="digits", epochs=1, max_steps=1, latent_dim=4, hidden_dim=8, device="cpu")
LONG = replace(COMMON, epochs=1000, max_steps=None, checkpoint_every=1000.0)  # saves when it is stopped, not before
ALONE = f'#!/bin/bash\nexec {sys.executable} "${{@:3}}"'  # torchrun without its own process
TOGETHER = f'#!/bin/bash\nexec {sys.executable} -m torch.distributed.run "$@"'
STUB = """#!/bin/bash
trap 'touch {folder}/saved; exit {code}' TERM
touch {folder}/ready
while [[ ! -e {folder}/stop ]]; do sleep 0.05; done
exit 3
"""
SIGNALS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2]


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of commands that comes first in PATH; `scontrol` notes its arguments in `requeued`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name, value in {"SLURM_JOB_ID": 79, "SLURM_ARRAY_JOB_ID": 77, "SLURM_ARRAY_TASK_ID": 0}.items():
        monkeypatch.setenv(name, str(value))
    command(folder, "scontrol", f'#!/bin/bash\necho "$@" >> {tmp_path}/requeued')
    command(folder, "squeue", "#!/bin/bash\necho RUNNING")
    command(folder, "nvidia-smi", "#!/bin/bash\n")
    return folder


def command(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(script)
    (folder / name).chmod(0o755)


def requeued(tmp_path: Path) -> list[str]:
    path = tmp_path / "requeued"
    return path.read_text().splitlines() if path.exists() else []


def start(tmp_path: Path, script: str) -> subprocess.Popen:
    (tmp_path / "job.sh").write_text(script)
    with (tmp_path / "job.log").open("a") as log:
        return subprocess.Popen(["bash", tmp_path / "job.sh"], stdout=log, stderr=log, start_new_session=True)


def end(process: subprocess.Popen) -> None:
    """Leave nothing behind, whatever the test has come to."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_step(run: SweepRun) -> int:
    return read_checkpoint(run.folder / "checkpoints" / "last.pt")["progress"]["step"]


def test_the_script_gives_each_task_its_run(tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = plan([10.0, 1.0], [0, 1], [], replace(COMMON, data="a folder"), tmp_path)
    script = sbatch_script(runs, ["--gres=gpu:2"])
    options = {line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")}
    assert options >= {"--array=0-3", "--gres=gpu:2", "--requeue", "--open-mode=append", "--signal=B:TERM@120"}
    command(tools, "torchrun", '#!/bin/bash\nprintf "%s\\n" "$@"')
    command(tools, "nvidia-smi", "#!/bin/bash\necho GPU 0\necho GPU 1\n")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    (tmp_path / "job.sh").write_text(script)
    words = subprocess.run(["bash", tmp_path / "job.sh"], capture_output=True, text=True, check=True)
    assert words.stdout.splitlines() == [
        "--standalone", "--nproc-per-node=2", "-m", "ibvit", "train", *command_line(runs[2].config)
    ]  # fmt: skip


@pytest.mark.parametrize(("torchrun", "gpus", "code"), [(ALONE, 0, 143), (TOGETHER, 2, 1)], ids=["alone", "torchrun"])
def test_the_warning_saves_requeues_and_resumes(
    tools: Path, tmp_path: Path, torchrun: str, gpus: int, code: int
) -> None:
    """torchrun is a real one in the second case: two processes on the CPU."""
    (run,) = plan([4.0], [0], [], LONG, tmp_path)
    command(tools, "torchrun", torchrun)
    command(tools, "nvidia-smi", "#!/bin/bash\n" + "echo GPU\n" * gpus)
    steps = [0]
    for time in (1, 2):
        process = start(tmp_path, sbatch_script([run]))
        try:
            wait_for(lambda: (tmp_path / "job.log").read_text().count("images/s") >= len(steps), process)
            training = of_run(run.folder)
            process.send_signal(signal.SIGTERM)  # this shell alone, as by --signal=B:
            assert process.wait(timeout=60) == code
        finally:
            end(process)
        assert not any(is_alive(pid) for pid in training)
        assert requeued(tmp_path) == ["requeue 77_0"] * time
        steps.append(last_step(run))
    assert 0 < steps[1] < steps[2]
    assert (tmp_path / "job.log").read_text().count("resuming from") == 1


@pytest.mark.parametrize("signum", SIGNALS, ids=lambda signum: signum.name)
def test_any_signal_that_slurm_sends_is_passed_on(tools: Path, tmp_path: Path, signum: signal.Signals) -> None:
    command(tools, "torchrun", STUB.format(folder=tmp_path, code=143))
    process = start(tmp_path, sbatch_script(plan([4.0], [0], [], COMMON, tmp_path)))
    try:
        wait_for((tmp_path / "ready").exists, process)
        process.send_signal(signum)
        assert process.wait(timeout=60) == 143
    finally:
        end(process)
    assert (tmp_path / "saved").exists()
    assert requeued(tmp_path) == ["requeue 77_0"]


def test_a_cancelled_job_is_not_requeued(tools: Path, tmp_path: Path) -> None:
    """scancel sends SIGTERM as the warning does; the job is completing then."""
    command(tools, "torchrun", STUB.format(folder=tmp_path, code=143))
    command(tools, "squeue", "#!/bin/bash\necho COMPLETING")
    process = start(tmp_path, sbatch_script(plan([4.0], [0], [], COMMON, tmp_path)))
    try:
        wait_for((tmp_path / "ready").exists, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 143
    finally:
        end(process)
    assert (tmp_path / "saved").exists()
    assert requeued(tmp_path) == []


def test_a_run_that_finishes_after_the_warning_is_not_requeued(tools: Path, tmp_path: Path) -> None:
    command(tools, "torchrun", STUB.format(folder=tmp_path, code=0))
    process = start(tmp_path, sbatch_script(plan([4.0], [0], [], COMMON, tmp_path)))
    try:
        wait_for((tmp_path / "ready").exists, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    finally:
        end(process)
    assert requeued(tmp_path) == []


def test_a_run_that_fails_is_not_requeued(tools: Path, tmp_path: Path) -> None:
    command(tools, "torchrun", STUB.format(folder=tmp_path, code=143))
    (tmp_path / "stop").touch()
    process = start(tmp_path, sbatch_script(plan([4.0], [0], [], COMMON, tmp_path)))
    assert process.wait(timeout=60) == 3
    assert requeued(tmp_path) == []


needs_submitit = pytest.mark.skipif(
    importlib.util.find_spec("submitit") is None, reason="submitit is not installed (extra slurm)"
)


@pytest.fixture
def job(tools: Path, tmp_path: Path) -> tuple[SweepRun, list[str], str]:
    """A long run as submitit submits it: the run, the command of its first task, and the script."""
    command(tools, "sbatch", f'#!/bin/bash\ncp "$1" {tmp_path}/job.sh\necho Submitted batch job 77')
    command(tools, "srun", "#!/bin/bash\nexit 1")
    runs = plan([4.0, 1.0], [0], [], LONG, tmp_path)
    assert submit(runs, tmp_path, {"gres": "gpu:8", "time": "24:00:00"}) == ["77_0", "77_1"]
    task = [sys.executable, "-u", "-m", "submitit.core._submit", str(tmp_path / "slurm")]
    return runs[0], task, (tmp_path / "job.sh").read_text()


@needs_submitit
def test_submit_through_submitit(job: tuple[SweepRun, list[str], str]) -> None:
    _, _, script = job
    options = {line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")}
    assert options >= {"--gres=gpu:8", "--time=24:00:00", "--requeue", "--open-mode=append", "--signal=USR2@120"}
    assert any(option.startswith("--array=0-1") for option in options)


@needs_submitit
@pytest.mark.parametrize("preempted", [False, True], ids=["time limit", "preemption"])
def test_a_submitted_job_saves_is_requeued_and_resumes(
    job: tuple[SweepRun, list[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preempted: bool
) -> None:
    """Slurm signals every process of a job step; at preemption SIGTERM comes first."""
    run, task, _ = job
    for name, value in {"SUBMITIT_EXECUTOR": "slurm", "SLURM_NTASKS": 1, "SLURM_PROCID": 0}.items():
        monkeypatch.setenv(name, str(value))
    steps = [0]
    for time in (1, 2):
        with (tmp_path / "job.log").open("a") as log:
            process = subprocess.Popen(task, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_for(lambda: (tmp_path / "job.log").read_text().count("images/s") >= len(steps), process)
            training = of_run(run.folder)
            assert len(training) == 1
            if preempted:
                for pid in (process.pid, *training):
                    os.kill(pid, signal.SIGTERM)
                wait_for(lambda pids=training: not any(is_alive(pid) for pid in pids))
                assert process.poll() is None  # it waits for the signal that has it requeued
            for pid in (process.pid, *(pid for pid in training if is_alive(pid))):
                os.kill(pid, signal.SIGUSR2)
            assert process.wait(timeout=60) == 255  # submitit's code for "requeued"
        finally:
            end(process)
        assert not any(is_alive(pid) for pid in training)
        assert requeued(tmp_path) == ["requeue 77_0"] * time
        steps.append(last_step(run))
    assert 0 < steps[1] < steps[2]
    assert (tmp_path / "job.log").read_text().count("resuming from") == 1


def test_submit_without_submitit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ibvit\[slurm\]'"):
        submit(plan([1.0], [0], [], COMMON, tmp_path), tmp_path, {})


def test_only_missing_runs_go_to_slurm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    finished = tmp_path / "finished"
    save_weights(finished, {"w": torch.ones(1)}, {"epoch": COMMON.epochs, "step": 1, "epochs": COMMON.epochs})
    finish = property(lambda run: ["cp", str(finished), str(run.folder / "model.safetensors")])
    monkeypatch.setattr(SweepRun, "command", finish)
    launch([10.0], [0], [], COMMON, tmp_path)
    launch([10.0, 1.0], [0], [], COMMON, tmp_path, slurm="print")
    assert "#SBATCH --array=0-0" in capsys.readouterr().out
    launch([10.0], [0], [], COMMON, tmp_path, slurm="print")
    assert "#SBATCH" not in capsys.readouterr().out


def test_an_option_of_sbatch_without_a_value(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sbatch: expected name=value, such as gres=gpu:8, got 'exclusive'"):
        launch([10.0], [0], [], COMMON, tmp_path, slurm="submit", sbatch=["exclusive"])
