"""The one schema of benchmark results, and the functions that write and read it.

A result is one JSON object:

    name          the benchmark; ``python -m benchmarks`` lists them
    what          what was measured, counted or predicted, in words
    device        where it was measured; null where nothing was measured
    date          when it was written, ISO 8601
    git_revision  the commit of the code; null outside a checkout
    git_dirty     whether that code had uncommitted changes, result files not counted; null where not recorded
    versions      of Python and the packages that matter, as far as installed
    command       what starts it again; null where not recorded
    threads       that torch computed with; null where not recorded
    better        for each ratio, share and efficiency: whether "lower" or "higher" is better
    failed        cases that raised an error, and so have no rows
    rows          flat objects; a key is snake_case and ends in its unit

A row with a ``median_`` has the ``min_`` and ``max_`` of the same rounds beside it; both are null where not recorded.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ibvit.files import write_text

Row = dict[str, Any]
Document = dict[str, Any]

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "triton", "timm", "numpy", "torchvision", "pillow", "nvidia-dali-cuda130", "pykeops")
DIGITS = 6  # significant ones of a number; rounds of a timing differ in the second or third
FIELDS: dict[str, tuple[type, ...]] = {
    "name": (str,), "what": (str,), "device": (str, type(None)), "date": (str,), "git_revision": (str, type(None)),
    "git_dirty": (bool, type(None)), "versions": (dict,), "command": (str, type(None)), "threads": (int, type(None)),
    "better": (dict,), "failed": (list,), "rows": (list,),
}  # fmt: skip
UNITS = (
    "us", "ms", "s", "min", "mb", "gb", "gib", "nats", "sd", "tflop", "per_pair", "per_s", "per_image", "per_block",
    "per_patch", "per_e_fold",
)  # fmt: skip
UNITLESS = {
    "beta",
    "sigma",
    "spread",
    "error",
    "allowed",
    "accuracy",
    "accuracy_sd",
    "load",
    "nmi",
    "nmi_se",
    "rank_correlation",
}
RATIO = re.compile("ratio_|share_|efficiency")


class Case(NamedTuple):
    """A part of a benchmark that may fail by itself."""

    label: str
    measure: Callable[[], list[Row]]


class Benchmark(NamedTuple):
    """What a module's ``benchmark(full, …)`` returns."""

    what: str
    cases: Sequence[Case]
    better: dict[str, str] = {}  # noqa: RUF012  (never changed)
    measured: bool = True  # else counted or predicted, on no device


def processor() -> str:
    """The model of the processor, where Linux says it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def cores() -> list[int]:
    """The processor's cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def device_name() -> str:
    """The GPU, else the processor and how many of its cores there are."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{processor()}, {len(cores())} cores"


def versions() -> dict[str, str]:
    """Of Python and those of PACKAGES that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def git(*command: str) -> str | None:
    """What git prints of this checkout; None outside one."""
    try:
        done = subprocess.run(
            ["git", *command], cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def document(name: str, benchmark: Benchmark, command: str, rows: list[Row], failed: list[str]) -> Document:
    """The result of a benchmark that has just run here."""
    changes = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":!results")
    found = {
        "name": name,
        "what": benchmark.what,
        "device": device_name() if benchmark.measured else None,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_revision": git("rev-parse", "--short=12", "HEAD"),
        "git_dirty": None if changes is None else bool(changes),
        "versions": versions(),
        "command": command,
        "threads": torch.get_num_threads(),
        "better": benchmark.better,
        "failed": failed,
        "rows": [{key: rounded(value) for key, value in row.items()} for row in rows],
    }
    validate(found)
    return found


def rounded(value: Any) -> Any:
    """A float to DIGITS significant digits; anything else as it is."""
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def validate(found: Document) -> None:
    """Raise ValueError where a result breaks the schema."""
    if set(found) != set(FIELDS):
        raise ValueError(f"result: expected the keys {sorted(FIELDS)}, got {sorted(found)}")
    for key, types in FIELDS.items():
        if not isinstance(found[key], types):
            raise ValueError(f"{key}: expected {' or '.join(t.__name__ for t in types)}, got {found[key]!r}")
    datetime.fromisoformat(found["date"])
    for key, way in found["better"].items():
        if way not in ("lower", "higher"):
            raise ValueError(f"better: expected lower or higher for {key}, got {way!r}")
    for row in found["rows"]:
        validate_row(row, found["better"])


def validate_row(row: Row, better: dict[str, str]) -> None:
    """Raise ValueError where a row is not flat, a key lacks its unit, or a ratio its better direction."""
    for key, value in row.items():
        if not re.fullmatch("[a-z][a-z0-9]*(_[a-z0-9]+)*", key):
            raise ValueError(f"rows: expected keys in snake_case, got {key!r}")
        if not isinstance(value, (str, int, float, type(None))):
            raise ValueError(f"rows: expected a string, number, bool or null as {key}, got {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"rows: expected a finite number or null as {key}, got {value!r}")
        if RATIO.match(key):
            if key not in better:
                raise ValueError(f"better: expected an entry for {key}, got {better}")
        elif isinstance(value, float) and key not in UNITLESS and not f"_{key}".endswith(tuple(f"_{u}" for u in UNITS)):
            raise ValueError(f"rows: expected a key that ends in a unit, got {key!r}")
        if key.startswith("median_") and not row.keys() >= {key.replace("median", end) for end in ("min", "max")}:
            raise ValueError(f"rows: expected the minimum and maximum beside {key}, got {list(row)}")


def write(found: Document, folder: Path = RESULTS) -> Path:
    """FOLDER/<device>-<name>.json, or <name>.json where nothing was measured; one row per line."""
    validate(found)
    device = (found["device"] or "").lower().replace("nvidia ", "")
    path = folder / (re.sub("[^a-z0-9]+", "-", f"{device} {found['name']}").strip("-") + ".json")
    folder.mkdir(parents=True, exist_ok=True)
    head = json.dumps({**found, "rows": []}, indent=1, ensure_ascii=False, allow_nan=False).removesuffix("[]\n}")
    rows = ",\n".join("  " + json.dumps(row, ensure_ascii=False, allow_nan=False) for row in found["rows"])
    write_text(path, f"{head}[\n{rows}\n ]\n}}\n")
    return path


def read(path: Path) -> Document:
    """A result file.

    Raises:
        ValueError: it breaks the schema.
    """
    found: Document = json.loads(path.read_text())
    try:
        validate(found)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return found
