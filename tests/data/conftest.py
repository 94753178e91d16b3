"""Small trees of JPEGs, and the broken files that are planted in them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from PIL import Image

from ibvit.data.files.tree import ImageFolder, scan
from tests.data.small_disk import small_disk  # noqa: F401  (a fixture)


def picture(seed: int, height: int = 90, width: int = 120) -> Image.Image:
    """Smooth colours with some texture and strong edges: something that a JPEG decoder can get wrong."""
    rng = np.random.default_rng(seed)
    smooth = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    pixels = np.asarray(smooth).astype(int) + rng.integers(-12, 13, (height, width, 1))
    pixels[height // 3 : height // 2, width // 4 : width // 2] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90, **options)
    return file.getvalue()


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    """Pictures of several shapes, the last one grey."""
    shapes = [(90, 120), (120, 90), (64, 64), (75, 200), (300, 80), (111, 97)]
    made = [picture(seed, *shape) for seed, shape in enumerate(shapes)]
    return [*made, made[0].convert("L")]


@pytest.fixture
def make_tree(tmp_path: Path) -> Callable[..., Path]:
    """(train images, val images a class) → a tree of two classes."""

    def make(train: int = 10, val: int = 4) -> Path:
        for split, count in (("train", train), ("val", val)):
            for label, name in enumerate(("cat", "dog")):
                folder = tmp_path / "tree" / split / name
                folder.mkdir(parents=True)
                for at in range(count):
                    seed = 1000 * label + 100 * (split == "val") + at
                    (folder / f"{at:03}.JPEG").write_bytes(jpeg(picture(seed, 60 + 7 * at, 100 - 3 * at)))
        return tmp_path / "tree"

    return make


@pytest.fixture
def plant() -> Callable[[Path], dict[str, bool]]:
    """Puts twelve kinds of trouble into a folder → file name: does it still give a picture?"""

    def put(folder: Path) -> dict[str, bool]:
        image = picture(7)
        good = jpeg(image)
        grey = np.asarray(image.convert("L"))
        png = io.BytesIO()
        image.save(png, "PNG")
        frame = good.index(b"\xff\xc0")
        contents = {
            "b01_zero_bytes.JPEG": b"",
            "b02_truncated.JPEG": good[: len(good) // 2],
            "b07_text.JPEG": b"not a picture at all\n" * 20,
            "b09_huge_header.JPEG": good[: frame + 5] + (20_000).to_bytes(2, "big") * 2 + good[frame + 9 :],
            "b10_deleted.JPEG": good,
            "b11_unreadable.JPEG": good,
            "b03_cmyk.JPEG": jpeg(image.convert("CMYK")),
            "b04_grey.JPEG": jpeg(image.convert("L")),
            "b06_png.JPEG": png.getvalue(),
            "b08_one_pixel.JPEG": jpeg(image.crop((0, 0, 1, 1))),
        }
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "b05_16bit.png")
        (folder / "b12_broken_link.JPEG").symlink_to(folder / "nowhere")
        broken = ("b01", "b02", "b07", "b09", "b10", "b11", "b12")
        return {path.name: not path.name.startswith(broken) for path in sorted(folder.glob("b[01]*"))}

    return put


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files named *unreadable* and *deleted* cannot be opened, whoever asks (root reads files of any mode)."""

    def deny(path: str | Path, mode: str) -> BinaryIO:
        if "unreadable" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        if "deleted" in str(path):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return open(path, mode)

    monkeypatch.setattr("ibvit.data.files.images.open", deny, raising=False)


@pytest.fixture(autouse=True)
def own_memory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that run beside this one do not see its packs in memory, nor clear them away."""
    monkeypatch.setattr("ibvit.data.cache.shared.HOME", tmp_path_factory.mktemp("memory"))


@pytest.fixture
def folder(make_tree: Callable[..., Path]) -> ImageFolder:
    """Twenty images of two classes."""
    return scan(make_tree() / "train")
