"""Draws Fig. 2: nats per patch over the image, one colour range per run."""

from matplotlib.figure import Figure

from ibvit.analysis.klmaps import KLMaps
from ibvit.figures import style


def draw_kl_maps(result: KLMaps) -> Figure:
    """One row per image, one column per run; the bar under each column gives its range in nats."""
    rows, columns = len(result.index), 1 + len(result.runs)
    size = style.PAGE / columns
    figure = style.new_figure(style.PAGE, rows * size + 0.75)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        style.bare(axes)
    for row in range(rows):
        grid[row, 0].imshow(result.images[row])
        grid[row, 0].set_ylabel(result.labels[row], fontsize=6)
    grid[0, 0].set_title("image")
    for column, run in enumerate(result.runs, start=1):
        grid[0, column].set_title(run["label"])
        for row in range(rows):
            picture = grid[row, column].imshow(
                result.maps[column - 1, row], cmap=style.NATS, vmin=0, vmax=max(result.highest[column - 1], 1e-9)
            )
        bar = grid[-1, column].inset_axes([0.05, -0.2, 0.9, 0.07])
        figure.colorbar(picture, cax=bar, orientation="horizontal", label="nats per patch")
    return figure
