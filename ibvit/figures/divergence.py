"""Draws Fig. 7: divergence of classifications from both ends of the spectrum, in five bins."""

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from ibvit.analysis.divergence import BIN_EDGES, Divergence
from ibvit.figures import style


def draw_divergence(result: Divergence) -> Figure:
    """A stacked bar per run: share of validation images in each bin, from `none` above and from `full` below."""
    figure = style.new_figure(style.COLUMN, 3.6)
    rows = figure.subplots(2, 1, sharex=True)
    shades = mpl.colormaps["magma"](np.linspace(0.92, 0.15, len(BIN_EDGES) - 1))
    x = np.arange(len(result.runs))
    for axes, shares, end in zip(rows, result.shares(), ("no attention", "full attention"), strict=True):
        bottom = np.zeros(len(x))
        for k, shade in enumerate(shades):
            label = f"{BIN_EDGES[k]:.1f}-{BIN_EDGES[k + 1]:.1f}"
            axes.bar(x, 100 * shares[:, k], bottom=bottom, color=shade, edgecolor=style.INK, linewidth=0.3, label=label)
            bottom += 100 * shares[:, k]
        axes.set_ylabel("images (%)")
        axes.set_title(f"divergence from {end}", loc="left")
        axes.set_ylim(0, 100)
    rows[1].set_xticks(x, [run["label"] for run in result.runs], rotation=45, ha="right")
    handles, labels = rows[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, title="Jensen-Shannon divergence (bits)",
                  columnspacing=0.8, handlelength=1.0, handletextpad=0.4)  # fmt: skip
    return figure
