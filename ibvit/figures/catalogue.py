"""Every figure of the paper by its number: which runs and heads it shows, what is measured, what is drawn.

`make_figure` saves the picture (PNG, PDF) and beside it the results behind it (npz, JSON, CSV).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from ibvit.analysis import copypaste, divergence, extremes, heads, klmaps, similarity, spectrum, voting
from ibvit.analysis.heads import ACTIVE_NATS, mean_active_heads
from ibvit.analysis.records import Records, RecordsError, open_runs
from ibvit.analysis.results import Result
from ibvit.figures import style
from ibvit.figures.copypaste import draw_copy_paste
from ibvit.figures.divergence import draw_divergence
from ibvit.figures.extremes import draw_extremes
from ibvit.figures.heads import draw_heads
from ibvit.figures.klmaps import draw_kl_maps
from ibvit.figures.similarity import draw_similarity
from ibvit.figures.spectrum import draw_spectrum
from ibvit.figures.votemaps import draw_vote_maps
from ibvit.figures.voting import draw_voting

MOST_DIVERGENT = 0.1
KL_MAP_IMAGES, VOTE_MAP_IMAGES = 6, 5

Drawing = tuple[dict[str, Result], Figure]
"""Results by the name they are saved under ("" for the figure's own), and the figure."""


@dataclass(frozen=True)
class Entry:
    """A figure of the paper."""

    title: str
    make: Callable[[Sequence[Records]], Drawing]


def first_seeds(runs: Sequence[Records]) -> list[Records]:
    """Of runs that differ in their seed alone, the first."""
    return list({run.label: run for run in reversed(runs)}.values())[::-1]


def runs_with_messages(runs: Sequence[Records], figure: str) -> list[Records]:
    """The runs with a head that is active on average, most restricted first.

    Raises:
        RecordsError: there is none.
    """
    active_runs = [run for run in runs if mean_active_heads(run)]
    if not active_runs:
        raise RecordsError(f"{figure} needs a run with a head that spends {ACTIVE_NATS} nats per patch or more")
    return active_runs


def _spectrum(runs: Sequence[Records]) -> Drawing:
    result = spectrum.spectrum(runs)
    return {"": result}, draw_spectrum(result)


def _voting(runs: Sequence[Records]) -> Drawing:
    result = voting.voting(first_seeds(runs))
    return {"": result}, draw_voting(result)


def _kl_maps(runs: Sequence[Records]) -> Drawing:
    rows = divergence.select_images(runs, KL_MAP_IMAGES, correct=True, most_divergent=MOST_DIVERGENT)
    result = klmaps.kl_maps(first_seeds(runs), rows)
    return {"": result}, draw_kl_maps(result)


def _heads(runs: Sequence[Records]) -> Drawing:
    results = [heads.heads(run) for run in first_seeds(runs) if run.beta is not None]
    if not results:
        raise RecordsError("figure 3 needs a run with bottlenecks (--attention ib)")
    return {result.run["name"]: result for result in results}, draw_heads(results)


def _extremes(run_heads: Sequence[tuple[Records, str]]) -> Drawing:
    results = [extremes.extremes(run, head) for run, head in run_heads]
    return {f"{result.run['name']}-head{result.head}": result for result in results}, draw_extremes(results)


def _first_heads(runs: Sequence[Records]) -> Drawing:
    active_runs = first_seeds(runs_with_messages(runs, "figure 4"))
    return _extremes([(run, mean_active_heads(run)[0]) for run in active_runs[:2]])


def _other_seeds(runs: Sequence[Records]) -> Drawing:
    active_runs = runs_with_messages(runs, "figure 11")
    others = [run for run in active_runs[1:] if run.label == active_runs[0].label]
    if not others:
        raise RecordsError(
            f"figure 11 needs a second seed of {active_runs[0].label} with a head that is active on average"
        )
    return _extremes([(run, mean_active_heads(run)[0]) for run in others[:3]])


def _other_heads(runs: Sequence[Records]) -> Drawing:
    active_runs = first_seeds(runs_with_messages(runs, "figure 12"))
    several = [run for run in active_runs if len(mean_active_heads(run)) > 1]
    if not several:
        raise RecordsError("figure 12 needs a run with more than one head that is active on average")
    return _extremes([(several[0], head) for head in mean_active_heads(several[0])[:4]])


def _copy_paste(runs: Sequence[Records]) -> Drawing:
    first, *more = first_seeds(runs_with_messages(runs, "figure 5"))
    selection = [(first, mean_active_heads(first)[:1]), *((run, mean_active_heads(run)[:2]) for run in more[:1])]
    results = [copypaste.copy_paste(run, names) for run, names in selection]
    return {result.run["name"]: result for result in results}, draw_copy_paste(results)


def _similarity(runs: Sequence[Records]) -> Drawing:
    active_runs = runs_with_messages(runs, "figure 6")
    repeats = [run for run in active_runs if run.label == active_runs[0].label]
    others = [run for run in first_seeds(active_runs) if run.label != active_runs[0].label]
    result = similarity.similarity([*repeats, *others[:2]])
    return {"": result}, draw_similarity(result)


def _divergence(runs: Sequence[Records]) -> Drawing:
    result = divergence.divergence(first_seeds(runs))
    return {"": result}, draw_divergence(result)


def _vote_maps(correct: bool, most_divergent: float | None) -> Callable[[Sequence[Records]], Drawing]:
    def make(runs: Sequence[Records]) -> Drawing:
        rows = divergence.select_images(runs, VOTE_MAP_IMAGES, correct=correct, most_divergent=most_divergent)
        firsts = first_seeds(runs)
        votes, maps = voting.vote_maps(firsts, rows), klmaps.kl_maps(firsts, rows)
        return {"votes": votes, "kl": maps}, draw_vote_maps(votes, maps)

    return make


FIGURES = {
    "1b": Entry("accuracy against information", _spectrum),
    "1c": Entry("how the patches vote", _voting),
    "2": Entry("information over the image", _kl_maps),
    "3": Entry("how often each head is active", _heads),
    "4": Entry("extreme patches of the first heads", _first_heads),
    "5": Entry("response to copies of a patch", _copy_paste),
    "6": Entry("similarity of heads", _similarity),
    "7": Entry("divergence from both ends", _divergence),
    "8": Entry("votes and information, images classified correctly", _vote_maps(True, None)),
    "9": Entry("votes and information, images on which the ends disagree", _vote_maps(True, MOST_DIVERGENT)),
    "10": Entry("votes and information, images classified wrongly", _vote_maps(False, None)),
    "11": Entry("extreme patches, other seeds", _other_seeds),
    "12": Entry("extreme patches, other heads", _other_heads),
}


def make_figure(name: str, runs: Sequence[Records], out: str | Path) -> list[Path]:
    """Measure and draw one figure from runs in the order of `ibvit.analysis.records.open_runs`.

    Returns:
        The files written, in `out`: fig<name>.png, .pdf, and the results behind them.

    Raises:
        ValueError: no such figure, or the runs lack what it shows; the message says which.
    """
    if name not in FIGURES:
        raise ValueError(f"figure: expected one of {', '.join(FIGURES)}, got {name!r}")
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"fig{name}"
    with style.house_style():
        results, figure = FIGURES[name].make(runs)
        style.save(figure, stem)
    for part, result in results.items():
        result.save(f"{stem}-{part}" if part else stem)
    return sorted(folder.glob(f"fig{name}[.-]*"))


def make_figures(name: str, run_dirs: Sequence[str | Path], out: str | Path) -> None:
    """What `ibvit figure` does: draw one figure, or with "all" every one that these runs can show.

    Raises:
        ValueError: as `make_figure`; with "all", only if no figure could be drawn.
    """
    if name not in (*FIGURES, "all"):
        raise ValueError(f"figure: expected one of {', '.join(FIGURES)} or all, got {name!r}")
    runs = open_runs(run_dirs)
    count = 0
    for number in FIGURES if name == "all" else [name]:
        try:
            files = make_figure(number, runs, out)
        except RecordsError as error:
            if name != "all":
                raise
            print(f"figure {number}: not drawn: {error}")
            continue
        count += 1
        picture = next(path for path in files if path.suffix == ".png")
        print(f"figure {number}, {FIGURES[number].title}: {picture}", flush=True)
    if not count:
        raise ValueError("figure: none could be drawn from these runs")
