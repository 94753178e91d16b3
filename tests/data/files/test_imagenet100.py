"""ImageNet-100 from an ImageNet-1k tree, here with two images a class."""

from __future__ import annotations

import numpy as np
import pytest

from ibvit.data.files import imagenet100
from ibvit.data.files.imagenet100 import class_ids, make_tree
from ibvit.data.files.tree import scan_tree

IDS = class_ids()
OTHERS = ("n00000001", "n99999999")


@pytest.fixture
def imagenet(tmp_path, monkeypatch):
    monkeypatch.setattr(imagenet100, "TRAIN_IMAGES", 200)
    monkeypatch.setattr(imagenet100, "VAL_IMAGES", 100)
    root = tmp_path / "imagenet"
    for wnid in (*IDS, *OTHERS):
        (root / "train" / wnid).mkdir(parents=True)
        for at in range(2):
            (root / "train" / wnid / f"{wnid}_{at}.JPEG").write_bytes(b"x")
        (root / "val" / wnid).mkdir(parents=True)
    for at, wnid in enumerate((*IDS, *OTHERS), 1):
        (root / "val" / wnid / f"ILSVRC2012_val_{at:08d}.JPEG").write_bytes(b"x")
    return root


def flatten(root):
    for path in sorted((root / "val").glob("*/*.JPEG")):
        path.rename(root / "val" / path.name)
    for wnid in (*IDS, *OTHERS):
        (root / "val" / wnid).rmdir()


def tree_of(out):
    train, val = scan_tree(out)
    return train.classes, train.paths, val.paths


def test_the_list_is_the_papers():
    assert len(set(IDS)) == 100
    assert list(IDS) == sorted(IDS)


def test_a_changed_list_is_refused(tmp_path, monkeypatch):
    (tmp_path / "imagenet100.txt").write_text("\n".join(IDS[:-1]))
    monkeypatch.setattr(imagenet100, "__file__", str(tmp_path / "imagenet100.py"))
    with pytest.raises(ValueError, match=r"expected the sha256 79f3f155"):
        class_ids()


@pytest.mark.parametrize("how", ["link", "copy"])
def test_tree(imagenet, tmp_path, how, capsys):
    out = tmp_path / "out"
    for _ in range(2):  # the second time, all of it is there
        make_tree(imagenet, out, how)
    classes, train, val = tree_of(out)
    assert classes == IDS
    assert (len(train), len(val)) == (200, 100)
    assert {path.is_symlink() for path in (out / "train").glob("*/*")} == {how == "link"}
    assert "train: 100 classes, 200 images" in capsys.readouterr().out


def test_copies_take_the_place_of_links(imagenet, tmp_path):
    for how in ("link", "copy"):
        make_tree(imagenet, tmp_path / "out", how)
    assert not any(path.is_symlink() for path in (tmp_path / "out").glob("*/*/*"))
    assert (imagenet / "train" / IDS[0] / f"{IDS[0]}_0.JPEG").read_bytes() == b"x"


def test_flat_validation_with_the_development_kit(imagenet, tmp_path):
    from scipy.io import savemat

    make_tree(imagenet, tmp_path / "nested")
    flatten(imagenet)
    kit = imagenet / "ILSVRC2012_devkit_t12" / "data"
    kit.mkdir(parents=True)
    numbers = np.random.default_rng(0).permutation(102) + 1
    synsets = np.array(
        [(number, wnid) for number, wnid in zip(numbers, (*IDS, *OTHERS), strict=True)],
        dtype=[("ILSVRC2012_ID", "f8"), ("WNID", "O")],
    )
    savemat(kit / "meta.mat", {"synsets": synsets})
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{number}\n" for number in numbers))
    make_tree(imagenet, tmp_path / "flat")
    assert tree_of(tmp_path / "flat") == tree_of(tmp_path / "nested")


def test_flat_validation_with_the_solution_table(imagenet, tmp_path):
    make_tree(imagenet, tmp_path / "nested")
    flatten(imagenet)
    rows = [f"ILSVRC2012_val_{at:08d},{wnid} 1 2 3 4 \n" for at, wnid in enumerate((*IDS, *OTHERS), 1)]
    (imagenet / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(rows))
    make_tree(imagenet, tmp_path / "flat")
    assert tree_of(tmp_path / "flat") == tree_of(tmp_path / "nested")


def test_flat_validation_needs_its_ground_truth(imagenet, tmp_path):
    flatten(imagenet)
    with pytest.raises(ValueError, match=r"is flat; expected its ground truth, ILSVRC2012_validation_ground_truth.txt"):
        make_tree(imagenet, tmp_path / "out")


def test_missing_classes_are_named_and_nothing_is_written(imagenet, tmp_path):
    for wnid in IDS[:7]:
        (imagenet / "train" / wnid).rename(imagenet / "train" / f"{wnid}.tar")
    with pytest.raises(ValueError, match=f"missing: {IDS[0]}, .* and 2 more"):
        make_tree(imagenet, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_images_are_counted(imagenet, tmp_path):
    (imagenet / "train" / IDS[3] / f"{IDS[3]}_0.JPEG").unlink()
    with pytest.raises(ValueError, match=rf"expected 200 train images .* found 199; .* {IDS[3]} \(1\)"):
        make_tree(imagenet, tmp_path / "out")


@pytest.mark.parametrize("stranger", [f"val/{IDS[0]}/cat.JPEG", "train/n00000001"], ids=["image", "class"])
def test_strangers_in_the_tree_are_refused_and_nothing_is_written(imagenet, tmp_path, stranger):
    place = tmp_path / "out" / stranger
    place.mkdir(parents=True)
    (tmp_path / "out" / "train" / IDS[0]).mkdir(parents=True)
    (tmp_path / "out" / "train" / IDS[0] / ".DS_Store").write_bytes(b"x")  # no image, no harm
    with pytest.raises(ValueError, match=rf"out: expected only .* found '{place.name}' too"):
        make_tree(imagenet, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*_0.JPEG"))


def test_a_file_in_the_way_is_named(imagenet, tmp_path):
    (tmp_path / "out").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"out: expected a folder, .*/out is a file"):
        make_tree(imagenet, tmp_path / "out")


def test_a_missing_tree_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"imagenet: expected .*/nowhere does not exist"):
        make_tree(tmp_path / "nowhere", tmp_path / "out")
