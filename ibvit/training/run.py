"""The configuration of a run, written before it starts, and the checks that a resumed run has the same one."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import platform
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from ibvit import run_folder
from ibvit.config import RunConfig, as_dict, conflicts
from ibvit.data.identity import Identity
from ibvit.data.sets.recipes import Recipe
from ibvit.files import write_text
from ibvit.models.kl import Channels, convert_beta
from ibvit.models.storage import read_facts

log = logging.getLogger(__name__)

_PACKAGES = ("torch", "torchvision", "timm", "triton", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "numpy", "ibvit")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter; "absent" where one is not installed."""
    result = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            result[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            result[package] = "absent"
    result["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "absent"
    return result


def git_revision() -> str:
    """Revision of the checkout that this code runs from, with a + if it has changes; "unknown" outside one."""
    try:
        revision = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12"],
            cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return revision.stdout.strip()


def model_arguments(config: RunConfig, recipe: Recipe, num_classes: int) -> dict[str, Any]:
    """Arguments of :func:`ibvit.create_model` for a resolved configuration."""
    arguments = {
        "name": config.model,
        "attention": config.attention,
        "latent_dim": config.latent_dim,
        "hidden_dim": config.hidden_dim,
        "num_classes": num_classes,
        "img_size": config.image_size,
    }
    return arguments | (recipe.model_args if config.model == recipe.model else {})


def both_betas(config: RunConfig, channels: Channels) -> dict[str, float]:
    """β under both reductions of the KL."""
    return {
        f"beta_{target}": convert_beta(config.beta, channels, config.kl_reduction, target) for target in ("mean", "sum")
    }


def write_config(run_dir: Path, config: RunConfig, details: dict[str, Any]) -> None:
    """``config.json``: every option, what they resolve to, versions and the git revision."""
    content = as_dict(config) | details | {"versions": versions(), "git": git_revision()}
    write_text(run_dir / run_folder.CONFIG, json.dumps(content, indent=2) + "\n")


def stored_config(run_dir: Path) -> RunConfig:
    """What a finished or interrupted run is, with ``out`` pointing at the folder as it is now.

    Raises:
        FileNotFoundError, ValueError: the folder holds no configuration of a run, or one that lacks an option.
    """
    content = run_folder.read_config(run_dir)
    stored = {field.name: content[field.name] for field in fields(RunConfig) if field.name in content}
    stored["out"] = run_dir
    for name in ("pretrained", "init_from"):
        if isinstance(stored.setdefault(name, None), str):
            stored[name] = Path(stored[name])
    missing = [field.name for field in fields(RunConfig) if field.kw_only and stored.get(field.name) is None]
    if missing:
        raise ValueError(f"run: {run_dir / run_folder.CONFIG} lacks {', '.join(missing)}")
    try:
        return RunConfig(**stored)
    except (TypeError, ValueError) as error:
        raise ValueError(f"run: {run_dir / run_folder.CONFIG} holds {error}") from error


def check_same_run(run_dir: Path, config: RunConfig) -> None:
    """Refuse to resume a run of other options.

    Raises:
        ValueError: names each option that differs.
    """
    stored = run_folder.read_config(run_dir)
    differing = conflicts(config, stored)
    if differing:
        raise ValueError(f"out: {run_dir} holds a run with other options ({'; '.join(differing)}); give another --out")
    recorded = stored.get("versions")
    then = recorded.get("torch", "unknown") if isinstance(recorded, dict) else "unknown"
    now = versions()["torch"]
    if now != then:
        log.warning("%s was started with torch %s; torch %s resumes it, not bit for bit", run_dir, then, now)


def check_same_data(run_dir: Path, data: str, identity: Identity, accept: bool) -> None:
    """Refuse to resume a run whose data set has changed, unless that is accepted; other classes are always refused.

    Raises:
        ValueError: names what differs.
    """
    stored = run_folder.read_config(run_dir)
    if differing := identity.differences({"classes": stored.get("classes", list(identity.classes))}):
        raise ValueError(f"data: {data} has other classes than the data set of {run_dir} ({differing[0]})")
    differing = identity.differences(stored)
    if differing and not accept:
        raise ValueError(
            f"data: {data} is not the data set of {run_dir} ({'; '.join(differing)}); "
            "--accept-changed-data continues with it"
        )
    if differing:
        log.warning("%s continues with changed data (%s)", run_dir, "; ".join(differing))


def is_finished(config: RunConfig) -> bool:
    """Whether the recorded progress of a run has reached its last epoch, or ``max_steps``.

    Weights of the first edition do not store their step; the metrics of the run do.
    """
    model = config.out / run_folder.MODEL
    if not model.is_file():
        return False
    try:
        facts = read_facts(model)
    except ValueError:  # damaged: training resumes from the checkpoint, and writes it again
        return False
    if "step" in facts:
        epoch, step = facts["epoch"], facts["step"]
    else:
        lines, stored = run_folder.read_metrics(config.out), run_folder.read_config(config.out)
        step = lines[-1]["step"] if lines else 0
        epoch = step // max(1, stored.get("images", {}).get("train", 0) // config.batch_size)
    return epoch >= config.epochs or (config.max_steps is not None and step >= config.max_steps)
