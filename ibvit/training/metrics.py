"""Where metrics go: ``metrics.jsonl``, and a tracker when asked."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ibvit.files import write_text
from ibvit.run_folder import METRICS, read_metrics
from ibvit.training.trackers import numbers, open_tracker


class MetricsWriter:
    """Appends one JSON object per epoch to ``metrics.jsonl``.

    Args:
        run_dir: the run folder, with its config.json.
        track: "none", "tensorboard", "wandb" or "trackio".
    """

    def __init__(self, run_dir: Path, track: str) -> None:
        self._path = run_dir / METRICS
        self._is_first = True
        self._send, self._close = open_tracker(track, run_dir)

    def write(self, line: dict[str, Any]) -> None:
        """Append a line; the first one replaces those of the same and of later epochs, which a resumed run repeats."""
        if self._is_first:
            earlier_lines = [earlier for earlier in read_metrics(self._path.parent) if earlier["epoch"] < line["epoch"]]
            write_text(self._path, "".join(json.dumps(earlier) + "\n" for earlier in earlier_lines))
            self._is_first = False
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._send(numbers(line), line["step"])

    def close(self) -> None:
        self._close()
