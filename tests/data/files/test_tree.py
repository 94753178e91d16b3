"""Trees of class folders."""

from __future__ import annotations

import pytest
from torchvision.datasets import ImageFolder

from ibvit.data.files.tree import scan, scan_tree


def test_images_and_labels_are_torchvisions(make_tree):
    root = make_tree() / "train"
    inner = root / "cat" / "more" / "kittens"
    inner.mkdir(parents=True)
    for name in ("b.PNG", "a.webp", "notes.txt"):
        (inner / name).write_bytes(b"x")
    theirs = ImageFolder(str(root))
    ours = scan(root)
    assert list(ours.classes) == theirs.classes
    assert [ours.path(index) for index in range(len(ours))] == [path for path, _ in theirs.imgs]
    assert list(ours.labels) == theirs.targets


def test_broken_links_keep_their_place(make_tree):
    root = make_tree() / "train"
    (root / "cat" / "004b.JPEG").symlink_to("nowhere")
    assert "cat/004b.JPEG" in scan(root).paths


def test_missing_folders(tmp_path):
    with pytest.raises(ValueError, match=r"in .*/nowhere; train and val missing: no folder"):
        scan_tree(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"train and val missing: .* holds nothing"):
        scan_tree(tmp_path)
    for name in ("cat", "train"):
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=r"expected folders train and val in .*; val missing: .* holds cat, train"):
        scan_tree(tmp_path)


def test_no_class_folders(tmp_path):
    (tmp_path / "picture.jpg").write_bytes(b"x")
    with pytest.raises(ValueError, match="expected class folders in"):
        scan(tmp_path)


def test_empty_classes_are_named(make_tree):
    root = make_tree() / "train"
    for name in ("a", "b", "c", "d"):
        (root / name).mkdir()
    with pytest.raises(ValueError, match=r"found none in .*/a, .*/b, .*/c and 1 more"):
        scan(root)


def test_train_and_val_must_have_the_same_classes(make_tree):
    root = make_tree()
    (root / "val" / "dog").rename(root / "val" / "wolf")
    with pytest.raises(ValueError, match=r"only in train: \['dog'\], only in val: \['wolf'\]"):
        scan_tree(root)
