"""The picture that every run leaves: its losses, its information, and which heads are active."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ibvit.figures import style
from ibvit.run_folder import FIGURES, METRICS, read_metrics


def draw_training(run_dir: Path) -> Path:
    """Draw ``figures/training.png`` (and .pdf) of a run folder from its ``metrics.jsonl``; gives the PNG's path.

    Left: cross-entropy and validation accuracy by epoch. Right, with bottlenecks: nats per patch by epoch, and the mean
    nats of each head at the last validation, block 0 at the bottom.

    Raises:
        ValueError: the run has no metrics yet.
    """
    lines = read_metrics(run_dir)
    if not lines:
        raise ValueError(f"run: expected metrics in {run_dir / METRICS}, found none")
    validated = [line for line in lines if "val_top1" in line]
    with_kl = [line for line in validated if "val_heads" in line]
    with style.house_style():
        figure = style.new_figure(style.PAGE, 2.2)
        panels = figure.subplots(1, 4 if with_kl else 2)
        epochs = [line["epoch"] + 1 for line in lines]
        panels[0].plot(epochs, [line["train_ce"] for line in lines], label="training", marker=".")
        panels[0].plot(
            [v["epoch"] + 1 for v in validated], [v["val_ce"] for v in validated], label="validation", marker="."
        )
        panels[0].set(xlabel="epoch", ylabel="cross-entropy (nats)", yscale="log")
        panels[0].legend()
        panels[1].plot([v["epoch"] + 1 for v in validated], [v["val_top1"] for v in validated], marker=".")
        panels[1].set(xlabel="epoch", ylabel="validation accuracy (%)")
        if with_kl:
            panels[2].plot([v["epoch"] + 1 for v in with_kl], [v["val_nats_per_patch"] for v in with_kl], marker=".")
            panels[2].set(xlabel="epoch", ylabel="information (nats / patch)", yscale="log")
            heads = np.array(with_kl[-1]["val_heads"])
            image = panels[3].imshow(heads, origin="lower", aspect="auto", cmap=style.NATS, vmin=0)
            panels[3].set(xlabel="head", ylabel="block", xticks=range(heads.shape[1]), yticks=range(heads.shape[0]))
            figure.colorbar(image, ax=panels[3], label="nats / patch")
        stem = run_dir / FIGURES / "training"
        stem.parent.mkdir(exist_ok=True)
        style.save(figure, stem)
    return stem.with_suffix(".png")
