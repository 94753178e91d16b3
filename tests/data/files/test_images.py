"""One file at a time: every kind of trouble is a picture or a reason."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from ibvit.data.files.images import BadImageError, opened, read, rgb, stored_size
from ibvit.data.files.jpeg import plain_jpeg_size


def encoded(image: Image.Image, format: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.array(rgb(opened(data)))


@pytest.mark.usefixtures("forbidden")
def test_every_kind_of_trouble_is_a_picture_or_a_reason(tmp_path, plant):
    fates = plant(tmp_path)
    assert len(fates) == 12
    for name, gives_picture in fates.items():
        if gives_picture:
            image = pixels(read(tmp_path / name))
            assert image.dtype == np.uint8
            assert image.shape == (*stored_size(tmp_path / name), 3), name
        else:
            with pytest.raises(BadImageError):
                pixels(read(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "reason"),
    [("b01_zero_bytes.JPEG", "empty"), ("b02_truncated.JPEG", "truncated"), ("b07_text.JPEG", "not an image"),
     ("b09_huge_header.JPEG", "67108864 pixels"), ("b10_deleted.JPEG", "No such file"),
     ("b11_unreadable.JPEG", "Permission denied"), ("b12_broken_link.JPEG", "broken symbolic link")],
)  # fmt: skip
@pytest.mark.usefixtures("forbidden")
def test_the_reason_says_what_is_wrong(tmp_path, plant, name, reason):
    plant(tmp_path)
    with pytest.raises(BadImageError, match=reason):
        pixels(read(tmp_path / name))


@pytest.mark.parametrize(
    "options", [{}, {"subsampling": 0}, {"progressive": True}], ids=["4:2:0", "4:4:4", "progressive"]
)
def test_plain_jpegs_are_decoded_as_pil_decodes_them(pictures, options):
    for picture in pictures:
        data = encoded(picture, **options)
        assert plain_jpeg_size(data) == (picture.height, picture.width)
        np.testing.assert_array_equal(pixels(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.new("CMYK", (8, 8))),
        encoded(Image.new("RGB", (8, 8)), "PNG"),
        encoded(Image.new("RGB", (8, 8)))[:-1],
        encoded(Image.new("RGB", (8, 8)), keep_rgb=True),
        b"",
        b"\xff\xd8\xff\xd9",
    ],
    ids=["CMYK", "PNG", "no end", "RGB components", "empty", "no frame"],
)
def test_other_files_are_not_plain(data):
    assert plain_jpeg_size(data) is None


def test_sixteen_bits_keep_the_upper_byte():
    levels = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    image = pixels(encoded(Image.fromarray(levels), "PNG"))
    np.testing.assert_array_equal(image[:, :, 0].ravel(), np.arange(256))
