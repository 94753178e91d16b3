"""What ``ibvit eval`` and ``ibvit env`` do."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from ibvit.config import LoaderName
from ibvit.data.build import DataSpec, build_data
from ibvit.data.sets.recipes import apply_recipe
from ibvit.errors import is_installed
from ibvit.information.backends import why_missing
from ibvit.models import load
from ibvit.ops.api import why_not_native, why_not_triton
from ibvit.run_folder import EVALUATION
from ibvit.training.distributed import Processes
from ibvit.training.evaluation import evaluate
from ibvit.training.run import stored_config, versions
from ibvit.training.step import amp_dtype


def evaluate_run(
    run_dir: Path,
    *,
    repeats: int = 10,
    noise: Literal["sample", "mean"] = "sample",
    seed: int = 0,
    data: str | None = None,
    loader: LoaderName | None = None,
) -> str:
    """Validate a run's model and give the result as JSON; it is also written to ``evaluation.json`` in the folder.

    ``data`` and ``loader`` take the place of the run's own, where its data have moved or DALI is missing.

    Raises:
        FileNotFoundError: the folder is not that of a finished run.
        ValueError: repeats < 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats: expected at least 1, got {repeats}")
    stored = stored_config(run_dir)
    config, _ = apply_recipe(replace(stored, data=data or stored.data, loader=loader or stored.loader))
    with Processes.from_environment(config.device) as processes:
        model = load(run_dir).to(processes.device)
        built = build_data(
            DataSpec.of(config), rank=processes.rank, world_size=processes.world_size, device=processes.device
        )
        amp = amp_dtype(config.amp, processes.device)
        try:
            if len(built.classes) != model.num_classes:
                raise ValueError(
                    f"data: expected the run's {model.num_classes} classes, found {len(built.classes)} in {config.data}"
                )
            result = evaluate(model, built.val, processes, repeats=repeats, noise=noise, seed=seed, amp=amp)
        finally:
            built.close()
    text = json.dumps({"noise": noise, "seed": seed} | result.as_dict(), indent=2)
    if processes.is_main:
        (run_dir / EVALUATION).write_text(text + "\n")
    return text


def describe_environment() -> str:
    """Versions, devices and backends, a line each."""
    lines = [f"{name:22} {version}" for name, version in versions().items()]
    lines.append(f"{'platform':22} {platform.platform()}, {len(os.sched_getaffinity(0))} cores")
    for backend, obstacle in (
        ("bottleneck, CPU", why_not_native()),
        ("bottleneck, GPU", why_not_triton()),
        ("estimator, CPU", why_missing("native")),
        ("estimator, GPU", why_missing("triton") if torch.cuda.is_available() else "torch sees no CUDA device"),
    ):
        lines.append(f"{backend:22} {'available' if obstacle is None else f'not available: {obstacle}'}")
    for purpose, module, extra in (
        ("loader, DALI", "nvidia.dali", "dali"),
        ("data, digits", "sklearn", "digits"),
        ("figures, report", "matplotlib", "figures"),
    ):
        state = "available" if is_installed(module) else f"not installed (pip install 'ibvit[{extra}]')"
        lines.append(f"{purpose:22} {state}")
    if torch.cuda.is_available():
        lines += [f"{'cuda ' + str(i):22} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    return "\n".join(lines)
