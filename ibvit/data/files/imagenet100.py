"""ImageNet-100 (Tian et al. 2020): 100 classes of an ImageNet-1k tree, as an image folder of links or copies."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from ibvit.data.files.images import BadImageError, open_regular
from ibvit.progress import for_all

TRAIN_IMAGES, VAL_IMAGES = 126_689, 5_000
_SHA256 = "79f3f155"  # lists of the same name and other classes circulate
_GROUND_TRUTH = ("ILSVRC2012_validation_ground_truth.txt", "LOC_val_solution.csv")


def class_ids() -> tuple[str, ...]:
    """The 100 WordNet ids, sorted: a label is an index into them.

    Raises:
        ValueError: the list that came with the package was changed.

    Example:
        >>> len(class_ids()), class_ids()[0]
        (100, 'n01558993')
    """
    content = Path(__file__).with_name("imagenet100.txt").read_bytes()
    checksum = hashlib.sha256(content).hexdigest()
    if not checksum.startswith(_SHA256):
        raise ValueError(f"imagenet100.txt: expected the sha256 {_SHA256}…, got {checksum[:8]}…")
    return tuple(sorted(content.decode().split()))


def make_tree(imagenet: Path, out: Path, how: Literal["link", "copy"] = "link") -> None:
    """Make ``out/train/<id>/*`` and ``out/val/<id>/*`` from an ImageNet-1k tree; what is already there is kept.

    Args:
        imagenet: folder with ``train/<id>/*``, and ``val/<id>/*`` or a flat ``val/*.JPEG`` with the official ground
            truth beside it: the development kit (``ILSVRC2012_validation_ground_truth.txt`` and ``meta.mat``) or
            ``LOC_val_solution.csv``.
        how: links to ``imagenet``, or copies.

    Raises:
        ValueError: classes or images are missing (the message says which), or ``out`` holds something else. Nothing is
            written then.
    """
    ids = class_ids()
    if not imagenet.is_dir():
        raise ValueError(f"imagenet: expected a folder with ImageNet's train and val, {imagenet} does not exist")
    train = _class_folders(imagenet / "train", ids)
    val = _class_folders(imagenet / "val", ids) if (imagenet / "val" / ids[0]).is_dir() else _flat_val(imagenet, ids)
    for name, files, expected in (("train", train, TRAIN_IMAGES), ("val", val, VAL_IMAGES)):
        count = sum(map(len, files.values()))
        if count != expected:
            fewest = sorted(ids, key=lambda wnid: len(files[wnid]))[:5]
            raise ValueError(
                f"imagenet: expected {expected} {name} images of the 100 classes in {imagenet}, found {count}; the "
                f"smallest classes are {', '.join(f'{wnid} ({len(files[wnid])})' for wnid in fewest)}"
            )
    for name, files in (("train", train), ("val", val)):
        _check_folder(out / name, set(ids))
        for wnid in ids:
            _check_folder(out / name / wnid, {file.name for file in files[wnid]})
    for name, files in (("train", train), ("val", val)):
        print(f"{out / name}: {len(ids)} classes, {_make_split(out / name, files, how)} images")


def _class_folders(split: Path, ids: tuple[str, ...]) -> dict[str, list[Path]]:
    missing = [wnid for wnid in ids if not (split / wnid).is_dir()]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise ValueError(f"imagenet: expected 100 class folders in {split}; missing: {', '.join(missing[:5])}{more}")
    return {wnid: sorted(path for path in (split / wnid).iterdir() if _is_image(path)) for wnid in ids}


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in (".jpeg", ".jpg")


def _flat_val(imagenet: Path, ids: tuple[str, ...]) -> dict[str, list[Path]]:
    images = sorted(path for path in (imagenet / "val").glob("*") if _is_image(path))
    if not images:
        raise ValueError(f"imagenet: expected class folders or images in {imagenet / 'val'}, found neither")
    candidates = [imagenet.glob(f"{above}{name}") for name in _GROUND_TRUTH for above in ("", "*/", "*/data/")]
    truth = next((path for paths in candidates for path in paths), None)
    if truth is None:
        names = " (with meta.mat) or ".join(_GROUND_TRUTH)
        raise ValueError(f"imagenet: {imagenet / 'val'} is flat; expected its ground truth, {names}, in {imagenet}")
    wnids = _solution(truth) if truth.suffix == ".csv" else _development_kit(truth)
    by_class: dict[str, list[Path]] = {wnid: [] for wnid in ids}
    for image in images:
        if image.stem not in wnids:
            raise ValueError(f"imagenet: expected the class of {image.name} in {truth}, it is not there")
        if wnids[image.stem] in by_class:
            by_class[wnids[image.stem]].append(image)
    return by_class


def _solution(path: Path) -> Mapping[str, str]:
    """Image name → WordNet id, from lines ``name,wnid x y x y …``."""
    rows = (line.split(",", 1) for line in path.read_text().splitlines()[1:] if line)
    return {name: boxes.split()[0] for name, boxes in rows}


def _development_kit(path: Path) -> Mapping[str, str]:
    """Image name → WordNet id, from one class number per line and ``meta.mat``, which says what the numbers mean."""
    from scipy.io import loadmat

    meta = path.with_name("meta.mat")
    if not meta.exists():
        raise ValueError(f"imagenet: expected meta.mat beside {path}")
    synsets = loadmat(meta, squeeze_me=True)["synsets"]
    wnid = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
    numbers = path.read_text().split()
    return {f"ILSVRC2012_val_{at:08d}": wnid[int(number)] for at, number in enumerate(numbers, 1)}


def _check_folder(folder: Path, names: set[str]) -> None:
    """A folder to be made holds nothing else than what belongs there."""
    for existing in (folder, *folder.parents):
        if existing.exists() and not existing.is_dir():
            raise ValueError(f"out: expected a folder, {existing} is a file")
    others = set(os.listdir(folder)) - names if folder.is_dir() else set()
    visible = sorted(name for name in others if not name.startswith("."))
    if visible:
        raise ValueError(f"out: expected only what belongs to ImageNet-100 in {folder}, found {visible[0]!r} too")


def _make_split(split: Path, files: Mapping[str, Sequence[Path]], how: Literal["link", "copy"]) -> int:
    """Link or copy the files of each class into a folder of its own; returns how many there are."""
    wnids = list(files)

    def make(at: int) -> int:
        folder = split / wnids[at]
        folder.mkdir(parents=True, exist_ok=True)
        for file in files[wnids[at]]:
            _link_or_copy(file, folder / file.name, how)
        return len(files[wnids[at]])

    verb = "linking" if how == "link" else "copying"
    return sum(for_all(make, len(wnids), None, f"{verb} {split.name}", "classes"))


def _link_or_copy(source: Path, target: Path, how: Literal["link", "copy"]) -> None:
    if how == "link":
        if not target.exists():
            target.unlink(missing_ok=True)  # a link that leads nowhere
            target.symlink_to(source.resolve())
    elif target.is_symlink() or not target.exists() or target.stat().st_size != source.stat().st_size:
        target.unlink(missing_ok=True)
        try:
            with open_regular(source) as file, open(target, "xb") as copy:
                shutil.copyfileobj(file, copy)
        except BadImageError as error:
            raise ValueError(f"imagenet: expected a file to copy at {source}, got: {error}") from error
