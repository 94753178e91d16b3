"""Draws Fig. 6: NMI of the first active head with the heads of other runs, and between the heads of two runs."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ibvit.analysis.similarity import Similarity
from ibvit.figures import style

MOST_NUMBERS = 70  # of cells, each with its value


def draw_similarity(result: Similarity) -> Figure:
    """Left: bars with standard errors against the first head of the first run. Right: the heads of the two runs that
    follow it in the spectrum, against each other. A question mark: the head sends too little to estimate its NMI."""
    figure = style.new_figure(style.PAGE, 2.6)
    left, right = figure.subplots(1, 2, width_ratios=[1.8, 1])
    others = np.arange(1, len(result.heads))
    left.bar(
        others,
        result.nmi[0, others],
        yerr=np.nan_to_num(result.stderr[0, others], posinf=0.0),
        color=[style.color(result.runs[k]) for k in others],
        edgecolor=style.INK,
        linewidth=0.4,
        error_kw={"elinewidth": 0.8},
    )
    for k in others[np.isnan(result.nmi[0, others])]:
        left.text(k, 0.02, "?", ha="center", fontsize=7, color="0.4")
    left.axhline(0, color=style.INK, lw=0.6)
    left.set_xticks(others, [result.heads[k] for k in others], rotation=90, fontsize=6)
    left.set_ylim(min(0.0, 1.1 * np.nanmin(result.nmi - result.stderr)), 1.0)
    left.set_xlim(0.4, max(others, default=1) + 0.6)
    left.set_ylabel("NMI")
    left.set_title(
        f"with head {result.heads[0]} of {result.runs[0]['label']}, seed {result.runs[0]['seed']}", loc="left"
    )
    _name_runs(left, result, others)
    _draw_pair(figure, right, result)
    return figure


def _name_runs(axes: Axes, result: Similarity, others: np.ndarray) -> None:
    """The run's name under each group of bars."""
    names = [result.runs[k]["name"] for k in others]
    for name in dict.fromkeys(names):
        members = others[[other == name for other in names]]
        run = result.runs[members[0]]
        axes.text(
            members.mean(), -0.24, f"{run['label']}\nseed {run['seed']}", ha="center", va="top", fontsize=6,
            transform=axes.get_xaxis_transform(), color="0.3",
        )  # fmt: skip
        if members[-1] != others[-1]:
            axes.axvline(members[-1] + 0.5, color="0.85", lw=0.6, zorder=0)


def _draw_pair(figure: Figure, axes: Axes, result: Similarity) -> None:
    labels = list(dict.fromkeys(run["label"] for run in result.runs))
    pair = labels[1:3] if len(labels) > 2 else labels[:2] * (2 // max(1, len(labels[:2])))
    first, second = (_heads_of(result, label) for label in (pair[0], pair[-1]))
    values = result.nmi[np.ix_(first, second)]
    picture = axes.imshow(values, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        ink = "black" if value > 0.6 or np.isnan(value) else "white"
        number = f"{value:.2f}" if values.size <= MOST_NUMBERS else ""
        axes.text(column, row, "?" if np.isnan(value) else number, ha="center", va="center", fontsize=6, color=ink)
    axes.set_yticks(range(len(first)), [result.heads[k] for k in first], fontsize=6)
    axes.set_xticks(range(len(second)), [result.heads[k] for k in second], fontsize=6, rotation=90)
    axes.set_ylabel(f"head, {result.runs[first[0]]['label']}")
    axes.set_xlabel(f"head, {result.runs[second[0]]['label']}")
    figure.colorbar(picture, ax=axes, label="NMI")


def _heads_of(result: Similarity, label: str) -> np.ndarray:
    """Indices of the heads of the first run with this label."""
    name = next(run["name"] for run in result.runs if run["label"] == label)
    return result.of_run(name)
