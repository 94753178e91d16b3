"""`ibvit nmi`: heads of recorded runs and channel files, and mistakes that end in one clear line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ibvit
from ibvit.analysis.records import Records
from tests.analysis.constructed import write_run

cli = pytest.importorskip("ibvit.cli", reason="the command line needs tyro", exc_type=ImportError)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs with one and two heads active on average, one without bottlenecks, one without records; other data."""
    write_run(tmp_path / "one", "ib", active={"1.0": 0.5})
    write_run(tmp_path / "two", "ib", active={"1.1": 0.5, "0.0": 2.0, "0.1": 0.0})
    write_run(tmp_path / "full", "full")
    write_run(tmp_path / "elsewhere", "ib", active={"1.0": 0.5}, data="other")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text('{"architecture": {}, "attention": "ib"}')
    np.savez(tmp_path / "noise.npz", mu=np.zeros((384, 2)), logvar=np.zeros((384, 2)))
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def nmi(monkeypatch: pytest.MonkeyPatch, *args: str) -> None:
    monkeypatch.setattr("sys.argv", ["ibvit", "nmi", *args])
    cli.main()


def test_heads_of_two_runs(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What the command prints is what the function returns for the recorded arrays."""
    nmi(monkeypatch, "one:1.0", "two:0.0")
    heads = [
        tuple(part.reshape(-1, 3) for part in Records.open(here / run).latent(head))
        for run, head in (("one", "1.0"), ("two", "0.0"))
    ]
    value = ibvit.nmi(*heads).value
    assert 0.2 < value < 1.5
    assert f"NMI {value:.6f} ± 0 (standard error)" in capsys.readouterr().out


def test_two_heads_of_one_run_and_a_file(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nmi(monkeypatch, "two:0.0", "two:0.0")
    assert "NMI 1.000000" in capsys.readouterr().out
    mu, logvar = Records.open(here / "two").latent("0.0")
    np.savez(here / "a:1.npz", mu=mu.reshape(-1, 3), logvar=logvar.reshape(-1, 3))
    nmi(monkeypatch, "two:0.0", "a:1.npz")  # a file may have a colon in its name
    assert "NMI 1.000000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("nowhere:1.0", r"nowhere is not a run folder: it has no config\.json"),
        ("bare:1.0", "bare has no records: run `ibvit record --run bare`"),
        ("full:1.0", "full:1.0: expected a run with bottlenecks, got attention=full"),
        ("two:7.0", r"head: expected 'block\.head' with block < 2 and head < 2, got '7\.0'"),
        ("two:first", r"head: expected 'block\.head'.*got 'first'"),
        ("two:1.0", r"head '1\.0' is not in two/records \(saved: 1\.1, 0\.0, 0\.1\).*--heads all"),
        ("two:0.1", "NMI of one:1.0 and two:0.1: not a number, at least one of them carries too little information"),
        ("elsewhere:1.0", "runs of different data sets cannot be compared"),
        ("noise.npz", "NMI of one:1.0 and noise.npz: not a number"),
        ("nowhere.npz", r"No such file or directory: nowhere\.npz"),
        ("cut.npz", r"cut\.npz: expected a \.npz file, cannot read it"),
        ("head.csv", r"expected a \.npz or \.safetensors file, got 'head\.csv'"),
    ],
    ids=[
        "no run",
        "no records",
        "full",
        "no head",
        "no number",
        "idle",
        "silent",
        "data",
        "noise",
        "file",
        "cut",
        "csv",
    ],
)
def test_mistakes_end_in_one_line(other: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=f"error: .*{message}") as stop:
        nmi(monkeypatch, "one:1.0", other)
    assert "\n" not in str(stop.value)
