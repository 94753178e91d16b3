"""Sweeps: which runs, in which order, what is skipped, resumed, submitted, and what the table says."""

import os
import signal
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import tyro

from ibvit.config import TrainConfig, command_line
from ibvit.errors import MissingExtraError
from ibvit.training import sweep
from ibvit.training.sweep import SweepRun, launch, plan, sbatch_script, submit, table, train_missing

COMMON = TrainConfig(data="digits", epochs=1, max_steps=1, latent_dim=4, hidden_dim=8, device="cpu")


def stub(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let a run be a Python script that finds its folder in `folder`."""
    command = property(lambda run: [sys.executable, "-c", f"folder = {str(run.folder)!r}\n{script}"])
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


def test_a_folder_with_other_options_is_refused(tmp_path: Path) -> None:
    (run,) = plan([1.0], [0], [], COMMON, tmp_path)
    run.folder.mkdir()
    (run.folder / "config.json").write_text('{"architecture": {}, "latent_dim": 32}')
    with pytest.raises(ValueError, match="latent_dim: 4 now, 32 in the run"):
        train_missing([run])


def test_failed_runs_are_named_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub(
        monkeypatch, "import sys\nif 'beta4' in folder: sys.exit('no memory')\nopen(folder + '/model.safetensors', 'w')"
    )
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
(here / 'model.safetensors').touch()
"""
    stub(monkeypatch, script)
    assert train_missing(plan([1.0, 4.0], [0], [], COMMON, tmp_path), jobs=2) == []


def test_ctrl_c_reaches_the_run_and_stops_the_sweep(tmp_path: Path) -> None:
    """As in a terminal: the signal goes to the whole group; the run saves and ends, the next one does not start."""
    program = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts with it ignored
from pathlib import Path
from ibvit.training import sweep
script = '''
import signal, sys, time
def save(*_): open(folder + "/saved", "w"); sys.exit(130)
signal.signal(signal.SIGINT, save)
print("ready", flush=True); time.sleep(60)
'''
sweep.SweepRun.command = property(lambda run: [sys.executable, "-c", f"folder = {{str(run.folder)!r}}" + script])
try: sweep.launch([4.0, 1.0], [0], [], sweep.TrainConfig(), Path({str(tmp_path)!r}))
except KeyboardInterrupt: sys.exit(130)
"""
    process = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    first, second = (run.folder for run in plan([4.0, 1.0], [0], [], TrainConfig(), tmp_path))
    while not (first / "train.log").exists() or "ready" not in (first / "train.log").read_text():
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert (first / "saved").exists()
    assert not second.exists()


def test_a_run_that_ends_at_ctrl_c_is_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run may be quicker than this process to notice the signal."""
    stub(monkeypatch, "import sys; sys.exit(130)")
    train_missing(plan([4.0, 1.0], [0], [], COMMON, tmp_path))
    assert (tmp_path / "digits-ib-beta4-seed0").exists()
    assert not (tmp_path / "digits-ib-beta1-seed0").exists()


def test_sbatch_script_gives_each_task_its_run(tmp_path: Path) -> None:
    runs = plan([10.0, 1.0], [0, 1], [], replace(COMMON, data="a folder"), tmp_path)
    script = sbatch_script(runs, ["--gres=gpu:2"])
    assert "#SBATCH --array=0-3" in script
    assert "#SBATCH --gres=gpu:2" in script
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "torchrun").write_text('#!/bin/bash\nprintf "%s\\n" "$@"')
    (tools / "nvidia-smi").write_text("#!/bin/bash\necho GPU 0\necho GPU 1\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    (tmp_path / "job.sh").write_text(script)
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "2"}
    words = subprocess.run(["bash", tmp_path / "job.sh"], env=environment, capture_output=True, text=True, check=True)
    assert words.stdout.splitlines() == [
        "--standalone", "--nproc-per-node=2", "-m", "ibvit", "train", *command_line(runs[2].config)
    ]  # fmt: skip


def test_submit_through_submitit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted = []

    class SlurmExecutor:
        def __init__(self, folder: str) -> None:
            submitted.append(folder)

        def update_parameters(self, **parameters: object) -> None:
            submitted.append(parameters)

        def map_array(self, call, runs):
            submitted.append(runs)
            call(runs[1])
            return [types.SimpleNamespace(job_id=f"7_{k}") for k in range(len(runs))]

    stub(monkeypatch, f"open({str(tmp_path / 'trained')!r}, 'w').write(folder)")
    monkeypatch.setitem(sys.modules, "submitit", types.SimpleNamespace(SlurmExecutor=SlurmExecutor))
    runs = plan([10.0, 1.0], [0], [], COMMON, tmp_path)
    assert submit(runs, tmp_path, {"gres": "gpu:8"}) == ["7_0", "7_1"]
    assert submitted[1] == {"job_name": "ibvit-sweep", "additional_parameters": {"gres": "gpu:8"}}
    assert submitted[2] == runs
    assert (tmp_path / "trained").read_text() == str(runs[1].folder)


def test_only_missing_runs_go_to_slurm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    stub(monkeypatch, "open(folder + '/model.safetensors', 'w')")
    launch([10.0], [0], [], COMMON, tmp_path)
    launch([10.0, 1.0], [0], [], COMMON, tmp_path, slurm="print")
    assert "#SBATCH --array=0-0" in capsys.readouterr().out
    launch([10.0], [0], [], COMMON, tmp_path, slurm="print")
    assert "#SBATCH" not in capsys.readouterr().out


def test_an_option_of_sbatch_without_a_value(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sbatch: expected name=value, such as gres=gpu:8, got 'exclusive'"):
        launch([10.0], [0], [], COMMON, tmp_path, slurm="submit", sbatch=["exclusive"])


def test_submit_without_submitit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ibvit\[slurm\]'"):
        submit(plan([1.0], [0], [], COMMON, tmp_path), tmp_path, {})


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
