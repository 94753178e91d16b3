"""`ibvit data check` names what training would replace."""

from __future__ import annotations

import pytest

from ibvit.cli import app
from ibvit.data.check import check_tree


@pytest.mark.usefixtures("forbidden")
def test_broken_and_odd_files_are_named(make_tree, plant, capsys):
    root = make_tree()
    fates = plant(root / "train" / "dog")
    assert check_tree(root, workers=2) == 7
    lines = capsys.readouterr().out.splitlines()
    named = {line.split(":")[0].rsplit("/", 1)[1] for line in lines[:-2] if "will be converted" not in line}
    assert named == {name for name, gives_picture in fates.items() if not gives_picture}
    converted = [line.split("/")[-1] for line in lines if "will be converted" in line]
    assert converted == [
        "b03_cmyk.JPEG: will be converted from JPEG, CMYK",
        "b05_16bit.png: will be converted from PNG, I;16",
        "b06_png.JPEG: will be converted from PNG, RGB",
    ]
    assert lines[-2].endswith(
        "train: 32 images of 2 classes, 7 broken (replaced in training), 3 odd and 1 grey (converted)"
    )


@pytest.mark.parametrize("broken", [False, True])
def test_exit_code(make_tree, capsys, broken):
    root = make_tree(train=2, val=1)
    if broken:
        (root / "val" / "cat" / "000.JPEG").write_bytes(b"")
    with pytest.raises(SystemExit) as stop:
        app.cli(args=["data", "check", str(root)])
    assert stop.value.code == broken
