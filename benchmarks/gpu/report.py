"""``python -m benchmarks gpu-report FOLDER``: the lines of a prepared run → result files of the one schema, and tables.

One file per part, ``results/<card>-gpu-<part>.json``. Device, revision, versions and threads are those that the run
recorded, not those of the machine that reports. A dry run is refused: nothing was measured on a GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import lines
from benchmarks.gpu.run import HIDDEN, PARTS
from benchmarks.recording import RESULTS, Document, Row, rounded, write

PREFIX = "gpu-"
BETTER = {
    "share_of_floor": "higher",
    "share_of_tensor_core_limit": "higher",
    "share_of_step": "lower",
    "ratio_error_to_allowed": "lower",
}
KINDS = ("row", "cache", "card", "versions", "tools", "triton cache", "ncu", "note")  # kinds of lines that become rows


def main(typed: Sequence[str]) -> int:
    """Write the result files and regenerate the tables."""
    parser = argparse.ArgumentParser("python -m benchmarks gpu-report", description="Result files of a prepared run.")
    parser.add_argument("folder", type=Path, help="the --out of gpu-run")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where files go (default: %(default)s)")
    parser.add_argument("--any-device", action="store_true", help="also of a run without a GPU")
    options = parser.parse_args(typed)
    found = lines.read(options.folder)
    if not found:
        parser.error(f"no lines in {options.folder / lines.NAME}")
    try:
        made = documents(found, options.any_device)
    except ValueError as error:
        parser.error(str(error))
    for document in made:
        print(f"wrote {write(document, options.results)}")
    if options.results == RESULTS:
        from benchmarks.tables import update

        update()
    return 0


def documents(found: Sequence[dict[str, Any]], any_device: bool = False) -> list[Document]:
    """A result for each part that has rows.

    Raises:
        ValueError: the part with the facts is missing, or the device is no GPU.
    """
    facts = {line["kind"]: line for line in found if line["part"] == "facts"}
    if not facts.keys() >= {"device", "versions"}:
        raise ValueError("results: expected lines of the part facts with the device and the versions")
    device = facts["device"]
    if "NVIDIA" not in device["device"] and not any_device:
        raise ValueError(f"results: expected those of an NVIDIA GPU, got {device['device']}")
    versions = {k: v for k, v in facts["versions"].items() if k not in HIDDEN and v is not None}
    made = []
    for part in PARTS:
        own = [line for line in found if line["part"] == part.name]
        rows = [row_of(line) for line in own if line["kind"] in KINDS]
        if not rows:
            continue
        failed = [line["case"] for line in own if line["kind"] == "case failed"]
        failed += [f"{part.name}: {line['kind']}" for line in own if line["kind"] in ("over its limit", "left out")]
        if own[-1]["kind"] not in ("ended", "failed", "over its limit", "left out"):
            failed.append(f"{part.name}: killed")
        keys = {key for row in rows for key in row}
        made.append(
            {
                "name": PREFIX + part.name,
                "what": f"the prepared run: {part.sentence}",
                "device": device["device"],
                "date": own[-1]["at"][:19] + "+00:00",
                "git_revision": device["git_revision"],
                "git_dirty": device["git_dirty"],
                "versions": versions,
                "command": f"python -m benchmarks gpu-run --out FOLDER --parts {part.name}",
                "threads": device["threads"],
                "better": {key: way for key, way in BETTER.items() if key in keys},
                "failed": failed,
                "rows": rows,
            }
        )
    return made


def row_of(line: dict[str, Any]) -> Row:
    """Without what the file says already; the kind stays where it is not the usual one."""
    row = {key.replace("-", "_"): rounded(value) for key, value in line.items() if key not in HIDDEN}
    return row if line["kind"] == "row" else {"line": line["kind"], **row}
