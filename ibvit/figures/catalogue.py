"""Every figure of the paper by its number: which runs and heads it shows, what is measured, what is drawn.

`make_figure` saves the picture (PNG, PDF) and beside it the results behind it (npz, JSON, CSV).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from ibvit.analysis import copypaste, divergence, extremes, heads, klmaps, similarity, spectrum, voting
from ibvit.analysis.heads import SPEAKING_NATS, speaking_heads
from ibvit.analysis.records import Records, RecordsError, open_runs
from ibvit.analysis.results import Result
from ibvit.figures import copypaste as draw_copypaste
from ibvit.figures import divergence as draw_divergence
from ibvit.figures import extremes as draw_extremes
from ibvit.figures import heads as draw_heads
from ibvit.figures import klmaps as draw_klmaps
from ibvit.figures import similarity as draw_similarity
from ibvit.figures import spectrum as draw_spectrum
from ibvit.figures import style, votemaps
from ibvit.figures import voting as draw_voting

MOST_DIVERGENT = 0.1
KL_MAP_IMAGES, VOTE_MAP_IMAGES = 6, 5

Made = tuple[dict[str, Result], Figure]
"""Results by the name they are saved under ("" for the figure's own), and the figure."""


@dataclass(frozen=True)
class Entry:
    """A figure of the paper."""

    title: str
    make: Callable[[Sequence[Records]], Made]


def one_per_place(runs: Sequence[Records]) -> list[Records]:
    """The first seed of each place in the spectrum."""
    return list({run.label: run for run in reversed(runs)}.values())[::-1]


def first_to_speak(runs: Sequence[Records], wanted: str) -> list[Records]:
    """The runs with a head that speaks, most restricted first.

    Raises:
        RecordsError: there is none.
    """
    speaking = [run for run in runs if speaking_heads(run)]
    if not speaking:
        raise RecordsError(f"{wanted} needs a run with a head that spends {SPEAKING_NATS} nats per patch or more")
    return speaking


def _spectrum(runs: Sequence[Records]) -> Made:
    result = spectrum.spectrum(runs)
    return {"": result}, draw_spectrum.draw(result)


def _voting(runs: Sequence[Records]) -> Made:
    result = voting.voting(one_per_place(runs))
    return {"": result}, draw_voting.draw(result)


def _kl_maps(runs: Sequence[Records]) -> Made:
    rows = divergence.select_images(runs, KL_MAP_IMAGES, correct=True, most_divergent=MOST_DIVERGENT)
    result = klmaps.kl_maps(one_per_place(runs), rows)
    return {"": result}, draw_klmaps.draw(result)


def _heads(runs: Sequence[Records]) -> Made:
    results = [heads.heads(run) for run in one_per_place(runs) if run.beta is not None]
    if not results:
        raise RecordsError("figure 3 needs a run with bottlenecks (--attention ib)")
    return {result.run["name"]: result for result in results}, draw_heads.draw(results)


def _extremes(chosen: Sequence[tuple[Records, str]]) -> Made:
    results = [extremes.extremes(run, head) for run, head in chosen]
    return {f"{result.run['name']}-head{result.head}": result for result in results}, draw_extremes.draw(results)


def _first_heads(runs: Sequence[Records]) -> Made:
    speaking = one_per_place(first_to_speak(runs, "figure 4"))
    return _extremes([(run, speaking_heads(run)[0]) for run in speaking[:2]])


def _other_seeds(runs: Sequence[Records]) -> Made:
    speaking = first_to_speak(runs, "figure 11")
    others = [run for run in speaking[1:] if run.label == speaking[0].label]
    if not others:
        raise RecordsError(f"figure 11 needs a second seed of {speaking[0].label} with a head that speaks")
    return _extremes([(run, speaking_heads(run)[0]) for run in others[:3]])


def _other_heads(runs: Sequence[Records]) -> Made:
    speaking = one_per_place(first_to_speak(runs, "figure 12"))
    several = [run for run in speaking if len(speaking_heads(run)) > 1]
    if not several:
        raise RecordsError("figure 12 needs a run with more than one head that speaks")
    return _extremes([(several[0], head) for head in speaking_heads(several[0])[:4]])


def _copy_paste(runs: Sequence[Records]) -> Made:
    first, *more = one_per_place(first_to_speak(runs, "figure 5"))
    chosen = [(first, speaking_heads(first)[:1]), *((run, speaking_heads(run)[:2]) for run in more[:1])]
    results = [copypaste.copy_paste(run, names) for run, names in chosen]
    return {result.run["name"]: result for result in results}, draw_copypaste.draw(results)


def _similarity(runs: Sequence[Records]) -> Made:
    speaking = first_to_speak(runs, "figure 6")
    repeats = [run for run in speaking if run.label == speaking[0].label]
    others = [run for run in one_per_place(speaking) if run.label != speaking[0].label]
    result = similarity.similarity([*repeats, *others[:2]])
    return {"": result}, draw_similarity.draw(result)


def _divergence(runs: Sequence[Records]) -> Made:
    result = divergence.divergence(one_per_place(runs))
    return {"": result}, draw_divergence.draw(result)


def _vote_maps(correct: bool, most_divergent: float | None) -> Callable[[Sequence[Records]], Made]:
    def make(runs: Sequence[Records]) -> Made:
        rows = divergence.select_images(runs, VOTE_MAP_IMAGES, correct=correct, most_divergent=most_divergent)
        places = one_per_place(runs)
        votes, maps = voting.vote_maps(places, rows), klmaps.kl_maps(places, rows)
        return {"votes": votes, "kl": maps}, votemaps.draw(votes, maps)

    return make


FIGURES = {
    "1b": Entry("accuracy against information", _spectrum),
    "1c": Entry("how the patches vote", _voting),
    "2": Entry("information over the image", _kl_maps),
    "3": Entry("how often each head fires", _heads),
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
    drawn = 0
    for wanted in FIGURES if name == "all" else [name]:
        try:
            files = make_figure(wanted, runs, out)
        except RecordsError as error:
            if name != "all":
                raise
            print(f"figure {wanted}: not drawn: {error}")
            continue
        drawn += 1
        picture = next(path for path in files if path.suffix == ".png")
        print(f"figure {wanted}, {FIGURES[wanted].title}: {picture}", flush=True)
    if not drawn:
        raise ValueError("figure: none could be drawn from these runs")
