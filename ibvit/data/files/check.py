"""``ibvit data check``: find broken and odd files before training does."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ibvit.data.files.bad_files import BadFile, printable
from ibvit.data.files.images import BadImageError, oddity, opened
from ibvit.data.files.tree import ImageFolder, scan_tree
from ibvit.progress import for_all

_TINY = 8  # pixels of a side: hardly a picture


class Report(NamedTuple):
    """What :func:`check` found in a split."""

    broken: tuple[BadFile, ...]  # would be replaced
    odd: tuple[BadFile, ...]  # would be used, but are not what one expects: another format than the name says, CMYK, …
    grey: int  # would be converted


def check(folder: ImageFolder, workers: int | None = None) -> Report:
    """Decode every file of a split, whole, with PIL."""

    def look(index: int) -> tuple[str, str]:
        try:
            image = opened(folder.encoded(index))
        except BadImageError as error:
            return "broken", str(error)
        what = oddity(image, folder.paths[index])
        if what is not None:
            return "odd", what
        if min(image.size) < _TINY:
            return "odd", f"only {image.width} × {image.height} pixels"
        return image.mode, ""

    verdicts = list(for_all(look, len(folder), workers, f"checking {folder.root.name}", "images"))

    def named(verdict: str) -> tuple[BadFile, ...]:
        return tuple(BadFile(folder.path(index), why) for index, (kind, why) in enumerate(verdicts) if kind == verdict)

    return Report(named("broken"), named("odd"), sum(kind == "L" for kind, _ in verdicts))


def check_tree(root: Path, workers: int | None = None) -> int:
    """Check DIR/train and DIR/val, print the broken and the odd files, and return how many are broken.

    Raises:
        ValueError: the tree is not one of images, see :func:`ibvit.data.files.tree.scan_tree`, or there are no workers.
    """
    broken = 0
    for folder in scan_tree(root):
        report = check(folder, workers)
        for verdict, files in (("broken", report.broken), ("odd", report.odd)):
            for path, why in files:
                print(f"{printable(path)}: {verdict}: {why}")
        print(
            f"{folder.root}: {len(folder)} images of {len(folder.classes)} classes; {len(report.broken)} broken "
            f"(neighbours would replace them), {len(report.odd)} odd, {report.grey} grey (both are used)"
        )
        broken += len(report.broken)
    return broken
