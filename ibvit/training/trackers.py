"""TensorBoard, Weights & Biases and trackio: what a run sends to them, and its identity there."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from ibvit.errors import MissingExtraError
from ibvit.run_folder import TRACKING, read_config

_PROJECT = "ibvit"
_ENTRIES = {"tensorboard": ("torch.utils.tensorboard", "SummaryWriter")}  # of the others: <name>.init

Send = Callable[[dict[str, float], int], None]


def tracker_entry(track: str) -> Any:
    """The class or function that opens a tracker.

    Raises:
        MissingExtraError: the tracker's package is not installed.
    """
    module, name = _ENTRIES.get(track, (track, "init"))
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:  # a folder "wandb" imports as a package that has nothing in it
        raise MissingExtraError(f"track: {track}", track, track) from error


def open_tracker(track: str, run_dir: Path) -> tuple[Send, Callable[[], None]]:
    """Functions that send the values of a step, and that close the tracker.

    The tracker also gets ``config.json`` of the run. A run that is resumed continues its own tracked run: by the
    identity in ``tracking.json``, not by its name.

    Args:
        track: "none", "tensorboard", "wandb" or "trackio".
        run_dir: a run folder with its config.json.

    Raises:
        MissingExtraError: the tracker's package is not installed.
    """
    if track == "none":
        return lambda values, step: None, lambda: None
    entry, config = tracker_entry(track), read_config(run_dir)
    if track == "tensorboard":
        writer = entry(str(run_dir / "tensorboard"))
        writer.add_text("config", f"```json\n{json.dumps(config, indent=2)}\n```")

        def send(values: dict[str, float], step: int) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

        return send, writer.close
    identity, name = _identity(run_dir), run_dir.resolve().name
    if track == "wandb":
        run = entry(project=_PROJECT, dir=str(run_dir), name=name, id=identity, resume="allow", config=config)
    else:  # trackio identifies a run by its name alone
        run = entry(project=_PROJECT, name=f"{name}-{identity[:8]}", resume="allow", config=config)
    return lambda values, step: run.log(values, step=step), run.finish


def _identity(run_dir: Path) -> str:
    """The run's own id, made when it is first tracked."""
    path = run_dir / TRACKING
    if not path.exists():
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps({"id": uuid.uuid4().hex}) + "\n")
        partial.replace(path)
    try:
        identity = json.loads(path.read_text())["id"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"track: expected the id of a tracked run in {path}, found none ({error})") from error
    return str(identity)


def numbers(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line of metrics: KL by head, and how many heads are active; the step goes beside them.

    Example:
        >>> numbers({"val_ce": 0.5, "val_heads": [[0.1, 0.2], [0.0, 0.3]], "val_active_heads": ["0.1", "1.1"]})
        ... # doctest: +NORMALIZE_WHITESPACE
        {'val_ce': 0.5, 'val_heads/0.0': 0.1, 'val_heads/0.1': 0.2, 'val_heads/1.0': 0.0, 'val_heads/1.1': 0.3,
         'val_active_heads': 2}
    """
    result: dict[str, float] = {}
    for name, value in line.items():
        if name == "step":
            continue  # also a reserved name of trackio
        if name == "val_heads":
            result |= {
                f"{name}/{block}.{head}": kl for block, heads in enumerate(value) for head, kl in enumerate(heads)
            }
        elif isinstance(value, list):
            result[name] = len(value)
        elif isinstance(value, int | float):
            result[name] = value
    return result
