"""One look for all figures: widths, fonts, the colour of a run, and how a figure is saved.

A run's colour follows from its position in the spectrum alone, so it is the same in every figure: viridis (readable in
grey and with any colour vision) from dark blue, no attention, over log β to yellow, full attention.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.colors import ListedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from ibvit.analysis.records import RunIdentity
from ibvit.files import written_aside
from ibvit.kinds import KINDS

COLUMN = 3.25
PAGE = 6.75
"""Width of a column and of a page, in inches."""

NATS = "magma"
ATTENTION = "viridis"
MARK = "#e3342f"
INK = "#222222"
VOTES = ListedColormap(["#1b3a8c", "#7fb8e6", "#f4a3c4", "#ffffff"])
"""Votes for the class ranked 1, 2-5, 6-10 and lower in the image's own prediction."""
VOTE_LABELS = ("rank 1", "ranks 2-5", "ranks 6-10", "lower")

_LARGEST_BETA, _SMALLEST_BETA = 20.0, 5e-3
_RC: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 5,
    "figure.dpi": 100,
    "savefig.dpi": 220,
    "pdf.fonttype": 42,
    "image.interpolation": "nearest",
}


def palette_position(run: RunIdentity) -> float:
    """Position of a run in the palette: 0 without attention, by log β between, 1 with full attention.

    >>> palette_position({"name": "", "label": "", "attention": "none", "beta": None, "seed": 0})
    0.0
    """
    beta, end = run["beta"], KINDS[run["attention"]].palette
    if end is not None or beta is None:
        return end or 0.0
    if beta <= 0:
        return 0.92
    share = np.log10(_LARGEST_BETA / beta) / np.log10(_LARGEST_BETA / _SMALLEST_BETA)
    return 0.1 + 0.75 * float(np.clip(share, 0, 1))


def color(run: RunIdentity) -> str:
    """The run's colour, as #rrggbb."""
    return to_hex(mpl.colormaps["viridis"](0.97 * palette_position(run)))


@contextmanager
def house_style() -> Iterator[None]:
    """Draw inside with the fonts and lines of this project, on no screen."""
    with mpl.rc_context(_RC):
        yield


def new_figure(width: float, height: float, **options: Any) -> Figure:
    """An empty figure, inches, that lays out its axes by itself; independent of pyplot and of any display."""
    return Figure(figsize=(width, height), layout="constrained", **options)


def bare(axes: Axes) -> None:
    """Axes for a picture: no ticks, no frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def log_axis(axis: XAxis | YAxis) -> None:
    """A log scale with plain numbers at round values, few enough to read; call it after all else is drawn."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    low, high = axis.axes.get_xlim() if axis.axis_name == "x" else axis.axes.get_ylim()
    if high / low < 4:
        axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    else:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 40 else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def mark_patch(axes: Axes, patch: Any, grid: tuple[int, int], extent: tuple[int, int], mark: str = MARK) -> None:
    """Outline the patch at position `patch` of `grid` on a picture of `extent` = (height, width) pixels.

    A white seam keeps the red outline apart from the colours of the picture.
    """
    row, column = divmod(int(patch), grid[1])
    height, width = extent[0] / grid[0], extent[1] / grid[1]
    corner = (column * width - 0.5, row * height - 0.5)
    outline = mpl.patches.Rectangle(corner, width, height, fill=False, edgecolor=mark, linewidth=1.0, zorder=3)
    if mark == MARK:
        outline.set_path_effects([withStroke(linewidth=1.9, foreground="white")])
    axes.add_patch(outline)


def save(figure: Figure, stem: str | Path) -> None:
    """Write `stem`.png and `stem`.pdf."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the layout stands: no need to find it again for each file
    for suffix in ("png", "pdf"):
        with written_aside(Path(f"{stem}.{suffix}")) as partial:
            figure.savefig(partial)
