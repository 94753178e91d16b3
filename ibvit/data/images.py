"""One image file at a time: its pixels in RGB, or the reason why there are none.

PIL is the judge of every file. The only files that another decoder may see are those that any decoder reads alike:
complete 8-bit JPEGs of one or three components (:func:`plain_jpeg_size`).
"""

from __future__ import annotations

import io
import logging
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

logger = logging.getLogger(__name__)
Loaded = TypeVar("Loaded")
Pixels = NDArray[np.uint8]  # [height, width, 3], RGB

MAX_PIXELS = 1 << 26  # a header that promises more (8192 × 8192) is taken for a broken or hostile file

_START, _END = b"\xff\xd8", b"\xff\xd9"
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended and progressive Huffman JPEG
_SCAN, _ADOBE = 0xDA, 0xEE
_HEAD = 1 << 16  # bytes in which nearly every JPEG states its size


class BadImageError(Exception):
    """A file that gives no picture; the message says why, in a few words."""


class BadFile(NamedTuple):
    """A file that was replaced, and why."""

    path: str
    reason: str


@dataclass
class BadFiles:
    """Counts the replaced images of a run and names each file once in the log."""

    replaced: int = 0  # how many times some other image took the place of a broken one
    named: set[str] = field(default_factory=set)

    def note(self, bad: Iterable[BadFile]) -> None:
        """Count and, the first time, log."""
        for path, reason in bad:
            self.replaced += 1
            if path not in self.named:
                self.named.add(path)
                logger.warning("%s: %s; its neighbour in the data set takes its place", path, reason)


def read(path: str | Path) -> bytes:
    """The bytes of a file.

    Raises:
        BadImageError: the file is absent, empty or unreadable.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        broken_link = isinstance(error, FileNotFoundError) and Path(path).is_symlink()
        raise BadImageError("broken symbolic link" if broken_link else error.strerror or str(error)) from error
    if not data:
        raise BadImageError("empty file")
    return data


def decode(data: bytes) -> Image.Image:
    """A PIL image in mode RGB from the bytes of any file that PIL reads; 16-bit grey keeps its upper byte.

    Raises:
        BadImageError: PIL cannot read it, it is cut short, or its header promises more than ``MAX_PIXELS``.

    Example:
        >>> file = io.BytesIO()
        >>> Image.new("L", (3, 2), 7).save(file, "PNG")
        >>> image = decode(file.getvalue())
        >>> image.mode, image.size, image.getpixel((0, 0))
        ('RGB', (3, 2), (7, 7, 7))
    """
    image = loaded(data)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


def loaded(data: bytes) -> Image.Image:
    """A PIL image, decoded, in the mode and format that it has; raises as :func:`decode`."""
    try:
        image = Image.open(io.BytesIO(data))
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError
        image.load()
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, EOFError and more
        raise _bad(error) from error
    return image


def _bad(error: Exception) -> BadImageError:
    if isinstance(error, UnidentifiedImageError):
        return BadImageError("not an image")
    if isinstance(error, Image.DecompressionBombError):
        return BadImageError(f"its header promises more than {MAX_PIXELS} pixels")
    return BadImageError(str(error) or type(error).__name__)


def pixels(data: bytes) -> Pixels:
    """As :func:`decode`, as an array."""
    return np.array(decode(data))


def plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG that every decoder reads alike, None for any other file.

    Plain is: 8 bits, one (grey) or three (YCbCr) components, Huffman coded, begun and ended by its markers.

    Example:
        >>> file = io.BytesIO()
        >>> Image.new("RGB", (3, 2)).save(file, "JPEG")
        >>> plain_jpeg_size(file.getvalue()), plain_jpeg_size(file.getvalue()[:-2])
        ((2, 3), None)
    """
    return _jpeg_size(data) if data.endswith(_END) else None


def stored_size(path: str | Path) -> tuple[int, int]:
    """(height, width) from a file's header alone.

    Raises:
        BadImageError: the file cannot be read, or its header is no image's or promises more than ``MAX_PIXELS``.
    """
    try:
        with open(path, "rb") as file:
            size = _jpeg_size(file.read(_HEAD))
        if size is None:
            with Image.open(path) as image:
                size = image.height, image.width
        if size[0] * size[1] > MAX_PIXELS:
            raise Image.DecompressionBombError
    except Exception as error:
        raise _bad(error) from error
    return size


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    if not data.startswith(_START):
        return None
    at = 2
    size = None
    while at + 10 < len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == _SCAN:
            return size
        if marker == _ADOBE and data[at + 4 : at + 9] == b"Adobe" and data[at + 15] != 1:
            return None  # components are RGB, CMYK or YCCK
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            bits, height, width, components = struct.unpack_from(">BHHB", data, at + 4)
            if marker not in _FRAMES or bits != 8 or components not in (1, 3) or not 0 < height * width <= MAX_PIXELS:
                return None
            size = height, width
        at += 2 + length
    return None


def nearest_readable(
    load: Callable[[int], Loaded], path: Callable[[int], str], index: int, count: int
) -> tuple[int, Loaded, list[BadFile]]:
    """The first of ``index``, ``index + 1``, … (cyclically) that loads, its content, and the bad files passed over.

    Raises:
        BadImageError: none of ``count`` images loads.
    """
    bad: list[BadFile] = []
    for offset in range(count):
        position = (index + offset) % count
        try:
            return position, load(position), bad
        except BadImageError as error:
            bad.append(BadFile(path(position), str(error)))
    raise BadImageError(f"none of the {count} images can be read; the first: {bad[0].path}: {bad[0].reason}")
