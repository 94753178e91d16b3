"""The range of versions in pyproject.toml is the one that the suite is run with."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_lower_ends_are_those_that_are_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    tested = [*project["dependencies"], *extras["test"], *extras["dali"], *extras["digits"], *extras["figures"]]
    tested += [*extras["slurm"], *extras["tensorboard"]]
    bounds = dict(re.match(r"([\w-]+)>=([\d.]+)", line).groups() for line in tested if not line.startswith("ibvit["))
    lines = (ROOT / "tests" / "oldest.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert {name: version.removesuffix(".0") for name, version in pins.items()} == {
        name: version.removesuffix(".0") for name, version in bounds.items()
    }
    assert re.findall("[a-z]+", " ".join(line for line in extras["test"] if line.startswith("ibvit["))) == [
        "ibvit", "digits", "figures", "slurm", "tensorboard",
    ]  # fmt: skip
