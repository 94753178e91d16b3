"""What ``ibvit eval`` and ``ibvit env`` do."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from ibvit.arguments import called
from ibvit.config import LoaderName
from ibvit.data.build import DataSpec, build_data
from ibvit.data.sets.recipes import apply_recipe
from ibvit.errors import is_installed
from ibvit.files import write_text
from ibvit.information.backends import why_missing
from ibvit.models import load
from ibvit.models.storage import fingerprint_of, read_facts
from ibvit.ops.api import why_not_native, why_not_triton
from ibvit.run_folder import EVALUATION, MODEL
from ibvit.training.distributed import Processes
from ibvit.training.evaluation import evaluate
from ibvit.training.run import check_same_data, stored_config, versions
from ibvit.training.step import amp_dtype


def evaluate_run(
    run_dir: Path,
    *,
    repeats: int = 10,
    noise: Literal["sample", "mean"] = "sample",
    seed: int = 0,
    data: str | None = None,
    loader: LoaderName | None = None,
    accept_changed_data: bool = False,
) -> str:
    """Validate a run's model and give the result as JSON; it is also written to ``evaluation.json`` in the folder.

    The result says which state of the weights and which data set it is of.

    Args:
        data, loader: instead of the run's own, if its data set has moved or DALI is missing. Another validation set of
            the same classes needs ``accept_changed_data``.

    Raises:
        FileNotFoundError: the folder is not that of a run.
        ValueError: repeats < 1; other classes; or the data set is not the run's.
    """
    if not 1 <= repeats <= 1 << 20:
        raise ValueError(f"repeats: expected at least 1 and at most {1 << 20}, got {repeats}")
    if not 0 <= seed < 1 << 63:
        raise ValueError(f"seed: expected at least 0 and less than 2^63, got {seed}")
    stored = stored_config(run_dir)
    config, _ = apply_recipe(replace(stored, data=data or stored.data, loader=loader or stored.loader))
    with Processes.from_environment(config.device) as processes:
        with called({"directory": "run"}):
            model = load(run_dir).to(processes.device)
        built = build_data(
            DataSpec.of(config), rank=processes.rank, world_size=processes.world_size, device=processes.device
        )
        amp = amp_dtype(config.amp, processes.device)
        try:
            identity = built.identity(("val",)) if processes.is_main else None
            if identity is not None:
                check_same_data(run_dir, config.data, identity, accept_changed_data)
            result = evaluate(model, built.val, processes, repeats=repeats, noise=noise, seed=seed, amp=amp)
        finally:
            built.close()
    weights = read_facts(run_dir / MODEL) or {"sha256": fingerprint_of(run_dir / MODEL)}
    document = {"noise": noise, "seed": seed} | result.as_dict() | {"weights": weights}
    if identity is not None:
        document |= {"data_sha256": identity.sha256["val"]}
    text = json.dumps(document, indent=2)
    if processes.is_main:
        write_text(run_dir / EVALUATION, text + "\n")
    return text


def describe_environment() -> str:
    """Versions, devices and backends, one per line."""
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
