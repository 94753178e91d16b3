"""`ibvit figure` and `ibvit report` on the command line: what a user mends ends in one line that says how."""

import json
from pathlib import Path

import pytest

from ibvit import cli
from tests.analysis.constructed import write_run


def said(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> str:
    """What the command ends with."""
    monkeypatch.setattr("sys.argv", ["ibvit", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert isinstance(stop.value.code, str)  # printed on stderr; the exit code is 1
    assert "\n" not in stop.value.code
    return stop.value.code


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Runs without attention and with bottlenecks."""
    return [write_run(tmp_path / "none", "none"), write_run(tmp_path / "beta4", "ib", beta=4.0, active={"1.0": 0.5})]


@pytest.mark.parametrize("command", [["figure", "1b"], ["figure", "all"], ["report"]])
def test_a_missing_file(command: list[str], runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (runs[1] / "records" / "kl.npy").unlink()
    line = said(monkeypatch, *command, "--runs", *runs, "--out", tmp_path / "out")
    assert line.startswith(f"error: {runs[1]}/records/kl.npy is missing: run `ibvit record --run {runs[1]}`")


def test_a_missing_file_is_recorded_again_as_it_was(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = runs[1] / "records"
    meta = json.loads((records / "records.json").read_text())
    (records / "records.json").write_text(json.dumps(meta | {"options": {"heads": "all", "attention": True}}))
    (records / "mu.npy").unlink()
    line = said(monkeypatch, "figure", "4", "--runs", *runs, "--out", tmp_path / "out")
    assert f"run `ibvit record --run {runs[1]} --attention --heads all`" in line


def test_runs_of_different_data_sets(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = write_run(tmp_path / "other", "full", data="digits")
    line = said(monkeypatch, "figure", "1b", "--runs", *runs, other, "--out", tmp_path / "out")
    assert line.startswith("error: runs of different data sets cannot be compared: ")
    assert "constructed (24 images)" in line
    assert "digits (24 images)" in line


def test_a_run_without_records(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text('{"architecture": {}}')
    line = said(monkeypatch, "report", "--runs", *runs, bare, "--out", tmp_path / "report.html")
    assert line == f"error: {bare} has no records: run `ibvit record --run {bare}`"
    assert not (tmp_path / "report.html").exists()


def test_an_unknown_figure(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = said(monkeypatch, "figure", "13", "--runs", *runs, "--out", tmp_path / "out")
    assert line == "error: figure: expected one of 1b, 1c, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 or all, got '13'"
    assert not (tmp_path / "out").exists()


def test_no_run_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = said(monkeypatch, "figure", "1b", "--runs", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert line == f"error: {tmp_path}/nowhere is not a run folder: it has no config.json"
    for name in ("record", "cache"):  # its former name
        assert said(monkeypatch, name, "--run", tmp_path).endswith("is not a run with weights: it has no config.json")
