"""Writes the records of a run: whole, into reserved disk space, resumable."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ibvit import run_folder
from ibvit.analysis.records import AXES, SCHEMA, UNITS, RecordsError, checksum, read_meta
from ibvit.data.files.room import reserve, writing

logger = logging.getLogger(__name__)


class RecordsWriter:
    """Writes a run's records piece by piece; what `commit` has named as done survives an interruption.

    `meta` is what must be equal for an interrupted recording to resume: weights, options, model. It starts over where
    that differs, or where a file is gone.
    """

    def __init__(self, run_dir: str | Path, meta: Mapping[str, Any]) -> None:
        self.folder = Path(run_dir) / run_folder.RECORDS
        self.folder.mkdir(exist_ok=True)
        path = self.folder / "records.json"
        fresh = {"schema": SCHEMA, **meta}
        old: dict[str, Any] = {}
        if path.is_file():
            try:
                old = read_meta(path, "")
            except RecordsError as error:
                logger.warning("%s: it is recorded anew", error)
        differing = sorted(key for key, value in fresh.items() if old.get(key) != value)
        whole = "schema" not in differing and all(
            _is_whole(self.folder / f"{name}.npy", spec) for name, spec in old["arrays"].items()
        )
        more = (
            bool(old.get("complete")) and differing == ["options"] and _covers(old.get("options", {}), fresh["options"])
        )
        resumable = whole and (not differing or more)
        if resumable and differing:
            logger.info("%s holds more than is asked for, and is kept", self.folder)
        elif old and not resumable:
            reason = ", ".join(differing) or "a file is damaged"
            logger.warning("%s is recorded anew (what differs: %s)", self.folder, reason)
        self.meta: dict[str, Any] = old if resumable else {**fresh, "arrays": {}, "progress": {}, "complete": False}
        self._arrays: dict[str, np.memmap] = {}

    def add(self, name: str, shape: tuple[int, ...], dtype: str) -> np.memmap:
        """The array `name`, created unless it exists, with all the disk space that it needs.

        Raises:
            NoRoomError: the disk is full.
        """
        path = self.folder / f"{name}.npy"
        spec = {"dtype": dtype, "shape": list(shape), "axes": AXES[name], "unit": UNITS.get(name, "")}
        exists = self.meta["arrays"].get(name) == spec and path.is_file()
        if exists:
            reserve(path, path.stat().st_size)  # a copy may have holes
        else:
            self._write_meta()  # first, so that no reader takes the new array for a part of finished records
            _create(path, shape, np.dtype(dtype))
        array = np.lib.format.open_memmap(path, mode="r+")
        self.meta["arrays"][name] = spec
        self._arrays[name] = array
        return array

    def describe(self, **facts: Any) -> None:
        """Facts found while recording: the data set's digest, the heads kept."""
        self.meta.update(facts)
        self._write_meta()

    def progress(self, stage: str) -> int:
        """How many steps of `stage` are on disk."""
        return self.meta["progress"].get(stage, 0)

    def commit(self, stage: str, steps: int) -> None:
        """Flush the arrays, then record that `steps` steps of `stage` are done."""
        for array in self._arrays.values():
            array.flush()
        self.meta["progress"][stage] = steps
        self._write_meta()

    def finish(self) -> None:
        """Mark the records complete, with a checksum of each array."""
        for name, array in self._arrays.items():
            self.meta["arrays"][name]["crc32"] = checksum(array)
        self.meta["complete"] = True
        self._write_meta()

    def _write_meta(self) -> None:
        temporary = self.folder / "records.json.tmp"
        text = json.dumps(self.meta, indent=1, ensure_ascii=False) + "\n"
        with writing(temporary, len(text.encode())):
            temporary.write_text(text)
        os.replace(temporary, self.folder / "records.json")


def _covers(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether records of the options `old` hold all that those of `new` would: attention maps too, or every head."""
    more = {"attention": True, "heads": "all"}
    return all(old.get(name) in (value, more.get(name, value)) for name, value in new.items())


def _is_whole(path: Path, spec: Mapping[str, Any]) -> bool:
    try:
        array = np.load(path, mmap_mode="r")
    except Exception:  # as where records are read
        return False
    return list(array.shape) == spec["shape"] and str(array.dtype) == spec["dtype"]


def _create(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Create a .npy file of zeros. An existing file is unlinked, not overwritten: it may be open for reading."""
    path.unlink(missing_ok=True)
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    size = math.prod(shape) * dtype.itemsize
    try:
        with writing(path, size), open(path, "xb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            size += file.tell()
        reserve(path, size)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
