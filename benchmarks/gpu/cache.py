"""A Triton cache that is filled on one machine and carried to another.

A compiled kernel's key depends on its source, the constants, the GPU's architecture and the files of Triton, and on
nothing else of the machine. But the cache names its files by absolute paths. So it is packed from, and unpacked to,
one fixed folder, UNPACKED.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(".gpu")
UNPACKED = Path("/tmp/ibvit-triton-cache")
LIMIT = 64 << 20  # bytes that a device machine takes along, the working tree included
REVISION = "GPU_RUN_REVISION"  # environment variable: the commit, where the checkout came without its .git
PACKED, MANIFEST = "triton-cache.tar.gz", "manifest.json"


class State(NamedTuple):
    """What became of the packed cache: what to report, and the environment of the parts."""

    row: dict[str, Any]
    environment: dict[str, str]


def triton_hash() -> str:
    """Of all that Triton puts into the key of each kernel: its version, its Python files and libtriton.so."""
    from triton.runtime.cache import triton_key

    return hashlib.sha256(triton_key().encode()).hexdigest()


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def pack(folder: Path, unpacked: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Pack a filled cache into the folder, which git then ignores; what its manifest says."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n")
    with tarfile.open(folder / PACKED, "w:gz", compresslevel=9) as tar:
        for path in sorted(unpacked.rglob("*")):
            if path.is_file():
                tar.add(path, path.relative_to(unpacked))
    manifest = {
        "unpacked": str(unpacked),
        "triton_hash": triton_hash(),
        "packed_sha256": sha256(folder / PACKED),
        "bytes": (folder / PACKED).stat().st_size,
        **facts,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    if manifest["bytes"] > LIMIT:
        raise ValueError(f"cache: expected at most {LIMIT} bytes to carry, got {manifest['bytes']}")
    return manifest


def open_packed(folder: Path) -> State:
    """Compare hashes first; unpack where they agree. Otherwise kernels compile into the same folder."""
    environment = {"TRITON_CACHE_DIR": str(UNPACKED)}
    if not (folder / MANIFEST).exists():
        return State({"cache": "none", "reason": f"no {folder / MANIFEST}; kernels compile here"}, environment)
    manifest = json.loads((folder / MANIFEST).read_text())
    if Path(manifest["unpacked"]).name != UNPACKED.name:  # what lies there will be removed
        return State({"cache": "invalid", "reason": f"unpacks to {manifest['unpacked']}"}, environment)
    environment |= {"TRITON_CACHE_DIR": manifest["unpacked"], REVISION: manifest.get("git_revision") or ""}
    try:
        here = triton_hash()
    except ImportError:
        return State({"cache": "invalid", "reason": "triton is not installed"}, environment)
    if here != manifest["triton_hash"]:
        reason = f"made by another triton {manifest['triton']}, {manifest['triton_hash'][:12]}, here {here[:12]}"
        return State({"cache": "invalid", "reason": reason}, environment)
    if sha256(folder / PACKED) != manifest["packed_sha256"]:
        return State({"cache": "invalid", "reason": f"{folder / PACKED} is not what was packed"}, environment)
    unpack(folder, Path(manifest["unpacked"]))
    return State({"cache": "valid", "kernels": manifest["kernels"], "triton_hash": here[:12]}, environment)


def unpack(folder: Path, unpacked: Path) -> None:
    """Replace what lies at the absolute path by what was packed."""
    shutil.rmtree(unpacked, ignore_errors=True)
    unpacked.mkdir(parents=True)
    with tarfile.open(folder / PACKED) as tar:
        tar.extractall(unpacked, filter="data")
