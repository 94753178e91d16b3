"""What is tested is this checkout, also in an environment that another checkout is installed in."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent
os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "kernels")))  # of the processes that tests start

# Modules that only import where an extra is installed have no examples to run elsewhere.
collect_ignore_glob = [] if find_spec("nvidia") and find_spec("nvidia.dali") else ["ibvit/data/loaders/dali*.py"]


def pytest_configure() -> None:
    for name, folder in (("ibvit", ROOT), ("ibvit_kernels", ROOT / "kernels")):
        spec = find_spec(name)
        if spec is None or spec.origin is None or not Path(spec.origin).is_relative_to(folder / name):
            raise pytest.UsageError(f"{name}: expected the package in {folder}, found {spec and spec.origin}")
