"""What trackers are sent, and who a run is there, by fakes that note it, and by real ones where they are installed."""

from __future__ import annotations

import json
import sys
import types
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from ibvit.config import RunConfig
from ibvit.errors import MissingExtraError
from ibvit.run_folder import read_config, read_metrics
from ibvit.training import train
from ibvit.training.trackers import numbers, open_tracker, tracker_entry
from tests.training.runs import SMALL, elsewhere

MISSING = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "trackio": "trackio"}  # the modules that fail


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What fakes of wandb and trackio are given: for each run the arguments of `init`, and values by step."""
    runs: list[dict[str, Any]] = []

    def init(**options: Any) -> types.SimpleNamespace:
        runs.append({**options, "values": {}, "finished": False})
        here = runs[-1]
        return types.SimpleNamespace(
            log=lambda values, step: here["values"].update({step: values}),
            finish=lambda: here.update(finished=True),
        )

    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(init=init))
    return runs


@pytest.mark.parametrize("track", ["wandb", "trackio"])
def test_every_option_and_the_information_of_each_head_are_sent(sent, tmp_path: Path, track: str) -> None:
    run = train(elsewhere(SMALL, tmp_path / "run", track=track, max_steps=1))
    (tracked,) = sent
    assert tracked["config"] == read_config(run)
    assert set(tracked["config"]) >= {option.name for option in fields(RunConfig)} | {"architecture", "versions"}
    assert tracked["config"]["batch_size"] == 240
    (line,) = read_metrics(run)
    values = tracked["values"][line["step"]]
    assert values["val_heads/3.1"] == line["val_heads"][3][1]
    assert len([name for name in values if name.startswith("val_heads/")]) == 8
    assert values["val_active_heads"] == len(line["val_active_heads"])
    assert values["val_top1"] == line["val_top1"]
    assert set(values) >= set(line) - {"val_heads", "step"}
    assert tracked["finished"]


def test_tensorboard_gets_the_same(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is optional")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(elsewhere(SMALL, tmp_path / "run", track="tensorboard", max_steps=1))
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    (line,) = read_metrics(run)
    assert set(events.Tags()["scalars"]) == set(numbers(line))
    (text,) = events.Tensors("config/text_summary")
    assert json.loads(text.tensor_proto.string_val[0].decode().strip("`json\n")) == read_config(run)
    assert not (run / "tracking.json").exists()


@pytest.mark.parametrize("track", ["wandb", "trackio"])
def test_a_tracked_run_is_one_run_folder(sent, tmp_path: Path, track: str) -> None:
    """Runs of one name in different folders are different ones, and each goes on as itself."""
    folders = [tmp_path / above / "x" for above in ("a", "b")]
    for folder in folders * 2:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text('{"architecture": {}}')
        open_tracker(track, folder)
    identities = [(run.get("id"), run["name"]) for run in sent]
    assert identities[:2] == identities[2:]
    assert identities[0] != identities[1]
    assert all(run["resume"] == "allow" for run in sent)


@pytest.mark.parametrize("track", MISSING)
def test_a_missing_package_is_found_before_anything_is_written(tmp_path: Path, monkeypatch, track: str) -> None:
    monkeypatch.setitem(sys.modules, MISSING[track], None)
    with pytest.raises(MissingExtraError, match=rf"track: {track} needs {track}.*'ibvit\[{track}\]'"):
        train(elsewhere(SMALL, tmp_path / "run", track=track))
    assert not (tmp_path / "run").exists()


def test_a_folder_named_wandb_is_not_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights & Biases leaves a folder of its own name in the working directory."""
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))  # what importing the folder gives
    with pytest.raises(MissingExtraError, match="wandb"):
        tracker_entry("wandb")


def test_a_broken_identity_is_named(sent, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architecture": {}}')
    (tmp_path / "tracking.json").write_text("[]")
    with pytest.raises(ValueError, match=r"track: expected the id of a tracked run in .*tracking\.json"):
        open_tracker("wandb", tmp_path)


def test_trackio_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio", reason="trackio is optional")
    from trackio.sqlite_storage import SQLiteStorage

    for folder in (tmp_path / "a" / "x", tmp_path / "b" / "x"):
        for steps in (5, 10):
            train(elsewhere(SMALL, folder, track="trackio", max_steps=steps))
    runs = list(trackio.Api().runs("ibvit"))
    assert len(runs) == 2
    for run in runs:
        assert set(run.config) >= {option.name for option in fields(RunConfig)}
        assert (run.config["batch_size"], run.config["architecture"]["latent_dim"]) == (240, 8)
        lines = SQLiteStorage.get_logs("ibvit", run.name, run_id=run.id)
        assert [line["step"] for line in lines] == [5, 10]
        assert set(lines[-1]) >= {"val_top1", "val_active_heads", "val_heads/3.1"}


def test_wandb_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is optional")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = train(elsewhere(SMALL, tmp_path / "run", track="wandb", max_steps=1))
    identity = json.loads((run / "tracking.json").read_text())["id"]
    assert list((run / "wandb").glob(f"offline-run-*-{identity}"))
