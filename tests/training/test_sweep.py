"""Sweeps: which runs, in which order, what is skipped, stopped, resumed, and what the table says."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import tyro
from safetensors.torch import save_file

from ibvit.command_line import run_command
from ibvit.config import TrainConfig, command_line
from ibvit.errors import CheckpointError, MissingExtraError
from ibvit.models.storage import read_facts, save_weights
from ibvit.training import sweep
from ibvit.training.checkpoint import read_checkpoint
from ibvit.training.sweep import SweepRun, launch, plan, table, train_missing
from tests.training import processes
from tests.training.living import ends, is_alive, of_run, wait_for

COMMON = TrainConfig(data="digits", epochs=1, max_steps=1, latent_dim=4, hidden_dim=8, device="cpu")


def stub(monkeypatch: pytest.MonkeyPatch, script: str, folder: Path) -> None:
    """Let a run be a Python script that finds its folder in `folder` and ends with `finish()`."""
    finished = folder / "finished"
    save_weights(finished, {"w": torch.ones(1)}, {"epoch": 1, "step": 1, "epochs": 1})
    made = f"import shutil\ndef finish(): shutil.copy({str(finished)!r}, folder + '/model.safetensors')\n"
    command = property(lambda run: [sys.executable, "-c", f"folder = {str(run.folder)!r}\n{made}{script}"])
    monkeypatch.setattr(SweepRun, "command", command)


def test_runs_go_along_the_spectrum_seed_by_seed(tmp_path: Path) -> None:
    runs = plan([0.1, 10.0, 0.1], [0, 1], ["full", "none"], COMMON, tmp_path)
    seen = [(run.config.seed, run.config.attention, run.config.beta) for run in runs]
    once = [("none", 1.0), ("ib", 10.0), ("ib", 0.1), ("full", 1.0)]
    assert seen == [(seed, *kind) for seed in (0, 1) for kind in once]
    assert len({run.folder for run in runs}) == 8
    assert all(run.folder.parent == tmp_path for run in runs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [0], [], COMMON), "at least one run"),
        (([1.0], [], [], COMMON), "at least one run"),
        (([1.0], [0], [], replace(COMMON, seed=3)), r"train\.seed: the sweep sets it; expected 0, got 3"),
    ],
)
def test_mistakes(arguments, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        plan(*arguments, tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(),
        replace(COMMON, beta=0.01, attention="none", compile=True, kl_reduction="sum"),
        TrainConfig(data="a folder", out=Path("runs/with space"), beta_warmup_epochs=0, resume="none", lr=3e-5),
    ],
)
def test_the_command_line_means_the_same_configuration(config: TrainConfig) -> None:
    assert tyro.cli(TrainConfig, args=command_line(config)) == config


def test_a_real_run_is_trained_then_skipped(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    launch([1.0], [0], [], COMMON, tmp_path)
    (run,) = plan([1.0], [0], [], COMMON, tmp_path)
    assert run.finished
    before = (run.folder / "model.safetensors").stat().st_mtime_ns
    launch([1.0], [0], [], COMMON, tmp_path)
    assert (run.folder / "model.safetensors").stat().st_mtime_ns == before
    line = capsys.readouterr().out.splitlines()[-1].split()
    assert line[:3] == ["digits-ib-beta1-seed0", "finished", "1"]


def test_finished_is_what_has_reached_its_end(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Two steps are finished for whoever asks for two; the weights of the first edition ask the metrics."""
    whole = replace(COMMON, max_steps=None, batch_size=479)
    launch([1.0], [0], [], replace(whole, max_steps=2), tmp_path)
    assert plan([1.0], [0], [], replace(whole, max_steps=2), tmp_path)[0].finished
    (run,) = plan([1.0], [0], [], whole, tmp_path)
    assert not run.finished
    launch([1.0], [0], [], whole, tmp_path)
    assert read_facts(run.folder / "model.safetensors")["step"] == 3
    assert run.finished
    save_file({"w": torch.ones(1)}, run.folder / "model.safetensors")
    assert run.finished
    lines = (run.folder / "metrics.jsonl").read_text()
    (run.folder / "metrics.jsonl").write_text(lines.replace('"step": 3', '"step": 2'))
    assert not run.finished
    (run.folder / "model.safetensors").write_bytes(b"cut")
    assert not run.finished


def test_a_folder_with_other_options_is_refused(tmp_path: Path) -> None:
    (run,) = plan([1.0], [0], [], COMMON, tmp_path)
    run.folder.mkdir()
    (run.folder / "config.json").write_text('{"architecture": {}, "latent_dim": 32}')
    with pytest.raises(ValueError, match="latent_dim: 4 now, 32 in the run"):
        train_missing([run])


def test_failed_runs_are_named_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub(monkeypatch, "import sys\nif 'beta4' in folder: sys.exit('no memory')\nfinish()", tmp_path)
    with pytest.raises(ValueError, match=r"1 run\(s\) failed; see .*beta4.*train\.log"):
        launch([10.0, 4.0, 1.0], [0], [], COMMON, tmp_path)
    runs = plan([10.0, 4.0, 1.0], [0], [], COMMON, tmp_path)
    assert [run.finished for run in runs] == [True, False, True]
    assert "no memory" in (runs[1].folder / "train.log").read_text()


def test_jobs_run_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of two runs waits for the other's mark: one after another, both would give up."""
    script = """
import pathlib, sys, time
here = pathlib.Path(folder)
(here.parent / ('mark-' + here.name)).touch()
for _ in range(400):
    if len(list(here.parent.glob('mark-*'))) == 2: break
    time.sleep(0.05)
else: sys.exit('alone')
finish()
"""
    stub(monkeypatch, script, tmp_path)
    assert train_missing(plan([1.0, 4.0], [0], [], COMMON, tmp_path), jobs=2) == []


SWEEP = ["sweep", "--betas", "4", "1", "--train.device", "cpu", "--train.epochs", "1000",
         "--train.checkpoint-every", "1000", "--train.latent-dim", "4", "--train.hidden-dim", "8"]  # fmt: skip
TORCHRUN = """
import sys
from ibvit.training.sweep import SweepRun
from ibvit.cli import main
plain = SweepRun.command.fget
launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
SweepRun.command = property(lambda run: [plain(run)[0], *launcher, *plain(run)[1:]])
main()
"""  # what a sweep does on a machine of two GPUs


def start_sweep(folder: Path, *options: str, program: Sequence[str] = ("-m", "ibvit")) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *program, *SWEEP, "--out", str(folder), *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def last_step(run: SweepRun) -> int:
    return read_checkpoint(run.folder / "checkpoints" / "last.pt")["progress"]["step"]


STUBBORN = """
import os, signal, sys, time
def save(*_): open(folder + "/saved", "w"); sys.exit(143)
signal.signal(signal.SIGTERM, save)
os.kill(os.getppid(), {signum})
time.sleep(60)
"""  # a run that has the sweep signalled
SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]


def sweep_of_stubs(folder: Path, script: str) -> None:
    command = property(lambda run: [sys.executable, "-c", f"folder = {str(run.folder)!r}\n{script}"])
    SweepRun.command = command  # type: ignore[method-assign]
    run_command(lambda: launch([4.0, 1.0], [0], [], COMMON, folder))


@pytest.mark.parametrize("signum", SIGNALS, ids=lambda signum: signum.name)
def test_a_signal_lets_the_training_save_and_stop(tmp_path: Path, signum: signal.Signals) -> None:
    """The run is asked to stop; the sweep waits for it, and does not start the next one."""
    first, second = plan([4.0, 1.0], [0], [], COMMON, tmp_path)
    script = STUBBORN.format(signum=int(signum))
    assert processes.run(sweep_of_stubs, tmp_path, script) == [128 + signum]
    assert (first.folder / "saved").exists()
    assert not second.folder.exists()


def test_the_next_sweep_resumes_what_a_signal_stopped(tmp_path: Path) -> None:
    """Both runs are at work side by side; the terminal's whole group gets the signal."""
    runs = plan([4.0, 1.0], [0], [], TrainConfig(), tmp_path)
    process = start_sweep(tmp_path, "--jobs", "2")
    try:
        wait_for(lambda: all((run.folder / "metrics.jsonl").exists() for run in runs), process)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 130
    finally:
        process.kill()
    steps = {run.folder: last_step(run) for run in runs}
    done = start_sweep(tmp_path, "--train.max-steps", str(max(steps.values()) + 1))
    assert done.wait(timeout=240) == 0
    for run in runs:
        assert "resuming from" in (run.folder / "train.log").read_text()
        assert (run.folder / "model.safetensors").exists()
        assert last_step(run) == max(steps.values()) + 1


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel signals a parent's end on Linux only")
@pytest.mark.parametrize("program", [("-m", "ibvit"), ("-c", TORCHRUN)], ids=["alone", "torchrun"])
def test_training_saves_and_stops_when_the_sweep_is_killed(tmp_path: Path, program: Sequence[str]) -> None:
    run, _ = plan([4.0, 1.0], [0], [], TrainConfig(), tmp_path)
    process = start_sweep(tmp_path, program=program)
    try:
        wait_for(lambda: (run.folder / "metrics.jsonl").exists(), process)
        training = of_run(run.folder)
        assert len(training) == (1 if program[0] == "-m" else 3)
    finally:
        process.kill()
    assert ends(training)
    assert last_step(run) > 0


def test_a_signal_under_torchrun(tmp_path: Path) -> None:
    """torchrun does not know SIGUSR2, and ends with code 1 whatever its processes end with."""
    run, _ = plan([4.0, 1.0], [0], [], TrainConfig(), tmp_path)
    process = start_sweep(tmp_path, program=("-c", TORCHRUN))
    try:
        wait_for(lambda: (run.folder / "metrics.jsonl").exists(), process)
        training = of_run(run.folder)
        process.send_signal(signal.SIGUSR2)
        assert process.wait(timeout=60) == 128 + signal.SIGUSR2
    finally:
        process.kill()
    assert not any(is_alive(pid) for pid in training)
    assert last_step(run) > 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"warmup_epochs": 9}, ValueError, r"warmup_epochs: expected at most epochs = 1, got 9"),
        ({"model": "vit_of_nobody"}, ValueError, r"name: expected the name of a timm model .* got 'vit_of_nobody'"),
        ({"batch_size": 10**6}, ValueError, r"batch_size: expected at most the .* training images, got 1000000"),
        ({"accumulate": 7}, ValueError, r"batch_size: expected a multiple of .* 1 × 7, got 32"),
        ({"image_size": 9}, ValueError, r"image_size: expected 8"),
        ({"device": "cpu:x"}, ValueError, r"device: expected auto, cpu"),
        ({"cuda_graph": True}, ValueError, r"cuda_graph: expected a CUDA device, got cpu"),
        ({"pretrained": Path("absent.pth")}, FileNotFoundError, r"no file absent\.pth"),
        ({"resume": "absent.pt"}, CheckpointError, r"no file absent\.pt"),
        ({"recipe": "soup"}, ValueError, r"recipe: expected one of .* got 'soup'"),
    ],
)
def test_wrong_options_are_found_before_the_first_run(options, error, message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        launch([4.0, 1.0], [0], [], replace(COMMON, **options), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_missing_tracker_is_found_before_the_first_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ibvit\[wandb\]'"):
        launch([4.0, 1.0], [0], [], replace(COMMON, track="wandb"), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_all_gpus_train_one_run_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run,) = plan([1.0], [0], [], COMMON, tmp_path)
    assert run.command[1:4] == ["-m", "ibvit", "train"]
    monkeypatch.setattr(sweep.torch.cuda, "device_count", lambda: 8)
    assert "--nproc-per-node=8" in run.command


def test_table_of_runs_in_every_state(tmp_path: Path) -> None:
    runs = plan([10.0, 1.0], [0], [], COMMON, tmp_path)
    runs[1].folder.mkdir()
    line = '{"epoch": 6, "step": 70, "val_top1": 81.25, "val_nats_per_patch": 0.125, "val_active_heads": ["1.0"]}\n'
    (runs[1].folder / "metrics.jsonl").write_text(line)
    rows = [row.split() for row in table(runs).splitlines()]
    assert rows[1] == ["digits-ib-beta10-seed0", "missing", "0"]
    assert rows[2] == ["digits-ib-beta1-seed0", "interrupted", "7", "81.2", "0.125", "1"]
