"""Draws Figs. 4, 11 and 12: the patches on which heads spend most, negative messages left, positive ones right."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ibvit.analysis.extremes import Extremes
from ibvit.figures import style


def draw_extremes(results: Sequence[Extremes]) -> Figure:
    """Two rows per head: the image with the patch outlined, and the patch's attention over it."""
    sides = [[np.flatnonzero(result.mu < 0), np.flatnonzero(result.mu > 0)] for result in results]
    half = max(positions.size for pair in sides for positions in pair)
    size = style.PAGE / (2 * half)
    figure = style.new_figure(style.PAGE, len(results) * (2 * size + 0.4))
    panels: Any = figure.subfigures(len(results), 1, squeeze=False)
    for panel, result, pair in zip(panels[:, 0], results, sides, strict=True):
        panel.suptitle(
            f"{result.run['label']} (seed {result.run['seed']}), head {result.head}: patches of at least "
            f"{result.threshold:.2g} nats, and their attention",
            fontsize=8,
            x=0.01,
            ha="left",
        )
        axes = panel.subplots(2, 2 * half, squeeze=False)
        for cell in axes.flat:
            cell.set_axis_off()  # cells that get a patch switch their axes on
        for offset, positions, sign in zip((0, half), pair, ("negative", "positive"), strict=True):
            if not positions.size:
                axes[0, offset].text(
                    0, 0.5, f"none of these is {sign}", fontsize=7, color="0.4", va="center",
                    transform=axes[0, offset].transAxes, in_layout=False,
                )  # fmt: skip
            for column, k in enumerate(positions, start=offset):
                _draw_patch(axes[:, column], result, k)
    return figure


def _draw_patch(axes: np.ndarray, result: Extremes, k: Any) -> None:
    grid = result.attention.shape[1:]
    height, width = result.images.shape[1:3]
    for cell in axes:
        cell.set_axis_on()
        style.bare(cell)
    axes[0].imshow(result.images[k])
    axes[0].set_title(f"μ = {result.mu[k]:+.2f}", fontsize=6, pad=2)
    style.mark_patch(axes[0], result.patch[k], grid, (height, width))
    axes[1].imshow(result.attention[k], cmap=style.ATTENTION, vmin=0)
    style.mark_patch(axes[1], result.patch[k], grid, grid)
