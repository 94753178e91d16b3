"""Draws Fig. 1c: how the patches of an image vote, one dot per image."""

from matplotlib.figure import Figure

from ibvit.analysis.voting import Voting
from ibvit.figures import style


def draw_voting(result: Voting) -> Figure:
    """Effective number of classes against the range of patch logits; medians with interquartile ranges on top."""
    figure = style.new_figure(style.COLUMN, 2.7)
    axes = figure.subplots()
    spread, variety = result.quartiles()
    for k, run in enumerate(result.runs):
        color = style.color(run)
        axes.plot(
            result.logit_range[k],
            result.effective_classes[k],
            ".",
            ms=2,
            alpha=0.25,
            mew=0,
            color=color,
            rasterized=True,
            zorder=1,
        )
        axes.errorbar(
            spread[1, k],
            variety[1, k],
            xerr=abs(spread[[0, 2], k] - spread[1, k])[:, None],
            yerr=abs(variety[[0, 2], k] - variety[1, k])[:, None],
            fmt="o",
            color=color,
            mec=style.INK,
            mew=0.6,
            ecolor=style.INK,
            elinewidth=0.8,
            label=run["label"],
            zorder=3,
        )
    style.log_axis(axes.xaxis)
    style.log_axis(axes.yaxis)
    axes.set_xlabel("range of patch logits (max - min)")
    axes.set_ylabel("effective number of classes")
    figure.legend(loc="outside lower center", ncols=3, columnspacing=1.0, handletextpad=0.3)
    return figure
