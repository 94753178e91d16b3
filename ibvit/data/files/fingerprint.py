"""Which files a folder holds, told without reading them."""

from __future__ import annotations

import hashlib
import os

from ibvit.data.files.tree import ImageFolder


def fingerprint(folder: ImageFolder) -> str:
    """sha256 of the classes in order, and of each file's relative path, size in bytes and time of change (ns).

    A file that cannot be looked at counts as absent.
    """
    digest = hashlib.sha256("\n".join(folder.classes).encode())
    for index, path in enumerate(folder.paths):
        try:
            found = os.stat(folder.path(index))
            digest.update(f"\0{path}\0{found.st_size}\0{found.st_mtime_ns}".encode(errors="surrogateescape"))
        except OSError:
            digest.update(f"\0{path}\0absent".encode(errors="surrogateescape"))
    return digest.hexdigest()
