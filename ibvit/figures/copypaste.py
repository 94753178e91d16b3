"""Draws Fig. 5: the copy-paste probe, as examples and as the shift of every message."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from ibvit.analysis.copypaste import CopyPaste
from ibvit.figures import style


def draw_copy_paste(results: Sequence[CopyPaste]) -> Figure:
    """Above: one image with more and more copies, and the attention of the copied patch in the first head.
    Below: μ_aug − μ_0 against μ_0, one panel per head."""
    panels = [(result, k) for result in results for k in range(len(result.heads))]
    figure = style.new_figure(style.PAGE, 5.0)
    halves: Any = figure.subfigures(2, 1, height_ratios=[1.25, 1])
    above, below = halves
    _draw_examples(above, results[0])
    axes = below.subplots(1, len(panels), squeeze=False)[0]
    for panel, (result, k) in zip(axes, panels, strict=True):
        _draw_shifts(panel, result, k)
    axes[0].set_ylabel("$μ_{aug} - μ_0$")
    handles, labels = axes[0].get_legend_handles_labels()
    below.legend(handles, labels, loc="outside lower center", ncols=len(labels), markerscale=4)
    return figure


def _draw_shifts(axes: Any, result: CopyPaste, k: int) -> None:
    shades = mpl.colormaps["plasma"](np.linspace(0.8, 0.1, len(result.copies)))
    for amount, shade in enumerate(shades):
        label = f"{result.copies[amount]} copies"
        axes.plot(
            result.mu_0[k],
            result.shift[k, amount],
            ".",
            ms=2.5,
            mew=0,
            alpha=0.6,
            color=shade,
            label=label,
            rasterized=True,
        )
    axes.axhline(0, color="0.5", lw=0.6, zorder=0)
    axes.locator_params(axis="x", nbins=4)
    axes.set_xlabel("$μ_0$")
    axes.set_title(f"{result.run['label']}, head {result.heads[k]}")


def _draw_examples(figure: Any, result: CopyPaste) -> None:
    examples, amounts = result.example_images.shape[:2]
    count = min(2, examples)
    grid = result.example_places.shape[2:]
    extent = result.example_images.shape[2:4]
    axes = figure.subplots(2, count * amounts, squeeze=False)
    for cell in axes.flat:
        style.bare(cell)
    for example in range(count):
        patch = result.patch[example]
        highest = result.example_attention[0, example].max()
        for amount in range(amounts):
            top, bottom = axes[:, example * amounts + amount]
            top.imshow(result.example_images[example, amount])
            bottom.imshow(result.example_attention[0, example, amount], cmap=style.ATTENTION, vmin=0, vmax=highest)
            if amount:
                for position in np.flatnonzero(result.example_places[example, amount - 1]):
                    style.mark_patch(bottom, position, grid, grid, mark="#ffffff")
            style.mark_patch(top, patch, grid, extent)
            style.mark_patch(bottom, patch, grid, grid)
            top.set_title("image" if amount == 0 else f"{result.copies[amount - 1]} copies", fontsize=7)
            mu = result.mu_0[0, example] if amount == 0 else result.mu_aug[0, amount - 1, example]
            bottom.set_xlabel(f"μ = {mu:+.2f}", fontsize=7)
    axes[0, 0].set_ylabel("image", fontsize=7)
    axes[1, 0].set_ylabel(f"attention, {result.heads[0]}", fontsize=7)
