"""What bounds the kernels, and whether they race: ncu and compute-sanitizer on one layer, where they are on PATH.

``python -m benchmarks.gpu.why BATCH TOKENS`` is what the two look at.
"""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

from benchmarks.gpu import shapes
from benchmarks.gpu.launches import Layer
from benchmarks.gpu.lines import Record, cases

KERNELS = "regex:forward_kernel|backward_kernel"
METRICS = {
    "gpu__time_duration.sum": "time",
    "sm__inst_executed.avg.per_cycle_active": "instructions_per_cycle",
    "sm__pipe_tensor_op_hmma_cycles_active.avg.pct_of_peak_sustained_active": "tensor_percent",
    "dram__bytes.sum": "dram_bytes",
    "sm__warps_active.avg.per_cycle_active": "warps_active",
    "smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio": "stalled_at_barriers",
    "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio": "stalled_for_memory",
    "launch__registers_per_thread": "registers",
}


def measure(record: Record, folder: Path, dry: bool) -> None:
    if dry:
        one_layer(1, 3, dry=True)
        record("note", note="one layer ran; ncu and compute-sanitizer need a GPU")
        return
    cases(record, [("ncu", partial(ncu, record, folder)), ("racecheck", partial(racecheck, record, folder))])


def one_layer(batch: int, tokens: int, dry: bool = False) -> None:
    layer = Layer(*shapes.timed(dry), batch, tokens, block=0)
    layer.forward()
    layer.backward()


def target(batch: int, tokens: int) -> list[str]:
    return [sys.executable, "-m", "benchmarks.gpu.why", str(batch), str(tokens)]


def ncu(record: Record, folder: Path) -> None:
    """One launch each. The clocks stay as they are: the card is not ours to set."""
    if shutil.which("ncu") is None:
        record("note", note="ncu is not on PATH")
        return
    options = ["--clock-control", "none", "--kernel-name", KERNELS, "--launch-count", "3", "--csv", "--page", "raw"]
    command = ["ncu", *options, "--metrics", ",".join(METRICS), *target(256, 196)]
    done = subprocess.run(command, capture_output=True, text=True)
    (folder / "ncu.csv").write_text(done.stdout + done.stderr)
    lines = [line for line in done.stdout.splitlines() if line.startswith('"')]
    if done.returncode or len(lines) < 3:
        raise RuntimeError(f"ncu: exit code {done.returncode}: {done.stdout[-300:]} {done.stderr[-200:]}")
    heads, units, *rows = csv.reader(lines)
    for row in rows:
        values = dict(zip(heads, row, strict=False))
        unit = dict(zip(heads, units, strict=False))
        found = {short: f"{values[name]} {unit[name]}".strip() for name, short in METRICS.items() if name in values}
        record("ncu", kernel=values.get("Kernel Name", "")[:60], **found)


def racecheck(record: Record, folder: Path) -> None:
    if shutil.which("compute-sanitizer") is None:
        record("note", note="compute-sanitizer is not on PATH")
        return
    command = ["compute-sanitizer", "--tool", "racecheck", "--error-exitcode", "9", *target(1, 20)]
    done = subprocess.run(command, capture_output=True, text=True)
    (folder / "racecheck.txt").write_text(done.stdout + done.stderr)
    summary = [line for line in (done.stdout + done.stderr).splitlines() if "SUMMARY" in line]
    record(check="racecheck", right=done.returncode == 0, exit_code=done.returncode, summary=" ".join(summary)[:200])


if __name__ == "__main__":
    one_layer(*map(int, sys.argv[1:3]))
