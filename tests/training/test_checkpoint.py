"""Checkpoints survive what can happen to them."""

from __future__ import annotations

import errno
import os
import pickle
import random
import re
import socket
import subprocess

import pytest
import torch

from ibvit import files
from ibvit.training.checkpoint import CheckpointError, checkpoints, first_usable, read_checkpoint, save_checkpoint


def state(step: int):
    return {"model": {"w": torch.full((100,), float(step))}, "progress": {"step": step}}


def newest(folder, check=lambda state: None):
    return first_usable(checkpoints(folder), check)


def test_last_and_previous(tmp_path):
    assert newest(tmp_path) is None
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
    path, found = newest(tmp_path)
    assert path.name == "previous.pt"
    assert found["progress"] == {"step": 1}
    assert "damaged" in caplog.text
    (tmp_path / "previous.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"last\.pt is damaged or not a checkpoint"):
        newest(tmp_path)


def test_a_last_that_does_not_fit_falls_back_to_the_previous(tmp_path, caplog):
    def check(found) -> None:
        if found["progress"]["step"] != 1:
            raise ValueError("it is of another model")

    for step in (1, 2):
        save_checkpoint(tmp_path, state(step))
    assert newest(tmp_path, check)[0].name == "previous.pt"
    assert re.search(r"last\.pt does not fit this run: it is of another model; trying", caplog.text)
    save_checkpoint(tmp_path, state(3))
    with pytest.raises(CheckpointError, match=r"last\.pt does not fit this run: it is of another model"):
        newest(tmp_path, check)


def test_every_flipped_bit_is_noticed_or_harmless(tmp_path):
    """200 of them, anywhere in the file."""
    path, rng = save_checkpoint(tmp_path, state(1)), random.Random(0)
    whole, noticed = path.read_bytes(), 0
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            found = read_checkpoint(path)
        except CheckpointError:
            noticed += 1
        else:
            assert torch.equal(found["model"]["w"], state(1)["model"]["w"])
            assert found["progress"] == state(1)["progress"]
    assert noticed > 50


def test_what_a_killed_process_left_is_removed(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    for pid in (dead.pid, os.getppid()):
        (tmp_path / f".last.{socket.gethostname()}-{pid}.partial.pt").touch()
    files.remove_abandoned(tmp_path)
    assert sorted(path.name.partition("-")[2] for path in tmp_path.glob(".*")) == [f"{os.getppid()}.partial.pt"]


def test_a_crash_between_the_renames_loses_nothing(tmp_path):
    save_checkpoint(tmp_path, state(1))
    (tmp_path / "last.pt").rename(tmp_path / "previous.pt")
    assert newest(tmp_path)[1]["progress"] == {"step": 1}


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, state(1))

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
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
