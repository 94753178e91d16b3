"""Draws Fig. 1b: accuracy against nats per patch."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ibvit.analysis.spectrum import Spectrum
from ibvit.figures import style
from ibvit.kinds import KINDS


def draw_spectrum(result: Spectrum) -> Figure:
    """Runs with bottlenecks on a log axis, the two ends of the spectrum in panels of their own on either side."""
    figure = style.new_figure(style.COLUMN, 2.7)
    left, middle, right = figure.subplots(1, 3, sharey=True, width_ratios=[1, 7, 1])
    for run, nats, accuracy, spread in zip(
        result.runs, result.nats_per_patch, 100 * result.accuracy, 100 * result.accuracy_std, strict=True
    ):
        end = KINDS[run["attention"]].nats
        axes = middle if end is None else left if end == 0 else right
        x = nats if end is None else 0.0
        error = spread if end is None else None
        axes.errorbar(
            x,
            accuracy,
            error,
            fmt="o",
            color=style.color(run),
            mec=style.INK,
            mew=0.5,
            ecolor=style.INK,
            elinewidth=0.8,
        )
    front = result.pareto & result.bottlenecked & (result.nats_per_patch > 0)
    order = np.argsort(result.nats_per_patch[front])
    if len(order) > 1:
        middle.plot(
            result.nats_per_patch[front][order],
            100 * result.accuracy[front][order],
            color="0.75",
            lw=1,
            zorder=0,
            label="Pareto front",
        )
    slope, error = result.slope()
    if np.isfinite(slope):
        uncertainty = f" ± {100 * error:.1f}" if np.isfinite(error) else ""
        middle.set_title(
            f"{round(100 * slope, 1) + 0.0:+.1f}{uncertainty} points for each factor e of information",
            color="0.35",
            fontsize=7,
        )
    middle.margins(0.12, 0.12)
    style.log_axis(middle.xaxis)
    middle.set_xlabel("information (nats per patch)")
    left.set_ylabel("top-1 accuracy (%)")
    for axes, label in ((left, "no\nattention"), (right, "full\nattention")):
        axes.set_xticks([0.0], [label])
        axes.set_xlim(-1, 1)
    for axes in (middle, right):
        axes.spines.left.set_visible(False)
        axes.tick_params(left=False)
    _explain(figure, result, middle)
    return figure


def _explain(figure: Figure, result: Spectrum, axes: Axes) -> None:
    """A legend of β: labels beside the points would lie on each other where runs are close."""
    betas = {run["label"]: style.color(run) for run in result.runs if run["beta"] is not None}
    points = [Line2D([], [], ls="", marker="o", color=color, mec=style.INK, mew=0.5) for color in betas.values()]
    lines, names = axes.get_legend_handles_labels()
    figure.legend([*points, *lines], [*betas, *names], loc="outside lower center", ncols=4, columnspacing=1.0,
                  handletextpad=0.3)  # fmt: skip
