"""Draws Fig. 3: survival function of each head's KL, and which heads are active."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ibvit.analysis.heads import Heads
from ibvit.figures import style


def draw_heads(results: Sequence[Heads]) -> Figure:
    """One row per run: P(KL ≥ x) with one line per head, and the grid of active heads with block 0 at the bottom.

    Lines and cells of one block have one colour.
    """
    figure = style.new_figure(style.COLUMN, 0.5 + 1.0 * len(results))
    grid = figure.subplots(len(results), 2, width_ratios=[3.2, 1], squeeze=False)
    highest = max(result.nats[-1] for result in results)
    rarest = min(result.survival[result.survival > 0].min(initial=1.0) for result in results)
    for (curves, cells), result in zip(grid, results, strict=True):
        shades = mpl.colormaps["cividis"](np.linspace(0, 0.9, len(result.active)))  # [blocks, 4]
        _draw_survival(curves, result, shades)
        _draw_active(cells, result, shades)
        curves.set(xlim=(results[0].nats[0], highest * 1.3), ylim=(rarest / 1.5, 1.5))
    grid[-1, 0].set_xlabel("x (nats per patch)")
    grid[-1, 1].set_xlabel("head")
    return figure


def _draw_survival(axes: Axes, result: Heads, shades: np.ndarray) -> None:
    for block, head in zip(*np.nonzero(result.active), strict=True):
        share = result.survival[block, head]
        axes.plot(result.nats, np.where(share > 0, share, np.nan), color=shades[block], lw=1)
    axes.axvline(result.threshold, color="0.6", lw=0.6, ls=":")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylabel("P(KL ≥ x)")
    count = f"{int(result.active.sum())} of {result.active.size} heads active"
    axes.set_title(f"{result.run['label']}: {count}", loc="left")


def _draw_active(axes: Axes, result: Heads, shades: np.ndarray) -> None:
    blocks, per_block = result.active.shape
    idle = np.array([0.9, 0.9, 0.9, 1.0])
    axes.imshow(np.where(result.active[:, :, None], shades[:, None], idle), origin="lower", aspect="equal")
    axes.set_xticks(np.arange(per_block + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(blocks + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", lw=1)
    axes.tick_params(which="minor", length=0)
    axes.set_xticks(range(per_block))
    axes.set_yticks([0, blocks - 1])
    axes.set_ylabel("block")
    for spine in axes.spines.values():
        spine.set_visible(False)
