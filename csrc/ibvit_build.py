"""pip's build backend: scikit-build-core, whose editable install puts a finder before sys.path.

In a second checkout that finder would import the first one, whatever PYTHONPATH says. Here an editable install is two
lines in a .pth file, which every other path precedes, and the CPU library lies beside the sources.
"""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

from scikit_build_core.build import *  # noqa: F403
from scikit_build_core.build import build_wheel

ROOT = Path(__file__).parents[1]
LIBRARY = "ibvit_kernels/ibvit_native.so"


def build_editable(
    wheel_directory: str, config_settings: dict[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    """A wheel with the metadata and a .pth file; its library goes into the checkout."""
    with TemporaryDirectory() as folder:
        name = build_wheel(folder, config_settings, metadata_directory)
        with ZipFile(Path(folder) / name) as wheel:
            contents = {entry: wheel.read(entry) for entry in wheel.namelist() if not entry.endswith("/")}
    _replace(ROOT / "kernels" / LIBRARY, contents.get(LIBRARY))
    record = next(entry for entry in contents if entry.endswith(".dist-info/RECORD"))
    entries = {entry: data for entry, data in contents.items() if ".dist-info/" in entry and entry != record}
    entries["ibvit.pth"] = f"{ROOT}\n{ROOT / 'kernels'}\n".encode()
    lines = [f"{entry},sha256={_digest(data)},{len(data)}" for entry, data in entries.items()]
    with ZipFile(Path(wheel_directory) / name, "w", ZIP_DEFLATED) as editable:
        for entry, data in (entries | {record: "\n".join([*lines, f"{record},,", ""]).encode()}).items():
            editable.writestr(entry, data)
    return name


def _replace(path: Path, data: bytes | None) -> None:
    """Put ``data`` in place of a file that a process may be using; None removes it."""
    if data is None:
        path.unlink(missing_ok=True)
        return
    partial = path.with_suffix(".partial")
    partial.write_bytes(data)
    os.replace(partial, path)


def _digest(data: bytes) -> str:
    """In the encoding of the RECORD of a wheel."""
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
