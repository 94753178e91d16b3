"""The command line as a user meets it: help, runs, and mistakes that end in one line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ibvit
from ibvit import cli
from ibvit.training import CheckpointError, train
from tests.training.runs import SMALL, elsewhere

ROOT = Path(__file__).parents[1]
BOX = str.maketrans("│─╭╮╰╯", " " * 6)  # what frames a message on the terminal


def command(*args: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *args], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )


def test_train_eval_and_load(tmp_path):
    out = tmp_path / "run"
    trained = command("train.py", "--max-steps", "2", "--batch-size", "240", "--out", str(out))
    assert trained.returncode == 0, trained.stderr
    assert f"results: {out}" in trained.stdout
    assert "β = 1 on the KL's mean: 1 on its mean is 0.0078125 on its sum" in trained.stderr
    assert (out / "figures" / "training.png").stat().st_size > 10_000
    config = json.loads((out / "config.json").read_text())
    assert config["beta_sum"] == pytest.approx(1 / 128)
    assert config["versions"]["torch"]
    assert config["git"]
    line = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    for name in ("lr", "beta", "train_ce", "train_kl", "val_top1", "val_top5", "val_ce", "val_nats_per_patch",
                 "val_nats_per_image", "val_heads", "images_per_second", "data_wait"):  # fmt: skip
        assert name in line
    evaluated = [command("-m", "ibvit", "eval", "--run", str(out), "--repeats", "2") for _ in range(2)]
    first, again = (json.loads(done.stdout) for done in evaluated)
    assert first == again
    assert first["repeats"] == 2
    assert first["images"] == 360
    assert ibvit.load(out).num_classes == 10


@pytest.mark.parametrize(
    ("args", "message"),
    [
        # The command line's library words these; what matters is that the option and the value are named.
        (["--attention", "some"], r"(?=.*--attention)(?=.*'some')(?=.*ib.*full.*none)"),
        (["--beta", "x"], r"(?=.*--beta)(?=.*'x')"),
        (["--betta", "1"], r"--betta"),
        (["--beta", "-1"], "beta: expected a finite number of at least 0, got -1.0"),
        (["--epochs", "2", "--beta-warmup-epochs", "50"], "beta_warmup_epochs: expected at most epochs = 2, got 50"),
        (["--epochs", "2", "--warmup-epochs", "3"], "warmup_epochs: expected at most epochs = 2, got 3"),
        (["--lr", "1e-8"], "min_lr: expected at most lr = 1e-08, got 1e-06"),
        (["--data", "nowhere"], "error: data: expected digits, repetition, or an existing folder, got 'nowhere'"),
        (["--image-size", "9"], "error: image_size: expected 8"),
        (["--config", "absent.json"], "error: config: expected a JSON file of options, got absent.json"),
        (["--device", "warp"], "error: device: expected auto, cpu, cuda"),
        (["--pretrained", "absent.pth", "--out", "/dev/null/x"], "error: "),
        (["--model", "vit_minuscule"], "error: model: expected the name of a timm model"),
        (["--model", "vit_base_patch16_clip_224"], "error: image_size: expected"),
        (["--impl", "triton", "--max-steps", "1"], "impl='triton' is not available"),
    ],
    ids=[
        "choice",
        "number",
        "option",
        "range",
        "ramp",
        "warm-up",
        "floor",
        "data",
        "image size",
        "options",
        "device",
        "file",
        "model",
        "model of large patches",
        "impl",
    ],
)
def test_mistakes_end_in_one_line(args, message, tmp_path, monkeypatch, capsys):
    out = [] if "--out" in args else ["--out", str(tmp_path / "run")]
    monkeypatch.setattr("sys.argv", ["train.py", *args, *out])
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(SystemExit) as stop:
        cli.train_main()
    shown = capsys.readouterr()
    assert stop.value.code not in (0, None)
    text = f"{shown.out} {shown.err} {stop.value.code}"
    assert re.search(message, " ".join(text.translate(BOX).split()))


@pytest.mark.parametrize("args", [["--help"], ["--betta", "1"], ["--beta", "-1"], ["eval", "--help"], ["nmi", "a"]])
def test_help_and_mistakes_do_not_wait_for_torch(args):
    entry = "main" if args[0] in ("eval", "nmi") else "train_main"
    script = f"import sys; sys.argv = ['ibvit', *{args}]; from ibvit.cli import {entry}\ntry: {entry}()\n"
    script += "finally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False", done.stderr


@pytest.mark.parametrize("command", [["train"], ["eval"], ["nmi"], ["data", "check"]], ids=" ".join)
def test_help_names_one_default_for_each_option(command, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["ibvit", *command, "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    options = re.split(r"\n[│ ] (?=--[a-z]|-h)", capsys.readouterr().out)[1:]  # in a box, if the terminal has it
    for option in options:
        if not option.startswith("-h"):
            assert len(re.findall(r"\((?:default|required)\b", option)) == 1, option
            assert "None" not in option
    assert len(options) > 1


def without(*modules: str) -> str:
    """A script that trains two steps on digits where these modules cannot be imported."""
    blocked = f"import sys; sys.modules.update(dict.fromkeys({modules}))"  # None: find_spec and import fail
    return f"{blocked}; from ibvit.cli import train_main; train_main()"


def test_what_needs_an_extra_names_it(tmp_path):
    out = tmp_path / "run"
    no_picture = command("-c", without("matplotlib"), "--max-steps", "2", "--batch-size", "240", "--out", str(out))
    assert no_picture.returncode == 0, no_picture.stderr
    assert f"results: {out}" in no_picture.stdout
    extra = "pip install 'ibvit[figures]'"
    assert f"no picture: drawing needs matplotlib, which is not installed ({extra})" in no_picture.stdout
    no_digits = command("-c", without("sklearn", "sklearn.datasets"), "--out", str(tmp_path / "other"))
    assert no_digits.returncode == 1
    expected = "error: data: digits needs scikit-learn, which is not installed (pip install 'ibvit[digits]')"
    assert no_digits.stderr.splitlines()[-1] == expected


def test_an_empty_class_folder_is_named(tmp_path):
    from PIL import Image

    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(tmp_path / split / "cat" / "a.png")
    with pytest.raises(ValueError, match=r"found none in .*train/dog"):
        train(elsewhere(SMALL, tmp_path / "run", data=str(tmp_path), batch_size=1))


def test_a_truncated_checkpoint_is_an_error_when_it_is_named(tmp_path):
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(CheckpointError, match=r"cut\.pt is damaged or not a checkpoint"):
        train(elsewhere(SMALL, tmp_path / "run", resume=str(tmp_path / "cut.pt")))
    assert not (tmp_path / "run").exists()


def test_a_run_that_lost_its_config_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["ibvit", "eval", "--run", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"error: run: expected a run folder with config\.json"):
        cli.main()


def test_environment(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["ibvit", "env"])
    cli.main()
    shown = capsys.readouterr().out
    for word in ("python", "torch", "timm", "triton", "cores", "bottleneck, CPU", "bottleneck, GPU", "estimator, CPU"):
        assert word in shown
