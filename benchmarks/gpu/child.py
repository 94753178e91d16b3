"""One part in its process: ``python -m benchmarks.gpu.child NAME MODULE FOLDER [--dry]``."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from typing import Any

from benchmarks.gpu import lines


def main(name: str, module: str, folder: str, dry: bool) -> int:
    """Run ``module.measure``; the exit code is 1 if it raised, which is recorded."""
    record = lines.recorder(Path(folder), name)
    found: dict[bool, list[str]] = {True: [], False: []}
    if not dry:
        try:
            from triton import knobs

            def count(*, src: Any, cache_hit: bool, **_: object) -> None:
                if getattr(src.fn, "__module__", "").startswith("ibvit_kernels"):  # not those of torch.compile
                    found[cache_hit].append(src.name)

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
            record("triton cache", hits=len(found[True]), misses=len(found[False]), missed=" ".join(found[False])[:300])
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4], dry="--dry" in sys.argv[4:]))
