"""What is named as an image and is no file, or has no end: never opened, never read without bound, named once."""

from __future__ import annotations

import contextlib
import os
import socket

import pytest

from ibvit.cli import app
from ibvit.data.cache.making import pack_tree
from ibvit.data.cache.pack import measure
from ibvit.data.files import bad_files
from ibvit.data.files.bad_files import BadFiles, NoImageError, nearest_readable
from ibvit.data.files.check import check_tree
from ibvit.data.files.imagenet100 import _link_or_copy
from ibvit.data.files.images import MAX_BYTES, BadImageError, read, stored_size
from ibvit.data.files.tree import scan, scan_tree
from ibvit.data.sets.folder import folder_loaders


def plant(folder):
    """Puts them into a folder → file name: why it gives no picture."""
    os.mkfifo(folder / "h01_pipe.JPEG")
    listening = socket.socket(socket.AF_UNIX)
    with contextlib.chdir(folder):  # a socket's path may have 107 characters
        listening.bind("h02_socket.JPEG")
    listening.close()
    (folder / "h03_folder.jpg").mkdir()
    (folder / "h04_zeros.JPEG").symlink_to("/dev/zero")
    with open(folder / "h05_huge.JPEG", "wb") as file:
        file.truncate(MAX_BYTES + 1)
    (folder / "h06_linked_pipe.png").symlink_to("h01_pipe.JPEG")
    (folder / "h07_loop.png").symlink_to("h07_loop.png")
    (folder / "h08_linked_folder.jpg").symlink_to(folder)
    return {
        "h01_pipe.JPEG": "a pipe, not a file",
        "h02_socket.JPEG": "a socket, not a file",
        "h03_folder.jpg": "a folder, not a file",
        "h04_zeros.JPEG": "a device, not a file",
        "h05_huge.JPEG": "larger than 1 GiB",
        "h06_linked_pipe.png": "a pipe, not a file",
        "h07_loop.png": "Too many levels of symbolic links",
        "h08_linked_folder.jpg": "a folder, not a file",
    }


def test_every_reader_refuses_them(make_tree):
    folder = make_tree() / "train" / "dog"
    for name, reason in plant(folder).items():
        for reader in (read, stored_size):
            with pytest.raises(BadImageError, match=reason):
                reader(folder / name)


def test_check_names_each_once(make_tree, capsys):
    root = make_tree()
    expected = plant(root / "train" / "dog")
    assert check_tree(root, workers=2) == len(expected)
    lines = [line for line in capsys.readouterr().out.splitlines() if ": broken: " in line]
    assert {line.split("/")[-1].split(": ")[0]: line.split(": broken: ")[1] for line in lines} == expected


@pytest.mark.parametrize("kind", ["dali", "torchvision"])
@pytest.mark.parametrize("cache", ["off", "ram"])
def test_epochs_pass_over_them_and_name_each_once(make_tree, caplog, kind, cache):
    if kind == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    root = make_tree()
    expected = plant(root / "train" / "dog")
    options = {"image_size": 32, "global_batch": 28, "eval_batch": 8, "workers": 0, "loader": kind, "cache": cache}
    made = folder_loaders(root, **options)
    for epoch in range(2):
        assert len(list(made.train.epoch(epoch))) == 1
    made.train.close()
    made.val.close()
    named = [record.getMessage() for record in caplog.records if "replaces it" in record.getMessage()]
    assert sorted(line.split("/")[-1].split(": ")[0] for line in named) == sorted(expected)


def test_packing_passes_over_them(make_tree, capsys):
    root = make_tree()
    expected = plant(root / "train" / "dog")
    train, _ = pack_tree(root, workers=2)
    assert (train.state == 2).sum() == len(expected)
    out = capsys.readouterr().out
    assert all(out.count(name) == 1 for name in expected)
    assert (measure(scan(root / "train")) == 0).all(axis=1).sum() == len(expected)


def test_imagenet_100_copies_files_only(tmp_path):
    (tmp_path / "zeros.JPEG").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=r"imagenet: expected a file to copy at .*zeros.JPEG, got: a device"):
        _link_or_copy(tmp_path / "zeros.JPEG", tmp_path / "copy.JPEG", "copy")
    assert not (tmp_path / "copy.JPEG").exists()


def test_a_link_to_a_folder_above_has_an_end(make_tree):
    root = make_tree() / "train"
    before = scan(root).paths
    for name in ("cat", "dog"):
        for at in range(3):
            (root / name / f"loop{at}").symlink_to("..")
    (root / "cat" / "itself").symlink_to(".")
    (root / "cat" / "far").symlink_to("/")
    assert scan(root).paths == before


def test_links_that_lead_to_each_other_have_an_end(make_tree, tmp_path):
    root = make_tree() / "train"
    for name, other in (("one", "two"), ("two", "one")):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.jpg").write_bytes(b"x")
        (tmp_path / name / "on").symlink_to(tmp_path / other)
    (root / "cat" / "one").symlink_to(tmp_path / "one")
    more = [path for path in scan(root).paths if not path.endswith(".JPEG")]
    assert more == ["cat/one/one.jpg", "cat/one/on/two.jpg"]


def test_a_folder_that_cannot_be_read_is_named(make_tree, monkeypatch):
    root = make_tree() / "train"
    (root / "cat" / "closed").mkdir()
    scandir = os.scandir

    def deny(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)
    with pytest.raises(ValueError, match=r"data: expected readable folders, got .*/closed: Permission denied"):
        scan(root)


@pytest.fixture
def all_broken(make_tree):
    root = make_tree()
    for path in (root / "train").rglob("*.JPEG"):
        path.write_bytes(b"")
    return root


@pytest.mark.parametrize("kind", ["dali", "torchvision"])
@pytest.mark.parametrize("cache", ["off", "ram"])
@pytest.mark.parametrize("workers", [0, 2])
def test_no_readable_image_is_one_line(all_broken, kind, cache, workers):
    if kind == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    made = folder_loaders(
        all_broken, image_size=32, global_batch=8, eval_batch=8, workers=workers, loader=kind, cache=cache
    )
    with pytest.raises(ValueError, match=r"data: expected readable images, all of 20 are broken") as error:
        list(made.train.epoch(0))
    assert "\n" not in str(error.value)
    assert len(list(made.val.epoch(0))) == 1
    made.train.close()
    made.val.close()


def test_packing_and_checking_without_a_readable_image(all_broken, capsys):
    with pytest.raises(ValueError, match=r"data: expected readable images in .*train, all 20 are broken"):
        pack_tree(all_broken, workers=2)
    with pytest.raises(SystemExit) as stop:
        app.cli(args=["data", "check", str(all_broken)])
    assert stop.value.code == 1
    assert "20 images of 2 classes; 20 broken" in capsys.readouterr().out


def test_the_search_for_a_neighbour_has_an_end():
    asked = []

    def load(index):
        asked.append(index)
        raise BadImageError("empty file")

    with pytest.raises(NoImageError, match=r"256 in a row of 1000000 are broken .* the first: 999999: empty file"):
        nearest_readable(load, str, 999_999, 1_000_000)
    assert len(asked) == bad_files._TRIED
    assert asked[:2] == [999_999, 0]


def test_names_that_are_no_text_are_printed(make_tree, tmp_path, capsys, caplog):
    root = make_tree()
    names = [os.fsdecode(b"caf\xe9.JPEG"), "two\nlines.JPEG"]
    for name in names:
        (root / "val" / "cat" / name).write_bytes(b"")
    assert check_tree(root, workers=1) == 2
    out = capsys.readouterr().out
    assert "caf\\xe9.JPEG: broken: empty file\n" in out
    assert "two\\nlines.JPEG: broken: empty file\n" in out
    folder = scan_tree(root)[1]
    for _ in range(2):
        bad = BadFiles(tmp_path / "bad_images.txt")
        for name in names:
            bad.name(folder.path(folder.paths.index(f"cat/{name}")), "empty file")
    assert len(caplog.records) == len((tmp_path / "bad_images.txt").read_text().splitlines()) == 2
