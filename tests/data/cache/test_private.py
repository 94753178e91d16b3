"""Packs in memory: for their user alone, with room for all of it, and cleared away whoever was killed when."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import shutil
import signal

import numpy as np
import pytest
import torch

from ibvit.cli import app
from ibvit.data.cache import making, shared
from ibvit.data.cache.choice import cached
from ibvit.data.cache.making import create_pack, disk_pack, pack_tree
from ibvit.data.cache.pack import decoded_bytes, measure
from ibvit.data.cache.shared import memory_pack, occupied, remove_abandoned
from ibvit.data.files.fingerprint import contents
from ibvit.data.files.room import NoRoomError, free_bytes
from ibvit.data.files.tree import scan_tree

CPU = torch.device("cpu")
USER = os.geteuid()


def opened(folder):
    return memory_pack(folder, contents(folder), measure(folder))


def modes(place):
    return {path.stat().st_mode & 0o777 for path in place.iterdir()}


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777 if USER == 0 else 0o077], ids=oct)
def test_nobody_else_can_enter_whatever_the_umask(folder, umask):
    before = os.umask(umask)
    try:
        pack = opened(folder)
    finally:
        os.umask(before)
    assert pack.pack_dir.parent.parent == shared.HOME
    assert [path.stat().st_mode & 0o777 for path in (pack.pack_dir.parent, pack.pack_dir)] == [0o700, 0o700]
    assert modes(pack.pack_dir) == {0o600}


def foreign(place):
    place.mkdir(mode=0o700)
    os.chown(place, 12345, 12345)


def entered_by_others(place):
    place.mkdir()
    place.chmod(0o755)


def link(place):
    target = place.with_name("target")
    target.mkdir(mode=0o700)
    place.symlink_to(target)


STRANGERS = [
    pytest.param(foreign, marks=pytest.mark.skipif(USER != 0, reason="needs to give files away")),
    entered_by_others, link, lambda place: place.write_bytes(b"x"), lambda place: place.symlink_to("nowhere"),
]  # fmt: skip


@pytest.mark.parametrize("make", STRANGERS, ids=["foreign", "entered by others", "link", "file", "broken link"])
def test_a_strangers_folder_of_our_name_is_passed_over(folder, make):
    ours = opened(folder)
    planted = ours.pack_dir.relative_to(shared.HOME)
    ours.fill(workers=1)
    expected = np.array(ours.pixels(0))
    copy = shared.HOME / "planted"
    shutil.copytree(ours.pack_dir, copy)
    del ours
    gc.collect()
    shutil.rmtree(shared.HOME / f"ibvit-{USER}")
    make(shared.HOME / f"ibvit-{USER}")
    for number in (1, 2):
        (shared.HOME / f"ibvit-{USER}-{number}").write_bytes(b"x")
    if (shared.HOME / planted.parent).is_dir():
        copy.rename(shared.HOME / planted)
        (shared.HOME / planted / "pixels.bin").write_bytes(bytes(decoded_bytes(measure(folder))))
    before = sorted(path for path in shared.HOME.rglob("*") if path.name != "lock")
    remove_abandoned()
    pack = opened(folder)
    assert pack.pack_dir.parent.name == f"ibvit-{USER}-3"
    assert not pack.state.any()
    np.testing.assert_array_equal(pack.pixels(0), expected)
    assert occupied(folder, contents(folder)) > 0
    assert opened(folder).pack_dir == pack.pack_dir
    del pack
    gc.collect()
    remove_abandoned()
    assert set(before) <= set(shared.HOME.rglob("*"))


def test_our_folder_is_found_again_when_the_stranger_has_gone(folder):
    entered_by_others(shared.HOME / f"ibvit-{USER}")
    pack = opened(folder)
    (shared.HOME / f"ibvit-{USER}").rmdir()
    assert opened(folder).pack_dir == pack.pack_dir


def in_a_process(work):
    """Runs ``work`` in a child; returns how it ended."""
    child = os.fork()
    if not child:
        work()
        os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("where", ["reserve", "json", "rename"])
def test_what_a_maker_left_that_was_killed_is_removed_by_the_next(folder, monkeypatch, where):
    def make():
        if where == "reserve":
            monkeypatch.setattr(making, "reserve", die)
        elif where == "json":
            monkeypatch.setattr(making.json, "dumps", die)
        else:
            monkeypatch.setattr(making.Path, "rename", die)
        opened(folder)

    assert in_a_process(make) == signal.SIGKILL
    own = shared.HOME / f"ibvit-{USER}"
    assert len(list(own.iterdir())) == 2  # the lock and the half
    pack = opened(folder)
    remove_abandoned()
    assert list(own.iterdir()) == [pack.pack_dir]


@pytest.mark.parametrize("name", ["sizes.npy", "state.npy", "pixels.bin", "folder.json"])
def test_half_a_pack_is_no_endless_loop(folder, name):
    pack = opened(folder)
    place, kept = pack.pack_dir, pack.pack_dir.with_name("kept")
    shutil.copytree(place, kept)
    del pack
    gc.collect()
    kept.rename(place)
    (place / name).unlink()
    pack = opened(folder)
    assert (pack.pack_dir, pack.state.any()) == (place, False)
    assert pack.pixels(3).any()
    half = place.with_name("half")
    shutil.copytree(place, half)
    (half / name).unlink()
    remove_abandoned()
    assert not half.exists()
    assert place.exists()


def test_a_pack_that_was_replaced_is_not_removed_by_who_had_the_first(folder):
    first = opened(folder)
    first.pack_dir.rename(first.pack_dir.with_name("elsewhere"))
    second = opened(folder)
    del first
    gc.collect()
    assert second.pack_dir.exists()
    assert opened(folder).pack_dir == second.pack_dir


def test_two_runs_in_too_little_memory_end_in_a_line(make_tree, small_disk, monkeypatch, caplog):
    """/dev/shm of a container is small, and what was free when it was asked for may be gone."""
    train, val = scan_tree(make_tree(train=20))
    monkeypatch.setattr(shared, "HOME", small_disk)
    monkeypatch.setattr("ibvit.data.cache.choice._free_memory", lambda: 1 << 40)
    assert sum(decoded_bytes(measure(split)) for split in (train, val)) > 1 << 20
    free = free_bytes(small_disk)
    with pytest.raises(NoRoomError, match=r"small/ibvit-\d+/\w+: expected 0\.\d+ MB of room, got 0\.\d+ MB$") as error:
        cached(train, val, "ram", CPU, "torchvision")
    assert "\n" not in str(error.value)
    del error
    gc.collect()
    assert free_bytes(small_disk) > free - 5000  # but for an empty folder
    caplog.clear()
    caplog.set_level(logging.WARNING)
    sources = cached(train, val, "auto", CPU, "torchvision")
    assert (sources.cache, sources.train) == ("off", train)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert lines[0].startswith("cache: off, pictures are decoded each time: ")


def test_a_memory_that_is_closed_to_us_is_no_cache(make_tree, monkeypatch, caplog):
    monkeypatch.setattr(shared, "HOME", shared.HOME / "nowhere")
    monkeypatch.setattr("ibvit.data.cache.choice._free_memory", lambda: 1 << 40)
    assert cached(*scan_tree(make_tree()), "auto", CPU, "torchvision").cache == "off"
    assert "No such file" in caplog.text


def _fill(folder, ready, done):
    pack = opened(folder)
    pack.fill(workers=1)
    ready.wait()
    done.put((str(pack.pack_dir), int(pack.state.sum()), int(pack.pixels(7).sum())))
    ready.wait()


def test_ranks_that_start_at_once_share_one_pack(make_tree, small_disk, monkeypatch):
    """There is room for one pack, not for two."""
    folder, _ = scan_tree(make_tree(train=14))
    monkeypatch.setattr(shared, "HOME", small_disk)
    assert 1 << 19 < decoded_bytes(measure(folder)) < 1 << 20
    context = multiprocessing.get_context("fork")
    ready, done = context.Barrier(4), context.Queue()
    ranks = [context.Process(target=_fill, args=(folder, ready, done)) for _ in range(4)]
    for rank in ranks:
        rank.start()
    found = {done.get(timeout=60) for _ in ranks}
    for rank in ranks:
        rank.join()
    assert [rank.exitcode for rank in ranks] == [0] * 4
    assert len(found) == 1
    remove_abandoned()
    assert not list(small_disk.glob("*/*"))


@pytest.fixture
def full_tree(make_tree, small_disk):
    """A tree on a disk that has no room for its pack."""
    shutil.copytree(make_tree(train=20, val=1), small_disk / "tree")
    return small_disk / "tree"


def test_packing_on_a_full_disk_is_one_line(full_tree, capsys, monkeypatch):
    free = free_bytes(full_tree)
    with pytest.raises(NoRoomError, match=r"tree/train\.pack: expected 1\.\d+ MB of room, got 0\.\d+ MB"):
        pack_tree(full_tree)
    monkeypatch.setattr(making, "_SHARE_OF_DISK", 1000)  # another process takes the room meanwhile
    with pytest.raises(NoRoomError, match=r"tree/train\.pack: expected 1\.\d+ MB of room, got 0\.\d+ MB$"):
        app.cli(args=["data", "pack", str(full_tree)])
    assert sorted(path.name for path in full_tree.iterdir()) == ["train", "val"]
    assert free_bytes(full_tree) == free


def test_a_sparse_copy_of_a_pack_on_a_full_disk_is_read_only(full_tree, tmp_path):
    train, _ = scan_tree(full_tree)
    pack = create_pack(tmp_path / "pack", train, contents(train), measure(train))
    pack.pixels(3)
    copy = disk_pack(train)
    copy.mkdir()
    for path in pack.pack_dir.iterdir():
        if path.name != "pixels.bin":
            shutil.copy(path, copy)
    with open(copy / "pixels.bin", "wb") as file:
        file.truncate((pack.pack_dir / "pixels.bin").stat().st_size)
    np.save(copy / "state.npy", np.zeros(len(train), dtype=np.uint8))
    sparse = making.open_disk_pack(train, contents(train))
    assert all(sparse.pixels(index).any() for index in range(len(train)))
    assert not sparse.state.any()
