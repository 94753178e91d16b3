"""Where metrics go: ``metrics.jsonl``, and TensorBoard or Weights & Biases when asked."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ibvit.errors import MissingExtraError
from ibvit.files import write_text
from ibvit.run_folder import METRICS, read_metrics


class MetricsWriter:
    """Appends one JSON object per epoch to ``metrics.jsonl``.

    Args:
        run_dir: the run folder.
        track: "none", "tensorboard" or "wandb".
        config: the run's options, for the tracker.
    """

    def __init__(self, run_dir: Path, track: str, config: dict[str, Any]) -> None:
        self._path = run_dir / METRICS
        self._is_first = True
        self._send, self._close = _tracker(track, run_dir, config)

    def write(self, line: dict[str, Any]) -> None:
        """Append a line; the first one replaces those of the same and of later epochs, which a resumed run repeats."""
        if self._is_first:
            kept = [earlier for earlier in read_metrics(self._path.parent) if earlier["epoch"] < line["epoch"]]
            write_text(self._path, "".join(json.dumps(earlier) + "\n" for earlier in kept))
            self._is_first = False
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._send({key: value for key, value in line.items() if isinstance(value, int | float)}, line["step"])

    def close(self) -> None:
        self._close()


def _tracker(
    track: str, run_dir: Path, config: dict[str, Any]
) -> tuple[Callable[[dict[str, float], int], None], Callable[[], None]]:
    if track == "tensorboard":
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError("track: tensorboard", "tensorboard", "tensorboard") from error
        writer = SummaryWriter(str(run_dir / "tensorboard"))

        def send(values: dict[str, float], step: int) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

        return send, writer.close
    if track == "wandb":
        try:
            import wandb
        except ImportError as error:
            raise MissingExtraError("track: wandb", "wandb", "wandb") from error
        run = wandb.init(
            project="ibvit", dir=str(run_dir), name=run_dir.name, id=run_dir.name, resume="allow", config=config
        )
        return lambda values, step: run.log(values, step=step), run.finish
    return lambda values, step: None, lambda: None
