"""Decoded once: the same pictures, in memory or on disk, that go when they should."""

from __future__ import annotations

import gc
import logging
import os
import pickle
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from ibvit.data.cache import DeviceArena, _free_memory, cached
from ibvit.data.folder import folder_loaders
from ibvit.data.images import BadImageError
from ibvit.data.pack import Pack, create_pack, decoded_bytes, disk_pack, measure, pack_tree
from ibvit.data.shared import memory_pack, occupied, remove_abandoned
from ibvit.data.tree import scan, scan_tree

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_memory(tmp_path, monkeypatch):
    """Tests that run beside these do not see their packs, nor clear them away."""
    home = tmp_path / "memory"
    home.mkdir()
    monkeypatch.setattr("ibvit.data.shared.HOME", home)


@pytest.fixture
def folder(make_tree):
    return scan(make_tree() / "train")


def test_sizes_come_from_headers(folder):
    sizes = measure(folder)
    assert all(folder.pixels(index).shape[:2] == tuple(size) for index, size in enumerate(sizes))
    assert decoded_bytes(sizes) == sum(folder.pixels(index).nbytes for index in range(len(folder)))


def test_a_pack_gives_the_files_pixels_and_never_decodes_twice(folder, tmp_path):
    pack = create_pack(tmp_path / "a.pack", folder, measure(folder))
    expected = [folder.pixels(index) for index in range(len(folder))]
    assert not pack.state.any()
    for _ in range(2):
        for index, picture in enumerate(expected):
            np.testing.assert_array_equal(pack.pixels(index), picture)
    for path in folder.root.rglob("*.JPEG"):
        path.unlink()
    for reader in (Pack(tmp_path / "a.pack", folder), pickle.loads(pickle.dumps(pack))):
        for index, picture in enumerate(expected):
            np.testing.assert_array_equal(reader.pixels(index), picture)


def test_broken_files_stay_broken(make_tree, plant, tmp_path):
    root = make_tree() / "train"
    plant(root / "cat")
    folder = scan(root)
    pack = create_pack(tmp_path / "a.pack", folder, measure(folder))
    broken = {Path(path).name[:3] for path, _ in pack.fill(workers=2)}
    assert broken == {"b01", "b02", "b07", "b09", "b12"}
    assert sorted(np.unique(pack.state)) == [1, 2]
    with pytest.raises(BadImageError, match="broken when it was decoded"):
        pack.pixels(folder.paths.index("cat/b07_text.JPEG"))


def test_a_file_that_changed_its_size_is_broken(folder, tmp_path):
    pack = create_pack(tmp_path / "a.pack", folder, measure(folder))
    (folder.root / folder.paths[0]).write_bytes((folder.root / folder.paths[1]).read_bytes())
    with pytest.raises(BadImageError, match="changed since"):
        pack.pixels(0)


def test_a_pack_of_other_files_is_refused(folder, tmp_path):
    create_pack(tmp_path / "a.pack", folder, measure(folder))
    (folder.root / "cat" / "000.JPEG").unlink()
    with pytest.raises(ValueError, match=r"made from the 19 images .* made from others"):
        Pack(tmp_path / "a.pack", scan(folder.root))


def test_packing_goes_on_where_it_stopped(make_tree, capsys):
    root = make_tree()
    train, _ = scan_tree(root)
    begun = create_pack(disk_pack(train), train, measure(train))
    begun.pixels(3)
    packs = pack_tree(root, workers=2)
    assert all((pack.state == 1).all() for pack in packs)
    assert "val.pack: 8 images" in capsys.readouterr().out
    sources = cached(*scan_tree(root), "auto", CPU, "torchvision")
    assert (sources.train.stored, sources.cache) == ("memory", "pack")


def test_memory_is_shared_and_given_back(folder):
    sizes = measure(folder)
    first = memory_pack(folder, sizes)
    place = first.place
    first.pixels(5)
    second = memory_pack(folder, sizes)
    assert second.state[5] == 1
    child = os.fork()
    if not child:
        del first, second  # a worker's exit is not the owner's
        gc.collect()
        os._exit(0)
    os.waitpid(child, 0)
    del first
    gc.collect()
    assert place.exists()
    del second
    gc.collect()
    assert not place.exists()


def killed_with_a_pack(folder):
    """A process that fills one picture of a pack and is killed; returns the pack's place."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        pack = memory_pack(folder, measure(folder))
        pack.pixels(5)
        os.write(write_end, str(pack.place).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    return Path(os.read(read_end, 1000).decode())


def test_what_a_killed_run_left_is_used_again(folder):
    place = killed_with_a_pack(folder)
    assert occupied(folder) > 0
    pack = memory_pack(folder, measure(folder))
    assert pack.place == place
    assert pack.state[5] == 1
    del pack
    gc.collect()
    assert not place.exists()
    assert occupied(folder) == 0


def test_what_a_killed_run_left_counts_as_room(make_tree, monkeypatch):
    train, val = scan_tree(make_tree())
    needed = sum(decoded_bytes(measure(split)) for split in (train, val))
    pack = memory_pack(train, measure(train))
    pack.fill(workers=1)
    monkeypatch.setattr("ibvit.data.cache._free_memory", lambda: int(needed / 0.7 - 0.9 * pack.sizes.prod(1).sum() * 3))
    assert cached(train, val, "auto", CPU, "dali").cache == "ram"


def test_what_a_killed_run_left_is_removed_by_a_run_on_other_files(folder):
    place = killed_with_a_pack(folder)
    remove_abandoned(kept=[folder])
    assert place.exists()
    used = memory_pack(folder, measure(folder))
    remove_abandoned(kept=[])
    assert place.exists()
    del used
    gc.collect()
    place = killed_with_a_pack(folder)
    remove_abandoned(kept=[])
    assert not place.exists()


def test_an_arena_gives_the_files_pixels_and_never_decodes_twice(folder):
    arena = DeviceArena(folder, measure(folder), CPU)
    expected = [folder.pixels(index) for index in range(len(folder) - 1)]
    for _ in range(2):
        for index, picture in enumerate(expected):
            np.testing.assert_array_equal(arena.pixels(index), picture)
        for path in folder.root.rglob("*.JPEG"):
            path.write_bytes(b"")
    with pytest.raises(BadImageError, match="empty file"):
        arena.pixels(len(expected))


@pytest.mark.parametrize("loader", ["dali", "torchvision"])
@pytest.mark.parametrize("workers", [0, 2])
def test_cached_epochs_show_what_files_show(make_tree, loader, workers):
    if loader == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    root = make_tree()
    options = {"image_size": 32, "global_batch": 8, "eval_batch": 8, "workers": workers, "loader": loader}
    made = {cache: folder_loaders(root, cache=cache, **options) for cache in ("off", "ram")}
    for epoch in range(2):
        for ours, theirs in zip(made["ram"].train.epoch(epoch), made["off"].train.epoch(epoch), strict=True):
            assert torch.equal(ours.images, theirs.images)
            assert torch.equal(ours.index, theirs.index)
    for loaders in made.values():
        loaders.train.close()
        loaders.val.close()


def test_the_size_is_said_before_memory_is_taken(make_tree, caplog):
    caplog.set_level(logging.INFO)
    sources = cached(*scan_tree(make_tree()), "auto", CPU, "dali")
    assert sources.cache == "ram"
    assert "28 images are 0.00 GB decoded (free: 0.0 GB on the GPU" in caplog.text


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("disk", "cache: expected one of auto, gpu, ram, off, got 'disk'"),
        ("gpu", "gpu needs --loader dali on a CUDA device"),
    ],
)
def test_impossible_modes_are_refused(make_tree, mode, message):
    with pytest.raises(ValueError, match=message):
        cached(*scan_tree(make_tree()), mode, CPU, "dali")


def test_a_containers_limit_counts(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:  8000 kB\nHugePages_Total:  0\n")
    assert _free_memory(tmp_path) == 8000 << 10
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (group / "memory.current").write_text("500000\n")
    (group / "memory.stat").write_text("anon 1\ninactive_file 200000\n")
    (group / "memory.max").write_text("max\n")
    assert _free_memory(tmp_path) == 8000 << 10
    (group / "memory.max").write_text("900000\n")
    assert _free_memory(tmp_path) == 900_000 - 500_000 + 200_000
    assert _free_memory(tmp_path / "elsewhere") == 0


def test_too_little_memory(make_tree, monkeypatch):
    monkeypatch.setattr("ibvit.data.cache._free_memory", lambda: 1000)
    splits = scan_tree(make_tree())
    assert cached(*splits, "auto", CPU, "dali").cache == "off"
    with pytest.raises(ValueError, match=r"ram needs 0.0 GB, .* `ibvit data pack` decodes to disk"):
        cached(*splits, "ram", CPU, "dali")
