"""Checkpoints survive what can happen to them."""

from __future__ import annotations

import errno
import pickle

import pytest
import torch

from ibvit.training import checkpoint
from ibvit.training.checkpoint import CheckpointError, latest_checkpoint, read_checkpoint, save_checkpoint


def state(step: int):
    return {"model": {"w": torch.full((100,), float(step))}, "progress": {"step": step}}


def test_last_and_previous(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    for step in range(3):
        save_checkpoint(tmp_path, state(step))
    assert read_checkpoint(tmp_path / "last.pt")["progress"] == {"step": 2}
    assert read_checkpoint(tmp_path / "previous.pt")["progress"] == {"step": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt", "previous.pt"]


def test_a_truncated_last_falls_back_to_the_previous(tmp_path, caplog):
    save_checkpoint(tmp_path, state(1))
    save_checkpoint(tmp_path, state(2))
    last = tmp_path / "last.pt"
    last.write_bytes(last.read_bytes()[:300])
    path, found = latest_checkpoint(tmp_path)
    assert path.name == "previous.pt"
    assert found["progress"] == {"step": 1}
    assert "truncated" in caplog.text
    (tmp_path / "previous.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"last\.pt is truncated or not a checkpoint"):
        latest_checkpoint(tmp_path)


def test_a_crash_between_the_renames_loses_nothing(tmp_path):
    save_checkpoint(tmp_path, state(1))
    (tmp_path / "last.pt").rename(tmp_path / "previous.pt")
    assert latest_checkpoint(tmp_path)[1]["progress"] == {"step": 1}


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, state(1))

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*last good checkpoint: .*last\.pt"):
        save_checkpoint(tmp_path, state(2))
    assert read_checkpoint(tmp_path / "last.pt")["progress"] == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code ran')",))


def test_foreign_and_hostile_files(tmp_path):
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil()))
    torch.save({"model": {}, "progress": {}, "extra": Evil()}, tmp_path / "dressed.pt")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.pt")
    for name in ("evil.pt", "dressed.pt"):
        with pytest.raises(CheckpointError, match="not a checkpoint"):
            read_checkpoint(tmp_path / name)
    with pytest.raises(CheckpointError, match="not a training checkpoint of ibvit"):
        read_checkpoint(tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="no file"):
        read_checkpoint(tmp_path / "absent.pt")
