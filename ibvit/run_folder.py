"""The run folder: the names of what is in it, and the readers of what every later step reads.

config.json          every option, what they resolve to, versions and the git revision
metrics.jsonl        one line per epoch
checkpoints/         what resuming needs
model.safetensors    the weights
records/             what the model did with every validation image (`ibvit record`)
figures/             pictures of this run
evaluation.json      the last `ibvit eval`
bad_images.txt       files that were replaced or converted
tracking.json        id of the run at Weights & Biases or trackio
train.log            what training printed, in a sweep
.lock                names the process that trains, as long as it runs
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONFIG = "config.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
MODEL = "model.safetensors"
RECORDS = "records"
FIGURES = "figures"
EVALUATION = "evaluation.json"
BAD_IMAGES = "bad_images.txt"
TRACKING = "tracking.json"
LOG = "train.log"
LOCK = ".lock"


def read_config(folder: Path, argument: str = "run") -> dict[str, Any]:
    """``config.json`` of a run folder.

    Args:
        argument: what the caller's user calls the folder, for messages.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not the configuration of a run.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{argument}: expected a run folder with {CONFIG}, found none in {folder}")
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{argument}: {path} is not the configuration of a run ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("architecture"), dict):
        raise ValueError(f"{argument}: {path} is not the configuration of a run (it holds no architecture)")
    return content


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``, up to the first that is not a whole line of a run; none if there is no file."""
    path = folder / METRICS
    lines: list[dict[str, Any]] = []
    for text in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            break
        if not isinstance(line, dict) or not all(type(line.get(name)) is int for name in ("epoch", "step")):
            break
        lines.append(line)
    return lines
