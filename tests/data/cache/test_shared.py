"""Packs in memory: shared, and gone when nobody has them open."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path

import torch

from ibvit.data.cache.choice import cached
from ibvit.data.cache.pack import decoded_bytes, measure
from ibvit.data.cache.shared import memory_pack, occupied, remove_abandoned
from ibvit.data.files.fingerprint import contents
from ibvit.data.files.tree import scan_tree

CPU = torch.device("cpu")


def test_memory_is_shared_and_given_back(folder):
    sizes = measure(folder)
    first = memory_pack(folder, contents(folder), sizes)
    place = first.pack_dir
    first.pixels(5)
    second = memory_pack(folder, contents(folder), sizes)
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
        pack = memory_pack(folder, contents(folder), measure(folder))
        pack.pixels(5)
        os.write(write_end, str(pack.pack_dir).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    return Path(os.read(read_end, 1000).decode())


def test_what_a_killed_run_left_is_used_again(folder):
    place = killed_with_a_pack(folder)
    assert occupied(folder, contents(folder)) > 0
    pack = memory_pack(folder, contents(folder), measure(folder))
    assert pack.pack_dir == place
    assert pack.state[5] == 1
    del pack
    gc.collect()
    assert not place.exists()
    assert occupied(folder, contents(folder)) == 0


def test_what_a_killed_run_left_counts_as_room(make_tree, monkeypatch):
    train, val = scan_tree(make_tree())
    needed = sum(decoded_bytes(measure(split)) for split in (train, val))
    pack = memory_pack(train, contents(train), measure(train))
    pack.fill(workers=1)
    monkeypatch.setattr(
        "ibvit.data.cache.choice._free_memory", lambda: int(needed / 0.7 - 0.9 * pack.sizes.prod(1).sum() * 3)
    )
    assert cached(train, val, "auto", CPU, "dali").cache == "ram"


def test_what_a_killed_run_left_is_removed_by_a_run_on_other_files(folder):
    place = killed_with_a_pack(folder)
    remove_abandoned(exceptions=[(folder, contents(folder))])
    assert place.exists()
    used = memory_pack(folder, contents(folder), measure(folder))
    remove_abandoned()
    assert place.exists()
    del used
    gc.collect()
    place = killed_with_a_pack(folder)
    remove_abandoned()
    assert not place.exists()
