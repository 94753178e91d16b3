"""What the header of a JPEG says, and whether any decoder can be trusted with it."""

from __future__ import annotations

import struct

MAX_PIXELS = 1 << 26  # a header that promises more (8192 × 8192) is taken for a broken or hostile file
HEAD = 1 << 16  # bytes in which nearly every JPEG states its size

_START, _END = b"\xff\xd8", b"\xff\xd9"
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended and progressive Huffman JPEG
_SCAN, _ADOBE = 0xDA, 0xEE


def plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG that every decoder reads alike, None for any other file.

    Plain is: 8 bits, one (grey) or three (YCbCr) components, Huffman coded, begun and ended by its markers.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> file = io.BytesIO()
        >>> Image.new("RGB", (3, 2)).save(file, "JPEG")
        >>> plain_jpeg_size(file.getvalue()), plain_jpeg_size(file.getvalue()[:-2])
        ((2, 3), None)
    """
    return jpeg_size(data) if data.endswith(_END) else None


def jpeg_size(head: bytes) -> tuple[int, int] | None:
    """As :func:`plain_jpeg_size`, from a file's first bytes, wherever it may end."""
    if not head.startswith(_START):
        return None
    at = 2
    size = None
    while at + 10 < len(head) and head[at] == 0xFF:
        marker, length = head[at + 1], int.from_bytes(head[at + 2 : at + 4], "big")
        if marker == _SCAN:
            return size
        if marker == _ADOBE and head[at + 4 : at + 9] == b"Adobe" and head[at + 15 : at + 16] != b"\x01":
            return None  # components are RGB, CMYK or YCCK
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            bits, height, width, components = struct.unpack_from(">BHHB", head, at + 4)
            if marker not in _FRAMES or bits != 8 or components not in (1, 3) or not 0 < height * width <= MAX_PIXELS:
                return None
            size = height, width
        at += 2 + length
    return None
