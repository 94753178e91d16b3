"""Draws Fig. 3: survival function of each head's KL, and which heads are active."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from ibvit.analysis.heads import Heads
from ibvit.figures import style
from ibvit.models.kl import ACTIVE_NATS


def draw(results: Sequence[Heads]) -> Figure:
    """A row a run: P(KL ≥ x) with a line a head, and the grid of active heads with block 0 at the bottom."""
    figure = style.new_figure(style.COLUMN, 0.5 + 1.0 * len(results))
    grid = figure.subplots(len(results), 2, width_ratios=[3.2, 1], squeeze=False)
    highest = max(result.nats[-1] for result in results)
    for (curves, cells), result in zip(grid, results, strict=True):
        blocks, per_block = result.active.shape
        shades = mpl.colormaps["cividis"](np.linspace(0, 0.95, blocks))
        for block in range(blocks):
            for head in range(per_block):
                if result.active[block, head]:
                    survival = np.where(result.survival[block, head] > 0, result.survival[block, head], np.nan)
                    curves.plot(result.nats, survival, color=shades[block], lw=1)
        curves.axvline(ACTIVE_NATS, color="0.6", lw=0.6, ls=":")
        curves.set_xscale("log")
        curves.set_yscale("log")
        curves.set_xlim(results[0].nats[0], highest * 1.3)
        curves.set_ylim(top=1.4)
        curves.set_ylabel("P(KL ≥ x)")
        curves.set_title(f"{result.run['label']}: {int(result.active.sum())} of {result.active.size} heads", loc="left")
        cells.imshow(
            result.active,
            cmap=ListedColormap(["0.9", style.color(result.run)]),
            vmin=0,
            vmax=1,
            origin="lower",
            aspect="equal",
        )
        cells.set_xticks(np.arange(per_block + 1) - 0.5, minor=True)
        cells.set_yticks(np.arange(blocks + 1) - 0.5, minor=True)
        cells.grid(which="minor", color="white", lw=1)
        cells.tick_params(which="minor", length=0)
        cells.set_xticks(range(per_block))
        cells.set_yticks([0, blocks - 1])
        cells.set_ylabel("block")
        for spine in cells.spines.values():
            spine.set_visible(False)
    grid[-1, 0].set_xlabel("x (nats per patch)")
    grid[-1, 1].set_xlabel("head")
    return figure
