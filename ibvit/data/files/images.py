"""One image file at a time: its pixels in RGB, or the reason why there are none. PIL decides what is readable."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ibvit.data.files.jpeg import HEAD, MAX_PIXELS, jpeg_size

Pixels = NDArray[np.uint8]  # [height, width, 3], RGB

MAX_BYTES = 1 << 30  # a larger file is taken for a broken or hostile one

_ORDINARY = ("RGB", "L", "P")  # PIL's modes that need no mention
_OTHERS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}  # fmt: skip


class BadImageError(Exception):
    """A file that gives no picture; the message says why, in a few words."""


def open_regular(path: str | Path) -> BinaryIO:
    """A file with an end, opened to read: pipes and devices can keep a reader for ever, and are not opened.

    Raises:
        BadImageError: it is absent, unreadable, empty, larger than ``MAX_BYTES``, or no regular file.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise BadImageError(f"{_OTHERS.get(stat.S_IFMT(status.st_mode), 'a special file')}, not a file")
        if status.st_size == 0:
            raise BadImageError("empty file")
        if status.st_size > MAX_BYTES:
            raise BadImageError(f"larger than {MAX_BYTES >> 30} GiB")
        return open(path, "rb")
    except OSError as error:
        broken_link = isinstance(error, FileNotFoundError) and Path(path).is_symlink()
        raise BadImageError("broken symbolic link" if broken_link else error.strerror or str(error)) from error


def read(path: str | Path) -> bytes:
    """The bytes of a file.

    Raises:
        BadImageError: as :func:`open_regular`.
    """
    with open_regular(path) as file:
        try:
            return file.read(os.fstat(file.fileno()).st_size)  # not to its end: it may be growing
        except OSError as error:
            raise BadImageError(error.strerror or str(error)) from error


def opened(data: bytes) -> Image.Image:
    """A PIL image, decoded, in the mode and format that it has.

    Raises:
        BadImageError: PIL cannot read it, it is cut short, or its header promises more than ``MAX_PIXELS``.
    """
    try:
        image = Image.open(io.BytesIO(data))
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError
        image.load()
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, EOFError and more
        raise _bad(error) from error
    return image


def oddity(image: Image.Image, path: str | Path) -> str | None:
    """What is to be converted in a file: another format than its name says, CMYK, 16 bits, transparency, …

    Example:
        >>> file = io.BytesIO()
        >>> Image.new("CMYK", (3, 2)).save(file, "JPEG")
        >>> oddity(opened(file.getvalue()), "cat.JPEG"), oddity(Image.new("RGB", (3, 2)), "cat")
        ('converted from JPEG, CMYK', None)
    """
    expected = Image.registered_extensions().get(Path(path).suffix.lower(), image.format)
    if image.mode in _ORDINARY and image.format == expected:
        return None
    return f"converted from {image.format}, {image.mode}"


def rgb(image: Image.Image) -> Image.Image:
    """The image in mode RGB; 16-bit grey keeps its upper byte.

    Example:
        >>> rgb(Image.new("L", (3, 2), 7)).getpixel((0, 0))
        (7, 7, 7)
    """
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


def stored_size(path: str | Path) -> tuple[int, int]:
    """(height, width) from a file's header alone.

    Raises:
        BadImageError: the file cannot be read, or its header is no image's or promises more than ``MAX_PIXELS``.
    """
    try:
        with open_regular(path) as file:
            size = jpeg_size(file.read(HEAD))
            if size is None:
                file.seek(0)
                with Image.open(file) as image:
                    size = image.height, image.width
        if size[0] * size[1] > MAX_PIXELS:
            raise Image.DecompressionBombError
    except Exception as error:
        raise _bad(error) from error
    return size


def _bad(error: Exception) -> BadImageError:
    if isinstance(error, UnidentifiedImageError):
        return BadImageError("not an image")
    if isinstance(error, Image.DecompressionBombError):
        return BadImageError(f"its header promises more than {MAX_PIXELS} pixels")
    return BadImageError(str(error) or type(error).__name__)
