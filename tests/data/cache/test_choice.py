"""Where decoded pictures are kept, and that nothing of it shows."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from ibvit.data.cache.choice import DeviceArena, _free_memory, cached
from ibvit.data.cache.pack import measure
from ibvit.data.files.images import BadImageError
from ibvit.data.files.tree import scan_tree
from ibvit.data.sets.folder import folder_loaders

CPU = torch.device("cpu")


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
    monkeypatch.setattr("ibvit.data.cache.choice._free_memory", lambda: 1000)
    splits = scan_tree(make_tree())
    assert cached(*splits, "auto", CPU, "dali").cache == "off"
    with pytest.raises(ValueError, match=r"ram needs 0.0 GB, .* `ibvit data pack` decodes to disk"):
        cached(*splits, "ram", CPU, "dali")


def test_a_gpu_whose_room_somebody_else_took(make_tree, monkeypatch, caplog):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nOf the allocated memory …")

    monkeypatch.setattr("ibvit.data.cache.choice.DeviceArena", full)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 40, 1 << 40))
    splits = scan_tree(make_tree())
    assert cached(*splits, "auto", torch.device("cuda"), "dali").cache == "off"
    assert [record.getMessage() for record in caplog.records] == [
        "cache: off, pictures are decoded each time: CUDA out of memory. Tried to allocate 2.00 GiB"
    ]
    with pytest.raises(ValueError, match=r"^cache: expected 0.0 GB of room on cuda: CUDA out of memory[^\n]*$"):
        cached(*splits, "gpu", torch.device("cuda"), "dali")
