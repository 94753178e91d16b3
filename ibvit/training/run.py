"""The run folder: what a run is, written down before it starts, and what it leaves behind."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ibvit.config import TrainConfig, as_dict, conflicts
from ibvit.data.recipes import Recipe
from ibvit.models.kl import Channels, convert_beta
from ibvit.run_folder import CONFIG, read_config

_PACKAGES = ("torch", "torchvision", "timm", "triton", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "numpy", "ibvit")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter; "absent" where one is not installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    found["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "absent"
    return found


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


def architecture(config: TrainConfig, recipe: Recipe, num_classes: int) -> dict[str, Any]:
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


def both_betas(config: TrainConfig, channels: Channels) -> dict[str, float]:
    """β under both reductions of the KL."""
    return {
        f"beta_{target}": convert_beta(config.beta, channels, config.kl_reduction, target) for target in ("mean", "sum")
    }


def write_config(run_dir: Path, config: TrainConfig, details: dict[str, Any]) -> None:
    """``config.json``: every option, what they resolve to, versions and the git revision."""
    run_dir.mkdir(parents=True, exist_ok=True)
    content = as_dict(config) | details | {"versions": versions(), "git": git_revision()}
    partial = run_dir / (CONFIG + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(run_dir / CONFIG)


def stored_config(run_dir: Path) -> TrainConfig:
    """The options of a finished or interrupted run, with ``out`` pointing at the folder as it is now."""
    content = read_config(run_dir)
    known = {name: content[name] for name in TrainConfig.__dataclass_fields__ if name in content}
    known["pretrained"] = Path(known["pretrained"]) if known.get("pretrained") else None
    return replace(TrainConfig(**known), out=run_dir)


def check_same_run(run_dir: Path, config: TrainConfig) -> None:
    """Refuse to resume a run of other options.

    Raises:
        ValueError: names each option that differs.
    """
    differing = conflicts(config, read_config(run_dir))
    if differing:
        raise ValueError(f"out: {run_dir} holds a run with other options ({'; '.join(differing)}); give another --out")
