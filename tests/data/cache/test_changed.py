"""A pack knows the files that it was made from, and is used for no others."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ibvit.data.cache import making
from ibvit.data.cache.choice import cached
from ibvit.data.cache.making import create_pack, disk_pack, pack_tree
from ibvit.data.cache.pack import FILES, Pack, PackError, measure
from ibvit.data.cache.shared import memory_pack
from ibvit.data.files.fingerprint import contents
from ibvit.data.files.tree import scan_tree
from ibvit.data.sets.folder import folder_loaders

CPU = torch.device("cpu")


def blacken(root):
    """Every image of a split, in place: the same name and shape, other pixels."""
    for path in root.rglob("*.JPEG"):
        with Image.open(path) as image:
            size, time = image.size, path.stat().st_mtime_ns
        Image.new("RGB", size).save(path, "JPEG")
        os.utime(path, ns=(time + 1, time + 1))


def brightness(root, kind, cache="auto"):
    """Mean of a training epoch, in units where black is the lowest value."""
    options = {"image_size": 32, "global_batch": 8, "eval_batch": 8, "num_ops": 0}
    made = folder_loaders(root, workers=0, loader=kind, cache=cache, **options)
    shown = torch.cat([batch.images for batch in made.train.epoch(0)])
    made.train.close()
    made.val.close()
    return made.cache, float((shown - shown.new_tensor([-2.1179, -2.0357, -1.8044]).view(3, 1, 1)).mean())


@pytest.mark.parametrize("kind", ["dali", "torchvision"])
def test_pictures_of_changed_images_are_not_used(make_tree, caplog, kind):
    if kind == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    root = make_tree()
    pack_tree(root, workers=2)
    assert brightness(root, kind)[0] == "pack"
    assert not caplog.records
    blacken(root / "train")
    cache, mean = brightness(root, kind)
    assert (cache, mean) == ("ram", pytest.approx(0, abs=1e-3))
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert f"`ibvit data pack {root}` makes them again" in lines[0]
    assert "train has changed since it was packed:" in lines[0]
    assert "last changed" in lines[0]


def test_pictures_in_memory_of_changed_images_are_not_used(make_tree):
    root = make_tree()
    before, _ = scan_tree(root)
    held = memory_pack(before, contents(before), measure(before))  # by another run
    held.fill(workers=1)
    blacken(root / "train")
    after = scan_tree(root)
    sources = cached(*after, "ram", CPU, "torchvision")
    assert sources.train.pixels(3).max() == 0
    assert held.pixels(3).max() > 0


def test_packing_makes_changed_packs_again_and_keeps_others(make_tree, capsys):
    root = make_tree()
    packs = pack_tree(root, workers=2)
    numbers = [os.stat(pack.pack_dir).st_ino for pack in packs]
    assert [os.stat(pack.pack_dir).st_ino for pack in pack_tree(root, workers=2)] == numbers
    capsys.readouterr()
    blacken(root / "train")
    train, val = pack_tree(root, workers=2)
    assert "train has changed since it was packed" in (out := capsys.readouterr().out)
    assert out.count("it is made again") == 1
    assert train.pixels(3).max() == 0
    assert os.stat(val.pack_dir).st_ino == numbers[1]
    assert cached(*scan_tree(root), "auto", CPU, "torchvision").cache == "pack"


@pytest.mark.parametrize("how", ["written anew", "readable again"])
def test_mended_files_are_packed_again(make_tree, capsys, monkeypatch, how):
    root = make_tree()
    path = root / "train" / "cat" / "003.JPEG"
    content = path.read_bytes()
    with monkeypatch.context() as closed:
        if how == "written anew":
            path.write_bytes(b"x")
        else:

            def deny(name, mode):
                if str(name) == str(path):
                    raise PermissionError(13, "Permission denied")
                return open(name, mode)

            closed.setattr("ibvit.data.files.images.open", deny, raising=False)
        pack, _ = pack_tree(root, workers=1)
        assert list(np.flatnonzero(pack.state == 2)) == [3]
        assert "train.pack: 1 broken, neighbours replace them; if you mend them, pack again" in capsys.readouterr().out
        pack_tree(root, workers=1)
        assert "made again" not in capsys.readouterr().out
    if how == "written anew":
        path.write_bytes(content)
    pack, _ = pack_tree(root, workers=1)
    assert (pack.state == 1).all()
    assert capsys.readouterr().out.count("made again") == 1


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_moving_and_copying_with_times_kept_change_nothing(make_tree, tmp_path, how):
    root = make_tree()
    pack_tree(root, workers=2)
    (shutil.move if how == "moved" else shutil.copytree)(root, tmp_path / "elsewhere")
    shutil.rmtree(root, ignore_errors=True)
    assert cached(*scan_tree(tmp_path / "elsewhere"), "auto", CPU, "torchvision").cache == "pack"


def test_one_pack_without_the_other_is_not_used(make_tree, caplog):
    root = make_tree()
    _, val = pack_tree(root, workers=2)
    shutil.rmtree(val.pack_dir)
    assert cached(*scan_tree(root), "auto", CPU, "torchvision").cache == "ram"
    assert "packs on disk are not used" in caplog.text


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def emptied(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [Path.unlink, cut, emptied], ids=["absent", "cut", "empty"])
def test_a_damaged_pack_is_one_line_and_is_made_again(make_tree, caplog, capsys, name, damage):
    root = make_tree(train=2, val=1)
    train, _ = pack_tree(root, workers=2)
    expected = np.array(train.pixels(1))
    damage(train.pack_dir / name)
    folder = train.folder
    with pytest.raises(PackError, match=r"train\.pack: expected a pack of .*train, it is damaged"):
        Pack(train.pack_dir, folder)
    assert cached(*scan_tree(root), "auto", CPU, "torchvision").cache == "ram"
    assert len(caplog.records) == 1
    again, _ = pack_tree(root, workers=2)
    assert "it is made again" in capsys.readouterr().out
    np.testing.assert_array_equal(again.pixels(1), expected)


def test_a_pack_of_an_earlier_version_is_made_again(make_tree):
    root = make_tree(train=2, val=1)
    train, _ = pack_tree(root, workers=1)
    (train.pack_dir / "folder.json").write_text(json.dumps({"root": "x", "paths_sha256": "y", "classes": []}))
    assert cached(*scan_tree(root), "auto", CPU, "torchvision").cache == "ram"
    pack_tree(root, workers=1)
    assert cached(*scan_tree(root), "auto", CPU, "torchvision").cache == "pack"


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_is_no_pack_is_never_removed(make_tree, tmp_path, kind):
    root = make_tree(train=1, val=1)
    own = tmp_path / "own"
    own.mkdir()
    (own / "thesis.tex").write_text("x")
    if kind == "folder":
        own.rename(root / "train.pack")
    elif kind == "file":
        (root / "train.pack").write_text("x")
    else:
        (root / "train.pack").symlink_to(own)
    with pytest.raises(ValueError, match=r"pack: expected a pack or nothing at .*train\.pack, got something else"):
        pack_tree(root)
    assert any(path.name == "thesis.tex" for path in tmp_path.rglob("*")) or kind == "file"
    assert os.path.lexists(root / "train.pack")


@pytest.mark.parametrize(
    "give_away",
    [
        pytest.param(
            lambda place: os.chown(place, 12345, 12345),
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="needs to give files away"),
        ),
        lambda place: place.chmod(0o777),
    ],
    ids=["another's", "everybody's"],
)
def test_a_strangers_pack_is_not_used(make_tree, caplog, give_away):
    root = make_tree(train=2, val=1)
    packs = pack_tree(root, workers=1)
    give_away(packs[0].pack_dir)
    assert cached(*scan_tree(root), "auto", CPU, "torchvision").cache == "ram"
    assert "expected a pack that only this user or the owner of" in caplog.text


def test_two_cannot_pack_at_once_and_what_a_killed_one_left_is_removed(make_tree, monkeypatch):
    root = make_tree(train=2, val=1)
    (root / ".train.pack-abc").mkdir()
    (root / ".train.pack-abc" / "pixels.bin").write_bytes(b"x")
    (root / ".train.pack-own").mkdir()
    (root / ".train.pack-own" / "thesis.tex").write_bytes(b"x")
    (root / ".pack.lock").touch()  # its holder was killed
    packed = making._packed

    def meanwhile(folder, workers):
        with pytest.raises(ValueError, match=r"pack: expected .*tree for this process alone, another one is packing"):
            pack_tree(root)
        return packed(folder, workers)

    monkeypatch.setattr(making, "_packed", meanwhile)
    pack_tree(root, workers=1)
    names = {path.name for path in root.iterdir()}
    assert names == {"train", "val", "train.pack", "val.pack", ".train.pack-own"}


@pytest.mark.parametrize("umask", [0o000, 0o077])
@pytest.mark.parametrize(
    ("closed", "mode"),
    [("nothing", 0o755), ("root", 0o700), ("class", 0o700), ("file", 0o700), ("links", 0o700), ("group only", 0o750)],
)
def test_a_pack_on_disk_is_as_private_as_the_images(make_tree, tmp_path, umask, closed, mode):
    root = make_tree(train=1, val=1)
    for path in (root, *root.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    train = root / "train"
    if closed == "links":
        private = Path(tempfile.mkdtemp(dir=tmp_path))  # mode 0700
        (train / "cat").rename(private / "cat")
        (train / "cat").mkdir(mode=0o755)
        (train / "cat" / "000.JPEG").symlink_to(private / "cat" / "000.JPEG")
    elif closed != "nothing":
        place = {"class": train / "cat", "file": train / "cat" / "000.JPEG"}.get(closed, train)
        place.chmod(place.stat().st_mode & (0o750 if closed == "group only" else 0o700))
    before = os.umask(umask)
    try:
        pack, _ = pack_tree(root, workers=1)
    finally:
        os.umask(before)
    assert pack.pack_dir.stat().st_mode & 0o777 == mode
    assert {path.stat().st_mode & 0o777 for path in pack.pack_dir.iterdir()} == {mode & 0o666 & ~0o022}


def test_a_pack_that_cannot_be_made_leaves_nothing(folder, tmp_path, monkeypatch):
    def stop(path, size):
        raise KeyboardInterrupt

    monkeypatch.setattr(making, "reserve", stop)
    with pytest.raises(KeyboardInterrupt):
        create_pack(tmp_path / "a.pack", folder, contents(folder), measure(folder))
    assert not list(tmp_path.glob("*pack*"))
    assert disk_pack(folder).parent.is_dir()
