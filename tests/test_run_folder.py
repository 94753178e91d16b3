"""The readers of a run folder: whole files, cut ones, and folders of the first edition."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path

import pytest

from ibvit import run_folder
from ibvit.config import RunConfig, conflicts
from ibvit.training.run import check_same_run, stored_config

FIRST_EDITION = Path(__file__).parent / "run_of_the_first_edition"  # config.json and metrics.jsonl as 0.1.0 wrote them


def test_a_cut_last_line_of_the_metrics_is_left_out(tmp_path: Path) -> None:
    assert run_folder.read_metrics(tmp_path) == []
    whole = (FIRST_EDITION / run_folder.METRICS).read_text()
    hostile = ("{}", '{"epoch": "x", "step": 1}', '{"epoch": 0}', "[" * 100_000, "\xff\xfe")
    for end in ('{"epoch": 5, "tr', "null\n", *hostile):
        (tmp_path / run_folder.METRICS).write_bytes((whole + end).encode("latin-1"))
        assert run_folder.read_metrics(tmp_path) == [json.loads(line) for line in whole.splitlines()]


def test_the_picture_of_a_run_whose_last_line_is_cut(tmp_path: Path) -> None:
    from ibvit.figures.training import draw_training

    whole = (FIRST_EDITION / run_folder.METRICS).read_text()
    (tmp_path / run_folder.METRICS).write_text(whole + '{"epoch": 5, "tr')
    assert draw_training(tmp_path).stat().st_size > 10_000


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"beta": 1}', '{"architecture": 3}', "[" * 100_000],
    ids=["empty", "a list", "no architecture", "a number", "nested too deep"],
)
def test_what_is_no_configuration_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / run_folder.CONFIG).write_text(content)
    with pytest.raises(ValueError, match=r"^run: .*config\.json is not the configuration of a run"):
        run_folder.read_config(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^directory: expected a run folder with config\.json, found none in"):
        run_folder.read_config(tmp_path / "absent", "directory")


def test_a_configuration_that_lacks_an_option_is_named(tmp_path: Path) -> None:
    content = run_folder.read_config(FIRST_EDITION)
    del content["epochs"], content["lr"]
    (tmp_path / run_folder.CONFIG).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"^run: .*config\.json lacks epochs, lr$"):
        stored_config(tmp_path)


def test_a_run_of_the_first_edition_is_the_same_run(tmp_path: Path) -> None:
    shutil.copytree(FIRST_EDITION, tmp_path / "run")
    config = stored_config(tmp_path / "run")
    assert (config.data, config.beta, config.epochs) == ("digits", 1.0, 30)
    assert conflicts(config, run_folder.read_config(tmp_path / "run")) == []
    assert run_folder.read_metrics(tmp_path / "run")[-1]["val_top1"] > 90


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta_warmup_epochs": 50.0}, r"^beta_warmup_epochs: expected at most epochs = 30, got 50$"),
        ({"warmup_epochs": 31.0}, r"^warmup_epochs: expected at most epochs = 30, got 31$"),
        ({"lr": 1e-7}, r"^min_lr: expected at most lr = 1e-07, got 1e-06$"),
    ],
    ids=["ramp", "warm-up", "floor"],
)
def test_a_run_whose_options_are_refused_today_can_be_read(
    options: dict[str, float], message: str, tmp_path: Path
) -> None:
    content = run_folder.read_config(FIRST_EDITION) | options
    (tmp_path / run_folder.CONFIG).write_text(json.dumps(content))
    config = stored_config(tmp_path)
    assert [getattr(config, name) for name in options] == list(options.values())
    assert conflicts(config, content) == []
    with pytest.raises(ValueError, match=message):
        config.check()


def test_what_runs_has_no_option_open(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="missing 10 required keyword-only arguments"):
        RunConfig()  # type: ignore[call-arg]
    content = run_folder.read_config(FIRST_EDITION) | {"recipe": None}
    (tmp_path / run_folder.CONFIG).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"^run: .*config\.json lacks recipe$"):
        stored_config(tmp_path)


@pytest.mark.parametrize("option", [field.name for field in fields(RunConfig) if field.name != "out"])
def test_an_option_of_another_type_is_named(option: str, tmp_path: Path) -> None:
    content = run_folder.read_config(FIRST_EDITION)
    for value in ([1], {}):
        (tmp_path / run_folder.CONFIG).write_text(json.dumps(content | {option: value}))
        with pytest.raises(ValueError, match=rf"^run: .*config\.json holds {option}: expected "):
            stored_config(tmp_path)


@pytest.mark.parametrize("versions", [None, [], "x", {}])
def test_versions_that_are_none_are_unknown(versions: object, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = run_folder.read_config(FIRST_EDITION)
    config = stored_config(FIRST_EDITION)
    (tmp_path / run_folder.CONFIG).write_text(json.dumps(content | {"versions": versions}))
    check_same_run(tmp_path, config)
    assert "was started with torch unknown" in caplog.text
