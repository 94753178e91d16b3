"""One part in its process: ``python -m benchmarks.gpu.child NAME MODULE FOLDER [--dry]``."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path

from benchmarks.gpu import lines


def main(name: str, module: str, folder: str, dry: bool) -> int:
    """Run ``module.measure``; the exit code is 1 if it raised, which is recorded."""
    record = lines.recorder(Path(folder), name)
    found = {True: 0, False: 0}
    if not dry:
        try:
            from triton import knobs

            def count(*, cache_hit: bool, **_: object) -> None:
                found[cache_hit] += 1

            knobs.compilation.listener = count
        except ImportError:
            pass
    try:
        importlib.import_module(module).measure(record, Path(folder), dry)
    except Exception as error:
        traceback.print_exc()
        record("error", error=lines.short(error))
        return 1
    finally:
        if any(found.values()):
            record("triton cache", hits=found[True], misses=found[False])
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4], dry="--dry" in sys.argv[4:]))
