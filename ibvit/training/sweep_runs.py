"""The runs of a sweep: which there are, what trains each, and whether it is finished."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ibvit.config import TrainConfig, command_line
from ibvit.data.sets.recipes import apply_recipe
from ibvit.kinds import KINDS, EndName
from ibvit.run_folder import CONFIG
from ibvit.training.run import check_same_run, is_finished


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep, and its state on disk."""

    config: TrainConfig

    @property
    def folder(self) -> Path:
        return self.config.run_dir

    @property
    def finished(self) -> bool:
        """Whether the run has recorded that it reached its end.

        Raises:
            ValueError: the folder holds a run with other options.
        """
        run, _ = apply_recipe(replace(self.config, out=self.folder))
        if (self.folder / CONFIG).is_file():
            check_same_run(self.folder, run)
        return is_finished(run)

    @property
    def command(self) -> list[str]:
        """The command that trains the run: on all GPUs of this machine together, or on its one device."""
        gpus = torch.cuda.device_count()
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}"] if gpus > 1 else []
        return [sys.executable, *launcher, "-m", "ibvit", "train", *command_line(self.config)]


def plan(
    betas: Sequence[float],
    seeds: Sequence[int],
    ends: Sequence[EndName],
    common: TrainConfig,
    folder: Path,
) -> list[SweepRun]:
    """The runs of a sweep, seed by seed along the spectrum, so that an early stop leaves whole spectra.

    Args:
        common: options of all runs; beta, seed, attention and out are the sweep's own.
        folder: where the run folders go, under their usual names.

    Raises:
        ValueError: there is nothing to run, or `common` sets what the sweep sets.
    """
    for name in ("beta", "seed", "attention", "out"):
        value, default = getattr(common, name), getattr(TrainConfig(), name)
        if value != default:
            raise ValueError(f"train.{name}: the sweep sets it; expected {default}, got {value}")
    points: list[dict[str, object]] = []
    for name, kind in KINDS.items():
        if kind.has_kl:
            points += [{"attention": name, "beta": beta} for beta in sorted(set(betas), reverse=True)]
        elif name in ends:
            points.append({"attention": name})
    if not points or not seeds:
        raise ValueError("betas: expected at least one run: give --betas or --attention, and --seeds")
    configs = [replace(common, seed=seed, **point) for seed in dict.fromkeys(seeds) for point in points]  # type: ignore[arg-type]
    return [SweepRun(replace(config, out=folder / config.run_dir.name)) for config in configs]
