"""Packs: the same pictures, decoded once."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from ibvit.data.cache.choice import cached
from ibvit.data.cache.making import create_pack, disk_pack, pack_tree
from ibvit.data.cache.pack import Pack, PackError, decoded_bytes, measure
from ibvit.data.files.fingerprint import contents
from ibvit.data.files.images import BadImageError
from ibvit.data.files.tree import scan, scan_tree

CPU = torch.device("cpu")


def test_sizes_come_from_headers(folder):
    sizes = measure(folder)
    assert all(folder.pixels(index).shape[:2] == tuple(size) for index, size in enumerate(sizes))
    assert decoded_bytes(sizes) == sum(folder.pixels(index).nbytes for index in range(len(folder)))


def test_a_pack_gives_the_files_pixels_and_never_decodes_twice(folder, tmp_path):
    pack = create_pack(tmp_path / "a.pack", folder, contents(folder), measure(folder))
    expected = [folder.pixels(index) for index in range(len(folder))]
    assert not pack.state.any()
    for _ in range(2):
        for index, picture in enumerate(expected):
            np.testing.assert_array_equal(pack.pixels(index), picture)
    for path in folder.root.rglob("*.JPEG"):
        path.unlink()
    for reader in (Pack(tmp_path / "a.pack", folder, pack.made_from), pickle.loads(pickle.dumps(pack))):
        for index, picture in enumerate(expected):
            np.testing.assert_array_equal(reader.pixels(index), picture)


def test_broken_files_stay_broken(make_tree, plant, tmp_path):
    root = make_tree() / "train"
    plant(root / "cat")
    folder = scan(root)
    pack = create_pack(tmp_path / "a.pack", folder, contents(folder), measure(folder))
    broken = {Path(path).name[:3] for path, _ in pack.fill(workers=2)}
    assert broken == {"b01", "b02", "b07", "b09", "b12"}
    assert sorted(np.unique(pack.state)) == [1, 2]
    with pytest.raises(BadImageError, match="broken when it was decoded"):
        pack.pixels(folder.paths.index("cat/b07_text.JPEG"))


def test_a_file_that_changed_its_size_is_broken(folder, tmp_path):
    pack = create_pack(tmp_path / "a.pack", folder, contents(folder), measure(folder))
    (folder.root / folder.paths[0]).write_bytes((folder.root / folder.paths[1]).read_bytes())
    with pytest.raises(BadImageError, match="changed since"):
        pack.pixels(0)


def test_a_pack_of_other_files_is_refused(folder, tmp_path):
    create_pack(tmp_path / "a.pack", folder, contents(folder), measure(folder))
    (folder.root / "cat" / "000.JPEG").unlink()
    with pytest.raises(PackError, match=r"has changed since it was packed: 19 images instead of 20, "):
        Pack(tmp_path / "a.pack", scan(folder.root))


def test_packing_goes_on_where_it_stopped(make_tree, capsys):
    root = make_tree()
    train, _ = scan_tree(root)
    begun = create_pack(disk_pack(train), train, contents(train), measure(train))
    begun.pixels(3)
    packs = pack_tree(root, workers=2)
    assert all((pack.state == 1).all() for pack in packs)
    assert "val.pack: 8 images" in capsys.readouterr().out
    sources = cached(*scan_tree(root), "auto", CPU, "torchvision")
    assert (sources.train.stored, sources.cache) == ("memory", "pack")
