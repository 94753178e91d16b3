"""A split's fingerprint changes with its files, and with nothing else."""

from __future__ import annotations

import os
import shutil

import pytest

from ibvit.data.files.fingerprint import contents, differences, fingerprint
from ibvit.data.files.tree import ImageFolder, scan


def test_a_copy_that_keeps_times_has_the_same_fingerprint(folder, tmp_path):
    before = contents(folder)
    assert len(before.fingerprint) == 64
    assert (before.classes, before.images) == (2, 20)
    shutil.copytree(folder.root, tmp_path / "elsewhere")  # copies times
    assert contents(scan(tmp_path / "elsewhere")) == before
    (tmp_path / "elsewhere").rename(tmp_path / "moved")
    assert fingerprint(scan(tmp_path / "moved")) == before.fingerprint
    (tmp_path / "links").mkdir()
    for name in folder.classes:
        (tmp_path / "links" / name).symlink_to(folder.root / name)
    assert fingerprint(scan(tmp_path / "links")) == before.fingerprint


def rewritten(root):
    path = root / "cat" / "003.JPEG"
    time = path.stat().st_mtime_ns
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(time + 1, time + 1))


def renamed(root):
    (root / "cat" / "003.JPEG").rename(root / "cat" / "0031.JPEG")


def removed(root):
    (root / "cat" / "003.JPEG").unlink()


def added(root):
    shutil.copy2(root / "cat" / "003.JPEG", root / "cat" / "004b.JPEG")


def grown(root):
    with open(root / "dog" / "001.JPEG", "ab") as file:
        file.write(b"x")


def class_renamed(root):
    (root / "cat").rename(root / "emu")


def replaced_by_a_pipe(root):
    (root / "cat" / "003.JPEG").unlink()
    os.mkfifo(root / "cat" / "003.JPEG")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (rewritten, ""),
        (renamed, "names or times of files differ"),
        (removed, "19 images instead of 20, "),
        (added, "21 images instead of 20, "),
        (grown, " bytes instead of "),
        (class_renamed, "names or times of files differ"),
        (replaced_by_a_pipe, " bytes instead of "),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_change_of_a_file_changes_it(folder, change, words):
    before = contents(folder)
    change(folder.root)
    after = contents(scan(folder.root))
    assert after.fingerprint != before.fingerprint
    assert words in differences(before, after)


def test_files_that_are_gone_count_too(folder):
    before = fingerprint(folder)
    (folder.root / folder.paths[0]).unlink()
    assert fingerprint(folder) != before


def test_names_and_classes_cannot_be_confused(tmp_path):
    made = [
        ImageFolder(tmp_path, ("a", "b"), ("a/x.jpg",), (0,)),
        ImageFolder(tmp_path, ("a",), ("b", "a/x.jpg"), (0, 0)),
        ImageFolder(tmp_path, ("b", "a"), ("a/x.jpg",), (1,)),
        ImageFolder(tmp_path, ("a", "b"), ("a/x.jp", "g"), (0, 0)),
    ]
    assert len(set(map(fingerprint, made))) == len(made)


def test_names_need_not_be_text(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    assert contents(scan(tmp_path)).size == 1


def test_times_that_no_calendar_knows(folder):
    old = contents(folder)
    assert "1e" not in (words := differences(old, old._replace(fingerprint="x", changed_ns=10**21)))
    assert words.startswith("last changed 1000000000000.000 seconds after 1970 instead of 20")
