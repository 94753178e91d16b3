"""The one way to start a benchmark: ``python -m benchmarks NAME [--full]``.

Without --full a benchmark runs at toy size, to show that it runs, and writes nothing.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from benchmarks.catalogue import CATALOGUE
from benchmarks.recording import RESULTS, Document, Row, document, rounded, write

TABLES = "Generate the tables of README.md and benchmarks/README.md from the results."
COMMANDS = {
    "gpu-prepare": ("prepare", "Compile the kernels of gpu-run for sm_90, and pack them to carry; no GPU needed."),
    "gpu-run": ("run", "The prepared run on one GPU, part by part; --dry shows on a CPU that it ends."),
    "gpu-report": ("report", "Make result files and tables from the lines of gpu-run."),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a benchmark; the exit code is 1 if a case failed."""
    typed = list(sys.argv[1:] if arguments is None else arguments)
    if not typed:
        print("python -m benchmarks NAME [--full] [--results DIR] [options]\n")
        for name, entry in CATALOGUE.items():
            print(f"  {name:20} {entry.sentence}")
        print(f"\n  {'tables':20} {TABLES}")
        for name, (_, sentence) in COMMANDS.items():
            print(f"  {name:20} {sentence}")
        return 0
    if typed[0] in COMMANDS:
        return int(importlib.import_module(f"benchmarks.gpu.{COMMANDS[typed[0]][0]}").main(typed[1:]))
    if typed[0] == "tables":
        argparse.ArgumentParser("python -m benchmarks tables", description=TABLES).parse_args(typed[1:])
        from benchmarks.tables import update

        update()
        return 0
    if typed[0] not in CATALOGUE:
        print(
            f"error: expected one of {', '.join([*CATALOGUE, 'tables', *COMMANDS])}, got {typed[0]!r}", file=sys.stderr
        )
        return 2
    return 1 if measure(typed[0], typed[1:])["failed"] else 0


def measure(name: str, typed: Sequence[str] = ()) -> Document:
    """Run a benchmark with options as typed on the command line; print its rows, and write them at full size."""
    entry = CATALOGUE[name]
    parser = argparse.ArgumentParser(f"python -m benchmarks {name}", description=entry.sentence)
    parser.add_argument("--full", action="store_true", help="full size, and write the result; else toy size")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result (default: %(default)s)")
    reason = entry.why_not()
    if reason is not None:
        parser.parse_args(typed)
        parser.error(reason)
    module = importlib.import_module(f"benchmarks.{entry.module}")
    if hasattr(module, "add_options"):
        module.add_options(parser)
    options = vars(parser.parse_args(typed))
    folder = options.pop("results")
    from benchmarks.timing import as_trained

    with as_trained(options["full"]):
        benchmark = module.benchmark(**options)
        print(benchmark.what, flush=True)
        rows: list[Row] = []
        failed = []
        for label, run in benchmark.cases:
            try:
                found = run()
            except Exception:  # the other cases are worth their time
                traceback.print_exc()
                failed.append(label)
                continue
            for row in found:
                print("  " + "  ".join(f"{key} {rounded(value)}" for key, value in row.items()), flush=True)
            rows += found
        result = document(name, benchmark, shlex.join(["python", "-m", "benchmarks", name, *typed]), rows, failed)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    if options["full"]:
        print(f"wrote {write(result, folder)}")
    return result


if __name__ == "__main__":
    sys.exit(main())
