"""The prepared run: ``python -m benchmarks gpu-run --out FOLDER [--minutes N] [--dry] [--parts a,b]``.

Everything that a few minutes on a GPU can decide, most important first. Each part is a process of its own with a time
limit; one that fails or outlasts its limit is recorded, and the next one runs. Results are lines of
FOLDER/results.jsonl, written as they are measured; FOLDER/log.txt has all that the parts print. ``gpu-report`` makes
result files of the lines.

Without --minutes no part has a limit. With --dry all parts run on the CPU at toy size, kernels in Triton's interpreter.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu import cache, lines

ROOT = Path(__file__).parents[2]
PRINTED = 11_000  # characters in all: a device machine keeps the last 12,000
RESERVE = 5.0  # seconds between the end of the last part and --minutes
HIDDEN = {"part", "kind", "at"}


class Part(NamedTuple):
    """A process of the run; ``module.measure(record, folder, dry)`` records its rows."""

    name: str
    module: str
    seconds: float
    """Its limit where --minutes is given."""
    sentence: str


PARTS = (
    Part("facts", "benchmarks.gpu.facts", 40, "the card, versions, copy and matrix product peaks"),
    Part("correct", "benchmarks.gpu.correct", 100, "every output and gradient against float64, repeatability"),
    Part("headline", "benchmarks.gpu.headline", 90, "the fused kernels for twelve layers, each kernel alone, peers"),
    Part("tiles", "benchmarks.gpu.tiles", 40, "candidates of tiles"),
    Part("step", "benchmarks.gpu.step", 170, "attention alone, the training step, its longest kernels"),
    Part("resume", "benchmarks.gpu.resume", 50, "graph replay and resuming, bit for bit"),
    Part("estimator", "benchmarks.gpu.estimator", 60, "the estimator's sums"),
    Part("why", "benchmarks.gpu.why", 40, "ncu and compute-sanitizer"),
)


def main(typed: Sequence[str]) -> int:
    """Run the parts; the exit code is 1 if one of them failed or was ended."""
    parser = argparse.ArgumentParser("python -m benchmarks gpu-run", description="The prepared run on one GPU.")
    parser.add_argument("--out", type=Path, required=True, help="folder of results.jsonl and log.txt")
    parser.add_argument("--minutes", type=float, help="end by then, each part within its limit (default: no limits)")
    parser.add_argument("--dry", action="store_true", help="on the CPU at toy size, to show that every part ends")
    parser.add_argument("--parts", help=f"some of {','.join(part.name for part in PARTS)}")
    parser.add_argument("--cache", type=Path, default=cache.FOLDER, help="what gpu-prepare made (default: %(default)s)")
    options = parser.parse_args(typed)
    names = options.parts.split(",") if options.parts else [part.name for part in PARTS]
    unknown = set(names) - {part.name for part in PARTS}
    if unknown:
        parser.error(f"--parts: expected {', '.join(p.name for p in PARTS)}, got {', '.join(sorted(unknown))}")
    environment = dict(os.environ)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.dry:
        environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    else:
        state = cache.open_packed(options.cache)
        lines.recorder(options.out, "facts")("cache", **state.row)
        print(" ".join(f"{key} {value}" for key, value in state.row.items()), flush=True)
        environment |= state.environment
    parts = [part for part in PARTS if part.name in names]
    return run(parts, options.out, options.minutes, options.dry, environment)


def run(
    parts: Sequence[Part], folder: Path, minutes: float | None, dry: bool, environment: dict[str, str] | None = None
) -> int:
    """Run parts one after another, and print what they record as far as PRINTED allows."""
    begin = time.monotonic()
    deadline = None if minutes is None else begin + 60 * minutes - RESERVE
    seen, left, failed = len(lines.read(folder)), PRINTED, 0
    for number, part in enumerate(parts):
        limit = None if deadline is None else min(part.seconds, deadline - time.monotonic())
        failed += not attempt(part, folder, limit, dry, environment)
        new = lines.read(folder)[seen:]
        seen += len(new)
        left -= show(new, left // (len(parts) - number))
    print(f"{time.monotonic() - begin:.0f} s in all; {failed} of {len(parts)} parts failed or were ended", flush=True)
    return 1 if failed else 0


def attempt(part: Part, folder: Path, limit: float | None, dry: bool, environment: dict[str, str] | None) -> bool:
    """Run one part in a process group of its own; record how it ended; whether it ended well."""
    record = lines.recorder(folder, part.name)
    if limit is not None and limit <= 0:
        record("left out", error="no time was left")
        return False
    record("begin", limit_s=limit)
    begin = time.monotonic()
    command = [sys.executable, "-u", "-m", "benchmarks.gpu.child", part.name, part.module, str(folder)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])])
    with (folder / "log.txt").open("ab") as log, terminates():
        log.write(f"== {part.name}\n".encode())
        log.flush()
        process = subprocess.Popen(
            [*command, *(["--dry"] if dry else [])], cwd=ROOT, stdout=log, stderr=log, start_new_session=True,
            env={**(environment or os.environ), "PYTHONPATH": path},
        )  # fmt: skip
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # also what the part itself has started
            process.wait()
    kind = {0: "ended", None: "over its limit"}.get(code, "failed")
    record(kind, exit_code=code, seconds_s=time.monotonic() - begin)
    return code == 0


@contextlib.contextmanager
def terminates() -> Iterator[None]:
    """SIGTERM and SIGHUP raise, so that the part is ended too."""

    def leave(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def show(new: list[dict[str, Any]], characters: int) -> int:
    """Print lines in few words, endings always; the number of characters that were printed."""
    texts, size = [], 0
    for line in new:
        if line["kind"] == "begin":
            continue
        values = " ".join(f"{k}={brief(v)}" for k, v in line.items() if k not in HIDDEN and v is not None)
        text = f"{line['part']}{'' if line['kind'] == 'row' else ' [' + line['kind'] + ']'} {values}"[:300]
        if size + len(text) > characters - 200 and line is not new[-1]:
            continue
        texts.append(text)
        size += len(text) + 1
    if texts:
        print("\n".join(texts), flush=True)
    return size


def brief(value: Any) -> Any:
    """Three digits are enough to look at."""
    return f"{value:.3g}" if isinstance(value, float) else value
