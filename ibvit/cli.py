"""Command line: ``ibvit <command>`` and ``train.py``. One function a command; its docstring is ``--help``.

Heavy imports stay inside the commands, so that ``--help`` and mistakes answer at once.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import tyro

from ibvit.config import TrainConfig

app = tyro.extras.SubcommandApp()


def train_main() -> None:
    """Entry of ``train.py``."""
    _run(lambda: _train(tyro.cli(TrainConfig)))


def main() -> None:
    """Entry of ``ibvit``."""
    _run(lambda: app.cli(prog="ibvit", description="Vision transformers with priced attention."))


def _train(config: TrainConfig) -> None:
    from ibvit.figures.training import draw_training
    from ibvit.training import train

    run_dir = train(config)
    if int(os.environ.get("RANK", 0)) == 0:
        picture = draw_training(run_dir)
        print(f"results: {run_dir}\npicture: {picture}")


@app.command(name="eval")
def evaluate(run: Path, repeats: int = 10, noise: Literal["sample", "mean"] = "sample", seed: int = 0) -> None:
    """Validate a run's model: accuracy (mean and s.d. over noisy passes) and information.

    Args:
        run: run folder.
        repeats: noisy passes over the validation set.
        noise: sample draws z as in training; mean sends μ.
        seed: of the noise.
    """
    from ibvit.training.commands import evaluate_run

    print(evaluate_run(run, repeats=repeats, noise=noise, seed=seed))


@app.command(name="env")
def environment() -> None:
    """Show versions, the GPU, and which backends exist and why others do not."""
    from ibvit.training.commands import describe_environment

    print(describe_environment())


def _run(command: Callable[[], Any]) -> None:
    """Run a command; what a user can mend ends in one line, not in a traceback."""
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    if int(os.environ.get("RANK", 0)) == 0:
        logging.getLogger("ibvit").setLevel(logging.INFO)
    from ibvit.training import CheckpointError, Interrupted, NonFiniteLossError

    try:
        command()
    except (ValueError, TypeError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    except (CheckpointError, NonFiniteLossError) as error:
        sys.exit(f"error: {error}")
    except Interrupted as stop:
        print(f"{stop}; run the same command to go on", file=sys.stderr)
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
