"""`ibvit data check` names what training would replace."""

from __future__ import annotations

import pytest

from ibvit.cli import app
from ibvit.data.files.check import check_tree


@pytest.mark.usefixtures("forbidden")
def test_broken_and_odd_files_are_named(make_tree, plant, capsys):
    root = make_tree()
    fates = plant(root / "train" / "dog")
    assert check_tree(root, workers=2) == 7
    lines = capsys.readouterr().out.splitlines()
    named = {line.split(":")[0].rsplit("/", 1)[1] for line in lines if ": broken: " in line}
    assert named == {name for name, gives_picture in fates.items() if not gives_picture}
    assert [line.split("/")[-1] for line in lines if ": odd: " in line] == [
        "b03_cmyk.JPEG: odd: converted from JPEG, CMYK",
        "b05_16bit.png: odd: converted from PNG, I;16",
        "b06_png.JPEG: odd: converted from PNG, RGB",
        "b08_one_pixel.JPEG: odd: only 1 × 1 pixels",
    ]
    assert lines[-2].endswith(
        "train: 32 images of 2 classes; 7 broken (neighbours would replace them), 4 odd, 1 grey (both are used)"
    )


def test_no_workers(make_tree):
    with pytest.raises(ValueError, match="workers: expected at least 1, got 0"):
        check_tree(make_tree(train=1, val=1), workers=0)


@pytest.mark.parametrize("broken", [False, True])
def test_exit_code(make_tree, capsys, broken):
    root = make_tree(train=2, val=1)
    if broken:
        (root / "val" / "cat" / "000.JPEG").write_bytes(b"")
    with pytest.raises(SystemExit) as stop:
        app.cli(args=["data", "check", str(root)])
    assert stop.value.code == broken
