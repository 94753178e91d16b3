"""A run knows its data set, its checkpoints and its folder; what meets it and is not the same is refused by name."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import ibvit
from ibvit.analysis.recorder import write_records
from ibvit.config import TrainConfig
from ibvit.errors import CheckpointError
from ibvit.files import InUseError, lock
from ibvit.models.storage import read_facts
from ibvit.run_folder import read_config, read_metrics
from ibvit.training import entry, train
from ibvit.training.checkpoint import read_checkpoint
from ibvit.training.commands import evaluate_run
from ibvit.training.trainer import Trainer

CLASSES = ("cat", "dog", "emu")


def tree(root: Path, seed: int = 0, train: int = 9, val: int = 4, classes: tuple[str, ...] = CLASSES) -> Path:
    """Images of 16 pixels, a different grey for each class; the same call gives the same files and times."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val)):
        for shade, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(rng.normal(60 + 60 * shade, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
                os.utime(folder / f"{number}.png", ns=(seed + 1, seed + 1))
    return root


def config(data: Path, out: Path, **changes) -> TrainConfig:
    return TrainConfig(
        data=str(data), recipe="digits", image_size=16, epochs=2, batch_size=12, attention="none", device="cpu",
        cache="off", workers=0, loader="torchvision", out=out, **changes,
    )  # fmt: skip


@pytest.fixture
def run(tmp_path) -> Path:
    """A run that stopped in the middle of its first epoch."""
    return train(config(tree(tmp_path / "a" / "shapes"), tmp_path / "run", max_steps=1))


def resumed(run: Path, data: Path, **changes) -> Path:
    return train(config(data, run, **changes))


def state(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file() and path.name != ".lock"}


def test_a_data_set_that_has_moved_is_the_same(run, tmp_path):
    data = tmp_path / "a" / "shapes"
    data.rename(tmp_path / "elsewhere")
    resumed(run, tmp_path / "elsewhere")
    assert [line["step"] for line in read_metrics(run)] == [2, 4]
    assert json.loads(evaluate_run(run, repeats=1))["weights"]["epoch"] == 2


def change(data: Path, how: str) -> None:
    train_folder = data / "train"
    if how == "other images":
        shutil.rmtree(data)
        tree(data, seed=1)
    elif how == "other classes":
        shutil.rmtree(data)
        tree(data, classes=("ant", "bee", "cow"))
    elif how == "another order of classes":
        for split in ("train", "val"):
            (data / split / "cat").rename(data / split / "x")
            (data / split / "dog").rename(data / split / "cat")
            (data / split / "x").rename(data / split / "dog")
    elif how == "an image more":
        shutil.copy(train_folder / "cat" / "0.png", train_folder / "cat" / "9.png")
    elif how == "an image less":
        (train_folder / "cat" / "0.png").unlink()
    elif how == "an image renamed":
        (train_folder / "cat" / "0.png").rename(train_folder / "cat" / "a.png")
    elif how == "pixels of a validation image":
        Image.new("RGB", (16, 16)).save(data / "val" / "emu" / "0.png")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("other images", "train: other files .*; val: other files"),
        ("other classes", r"classes: ant, bee, cow now, cat, dog, emu then"),
        ("another order of classes", "train: other files .*; val: other files"),
        ("an image more", "train: 28 images now, 27 then"),
        ("an image less", "train: 26 images now, 27 then"),
        ("an image renamed", r"train: other files \(names, sizes or times of change\)"),
        ("pixels of a validation image", "val: other files"),
    ],
)
def test_a_changed_data_set_is_refused_by_name(run, tmp_path, how, message):
    data, before = tmp_path / "a" / "shapes", state(run)
    if how == "another order of classes":  # the same files under other names: only their places differ
        for number, path in enumerate(sorted(data.rglob("*.png"))):
            os.utime(path, ns=(number + 5, number + 5))
        shutil.rmtree(run)
        train(config(data, run, max_steps=1))
        before = state(run)
    change(data, how)
    with pytest.raises(ValueError, match=rf"data: .* \({message}"):
        resumed(run, data)
    assert state(run) == before
    if how not in ("an image more", "an image less", "an image renamed"):  # these leave validation as it was
        with pytest.raises(ValueError, match="data: "):
            evaluate_run(run, repeats=1)
        with pytest.raises(ValueError, match="data: "):
            write_records(run)
    if how == "other classes":
        with pytest.raises(ValueError, match="other classes"):
            resumed(run, data, accept_changed_data=True)
    else:
        resumed(run, data, accept_changed_data=True)
        assert read_metrics(run)[-1]["step"] == 4
        resumed(run, data)  # now these are the run's data


def test_another_data_set_of_the_same_name_is_not_taken_for_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = tree(tmp_path / "a" / "shapes"), tree(tmp_path / "b" / "shapes", seed=1)
    out = train(replace(config(first, tmp_path), out=None))
    with pytest.raises(ValueError, match=r"data: .*b/shapes is not the data set of runs/shapes-none-beta1-seed0"):
        train(replace(config(second, tmp_path), out=None))
    assert read_config(out)["data"] == str(first)


def test_half_of_the_images_in_the_middle_of_an_epoch(run, tmp_path):
    data = tmp_path / "a" / "shapes"
    for path in (data / "train").glob("*/[4-8].png"):
        path.unlink()
    with pytest.raises(CheckpointError, match="it counts 2 steps per epoch, this run 1: other data or batch size"):
        resumed(run, data, accept_changed_data=True)


def test_another_data_set_at_the_end_of_an_epoch(run, tmp_path):
    data = tmp_path / "a" / "shapes"
    resumed(run, data, max_steps=2)
    for path in (data / "train").glob("*/[4-8].png"):
        path.unlink()
    resumed(run, data, accept_changed_data=True)
    assert read_facts(run / "model.safetensors") | {"epoch": 2, "step": 2} == read_facts(run / "model.safetensors")


def test_a_checkpoint_of_another_run_needs_a_folder_of_its_own(run, tmp_path):
    data, other = tmp_path / "a" / "shapes", tmp_path / "other"
    train(config(data, other, max_steps=1, seed=1))
    before = state(other)
    with pytest.raises(ValueError, match=r"resume: .*run/checkpoints/last.pt is not a checkpoint of the run that"):
        resumed(other, data, resume=str(run / "checkpoints" / "last.pt"), seed=1)
    assert state(other) == before
    resumed(tmp_path / "third", data, resume=str(run / "checkpoints" / "last.pt"))
    assert read_facts(tmp_path / "third" / "model.safetensors")["step"] == 4


def test_checkpoints_without_a_configuration_are_not_overwritten(run, tmp_path):
    (run / "config.json").unlink()
    with pytest.raises(ValueError, match=r"out: .*run holds checkpoints of a run but no config\.json"):
        resumed(run, tmp_path / "a" / "shapes")


def test_weights_without_a_checkpoint_are_not_overwritten(run, tmp_path):
    data = tmp_path / "a" / "shapes"
    shutil.rmtree(run / "checkpoints")
    before = state(run)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"out: .*run holds weights of a run but no checkpoint to resume from"):
            resumed(run, data)
        assert state(run) == before
        (run / "config.json").unlink(missing_ok=True)
        before = state(run)


def test_a_run_that_another_process_begins_meanwhile(run, tmp_path, monkeypatch):
    """Between the look at a folder that is not there yet and its making another run may have taken its place."""
    out, make = tmp_path / "new", entry.create_model

    def slow(**arguments):
        shutil.copytree(run, out)
        return make(**arguments)

    monkeypatch.setattr(entry, "create_model", slow)
    with pytest.raises(InUseError, match=r"out: .*new was made by another process meanwhile"):
        train(config(tmp_path / "a" / "shapes", out, seed=1))
    assert list(state(out).values()) == list(state(run).values())


DAMAGE = [
    "other shape", "a part is gone", "negative", "beyond the end", "no tensor", "no generator", "another optimiser"
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_state_that_does_not_fit_gives_way_to_the_one_before(run, tmp_path, damage, caplog):

    data = tmp_path / "a" / "shapes"
    resumed(run, data, max_steps=2)
    last = read_checkpoint(run / "checkpoints" / "last.pt")
    if damage == "other shape":
        last["model"]["head.bias"] = torch.zeros(7)
    elif damage == "a part is gone":
        del last["sums"]
    elif damage == "no tensor":
        last["sums"] = "x"
    elif damage == "no generator":
        last["rng"] = "x"
    elif damage == "another optimiser":
        last["optimizer"] = {}
    else:
        last["progress"]["step_in_epoch"] = -5 if damage == "negative" else 99
    torch.save(last, run / "checkpoints" / "last.pt")
    resumed(run, data)
    assert "last.pt does not fit this run" in caplog.text
    assert read_metrics(run)[-1]["step"] == 4


def test_a_checkpoint_of_the_first_edition_resumes(run, tmp_path):
    """It says neither what its position refers to nor of which options it is; the run knows no files."""
    path = run / "checkpoints" / "last.pt"
    last = read_checkpoint(path)
    torch.save({name: value for name, value in last.items() if name not in ("sizes", "options")}, path)
    stored = json.loads((run / "config.json").read_text())
    del stored["data_sha256"], stored["accept_changed_data"], stored["init_from"]
    (run / "config.json").write_text(json.dumps(stored))
    save_file(ibvit.load(run).state_dict(), run / "model.safetensors")
    assert set(json.loads(evaluate_run(run, repeats=1))["weights"]) == {"sha256"}
    resumed(run, tmp_path / "a" / "shapes")
    assert read_facts(run / "model.safetensors")["step"] == 4
    assert read_config(run)["data_sha256"]


@pytest.mark.parametrize("left", ["weights of a step before", "damaged weights", "no weights"])
def test_a_run_that_was_killed_between_its_last_checkpoint_and_its_weights(run, tmp_path, left):
    model, data = run / "model.safetensors", tmp_path / "a" / "shapes"
    before = model.read_bytes()
    resumed(run, data)
    whole = model.read_bytes()
    if left == "no weights":
        model.unlink()
    else:
        model.write_bytes(before if left == "weights of a step before" else b"cut")
    resumed(run, data)  # nothing is left to train
    assert model.read_bytes() == whole


def test_the_model_is_the_newest_state_and_says_which(run, tmp_path, monkeypatch):
    assert read_facts(run / "model.safetensors")["step"] == 1
    step = Trainer.train_step

    def stopped(trainer, batch) -> None:
        step(trainer, batch)
        if trainer.position.step == 3:
            trainer.save()
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "train_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        resumed(run, tmp_path / "a" / "shapes")
    found = json.loads(evaluate_run(run, repeats=1))["weights"]
    assert (found["step"], found["epoch"], found["epochs"]) == (3, 1, 2)
    assert write_records(run).meta["weights"] == found


def hold(folder: Path, held, done) -> None:
    with lock(folder, ".lock", "out"):
        held.set()
        done.wait(60)


def test_one_process_writes_to_a_folder(run, tmp_path):
    """The second is told who the first is; a killed holder holds nothing."""
    spawn = multiprocessing.get_context("spawn")
    held, done = spawn.Event(), spawn.Event()
    holder = spawn.Process(target=hold, args=(run, held, done))
    holder.start()
    assert held.wait(60)
    before = state(run)
    with pytest.raises(InUseError, match=rf"out: .*run is in use by process {holder.pid} on .*, since \d{{4}}-"):
        resumed(run, tmp_path / "a" / "shapes")
    assert state(run) == before
    holder.kill()
    holder.join()
    resumed(run, tmp_path / "a" / "shapes")


def start(config: TrainConfig) -> None:
    try:
        train(config)
    except InUseError:
        os._exit(5)


def test_two_that_begin_the_same_run_at_once(tmp_path):
    """One trains; the other is told, or comes when the first has finished and finds nothing to do."""
    spawn, options = multiprocessing.get_context("spawn"), config(tree(tmp_path / "shapes"), tmp_path / "run")
    both = [spawn.Process(target=start, args=(options,)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert sorted(process.exitcode for process in both) in ([0, 5], [0, 0])
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [2, 4]


def test_a_folder_named_as_a_built_in_set_is_said_with_a_slash(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tree(tmp_path / "digits")
    short = {"device": "cpu", "attention": "none", "max_steps": 1}
    built_in = train(TrainConfig(data="digits", out=tmp_path / "one", batch_size=240, **short))
    folder = train(replace(config(Path("digits"), tmp_path / "two"), data="./digits", max_steps=1))
    assert len(read_config(built_in)["classes"]) == 10
    assert read_config(folder)["classes"] == list(CLASSES)


def test_a_warm_start_from_another_run(run, tmp_path, caplog):
    """The weights of the other run, bottlenecks included, at step 0; a resumed run does not read them again."""
    caplog.set_level("INFO")
    data, start = tmp_path / "a" / "shapes", tmp_path / "start"
    train(replace(config(data, start, max_steps=1), attention="ib", latent_dim=4, hidden_dim=8))
    kept = ibvit.load(start).state_dict()
    out, changes = tmp_path / "warm", {"init_from": start, "lr": 1e-12, "min_lr": 0.0, "weight_decay": 0.0}
    options = replace(config(data, out, max_steps=1, seed=1, **changes), attention="ib", latent_dim=4, hidden_dim=8)
    train(options)
    warm = ibvit.load(out).state_dict()
    assert all(torch.allclose(warm[name], kept[name], atol=1e-9) for name in kept if kept[name].is_floating_point())
    assert "init_from" in caplog.text
    shutil.rmtree(start)
    train(replace(options, max_steps=None))
    assert read_facts(out / "model.safetensors")["epoch"] == 2
    with pytest.raises(FileNotFoundError, match="init_from: no file"):
        train(replace(options, out=tmp_path / "third"))
    with pytest.raises(ValueError, match="init_from: expected no --pretrained beside it"):
        train(replace(options, out=tmp_path / "third", pretrained=tmp_path / "x.pth"))
    assert not (tmp_path / "third").exists()
