"""One file at a time: every kind of trouble is a picture or a reason."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from ibvit.data.images import (
    BadFile,
    BadFiles,
    BadImageError,
    decode,
    nearest_readable,
    pixels,
    plain_jpeg_size,
    read,
    stored_size,
)


def encoded(image: Image.Image, format: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


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
        decode(read(tmp_path / name))


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
    image = decode(encoded(Image.fromarray(levels), "PNG"))
    np.testing.assert_array_equal(np.asarray(image)[:, :, 0].ravel(), np.arange(256))


def test_a_broken_file_gives_way_to_the_next_readable_one_cyclically():
    def load(index: int) -> str:
        if index in (0, 3, 4):
            raise BadImageError("broken")
        return f"image {index}"

    shown, content, bad = nearest_readable(load, str, 3, 5)
    assert (shown, content) == (1, "image 1")
    assert bad == [BadFile("3", "broken"), BadFile("4", "broken"), BadFile("0", "broken")]
    assert nearest_readable(load, str, 2, 5) == (2, "image 2", [])


def test_no_readable_image_at_all_is_an_error():
    def load(index: int) -> str:
        raise BadImageError("empty file")

    with pytest.raises(BadImageError, match=r"none of the 2 images .* 1: empty file"):
        nearest_readable(load, str, 1, 2)


def test_each_bad_file_is_named_once(caplog):
    bad = BadFiles()
    bad.note([BadFile("a.JPEG", "empty file"), BadFile("b.JPEG", "not an image")])
    bad.note([BadFile("a.JPEG", "empty file")])
    assert bad.replaced == 3
    assert [record.getMessage().split(";")[0] for record in caplog.records] == [
        "a.JPEG: empty file",
        "b.JPEG: not an image",
    ]
