"""One image file at a time: its pixels in RGB, or the reason why there are none. PIL is the judge of every file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ibvit.data.files.jpeg import HEAD, MAX_PIXELS, jpeg_size

Pixels = NDArray[np.uint8]  # [height, width, 3], RGB

_ORDINARY = ("RGB", "L", "P")  # PIL's modes that need no mention


class BadImageError(Exception):
    """A file that gives no picture; the message says why, in a few words."""


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
        with open(path, "rb") as file:
            size = jpeg_size(file.read(HEAD))
        if size is None:
            with Image.open(path) as image:
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
