"""Draws Figs. 8-10: how the patches of chosen images vote in each run, and where the information goes."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ibvit.analysis.klmaps import KLMaps
from ibvit.analysis.voting import VoteMaps
from ibvit.figures import style

GAP = 0.12  # between one image's rows and the next one's, in heights of a map


def draw_vote_maps(votes: VoteMaps, maps: KLMaps) -> Figure:
    """Two rows per image, one column per run: the votes in four colours, and the KL maps of runs with bottlenecks."""
    images, columns = len(votes.index), 1 + len(votes.runs)
    size = style.PAGE / columns
    figure = style.new_figure(style.PAGE, images * (2 + GAP) * size + 0.7)
    grid = figure.subplots(3 * images, columns, squeeze=False, height_ratios=images * [1, 1, GAP])
    bottlenecked = {run["name"]: k for k, run in enumerate(maps.runs)}
    for axes in grid.flat:
        style.bare(axes)
    for axes in grid[2::3].flat:
        axes.set_axis_off()
    grid[0, 0].set_title("image", fontsize=7)
    for row in range(images):
        image, legend = grid[3 * row : 3 * row + 2, 0]
        image.imshow(maps.images[row])
        image.set_ylabel(maps.labels[row], fontsize=6)
        legend.set_axis_off()
        legend.text(1, 0.5, "nats per patch", fontsize=6, ha="right", va="center", in_layout=False)
        for column, run in enumerate(votes.runs):
            above, below = grid[3 * row : 3 * row + 2, column + 1]
            above.imshow(np.digitize(votes.ranks[column, row], [1.5, 5.5, 10.5]), cmap=style.VOTES, vmin=-0.5, vmax=3.5)
            for spine in above.spines.values():
                spine.set(visible=True, color="0.7")
            if run["name"] in bottlenecked:
                k = bottlenecked[run["name"]]
                below.imshow(maps.maps[k, row], cmap=style.NATS, vmin=0, vmax=max(maps.highest[k], 1e-9))
                if row == images - 1:
                    below.set_xlabel(f"0 (dark) to {float(f'{maps.highest[k]:.2g}'):g}", fontsize=6)
            if row == 0:
                above.set_title(run["label"].replace(" attention", "\nattention"), fontsize=7)
    handles = [
        Patch(facecolor=style.VOTES(k), edgecolor="0.5", linewidth=0.4, label=label)
        for k, label in enumerate(style.VOTE_LABELS)
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=4, title="patch's top class in the image's ranking"
    )
    return figure
