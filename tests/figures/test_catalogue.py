"""Every figure drawn from constructed runs: what it shows, what is saved, and what is said when runs are missing."""

import csv
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from ibvit.analysis.heads import heads
from ibvit.analysis.records import Records, RecordsError
from ibvit.analysis.spectrum import Spectrum, spectrum
from ibvit.figures import catalogue, style
from ibvit.figures.catalogue import FIGURES, first_seeds, make_figure, make_figures
from ibvit.figures.heads import draw_heads
from ibvit.figures.spectrum import draw_spectrum


def test_every_figure_of_the_paper_is_there() -> None:
    assert list(FIGURES) == ["1b", "1c", *map(str, range(2, 13))]


@pytest.fixture(scope="module")
def drawn(varied_runs: list[Records], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Figure]]:
    """`ibvit figure all`: the folder, and the figures as they were saved."""
    folder, figures, save = tmp_path_factory.mktemp("figures"), {}, style.save

    def keep(figure: Figure, stem: Path) -> None:
        save(figure, stem)
        figures[stem.name.removeprefix("fig")] = figure

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "save", keep)
        patch.setattr(catalogue, "VOTE_MAP_IMAGES", 2)
        make_figures("all", [run.run for run in varied_runs], folder)
    return folder, figures


@pytest.mark.parametrize("name", list(FIGURES))
def test_figure_is_saved_with_its_data(name: str, drawn: tuple[Path, dict[str, Figure]]) -> None:
    files = list(drawn[0].glob(f"fig{name}[.-]*"))
    assert {path.suffix for path in files} == {".png", ".pdf", ".npz", ".json", ".csv"}
    assert all(path.stat().st_size > 0 for path in files)
    for table in (path for path in files if path.suffix == ".csv"):
        header, *rows = csv.reader(table.open())
        assert rows
        assert {len(row) for row in rows} == {len(header)}


@pytest.mark.parametrize("name", list(FIGURES))
def test_nothing_is_cut_off(name: str, drawn: tuple[Path, dict[str, Figure]]) -> None:
    figure = drawn[1][name]
    assert figure.get_figwidth() == (style.COLUMN if name in ("1b", "1c", "3", "7") else style.PAGE)
    drawn_area, edge = figure.get_tightbbox(), figure.bbox_inches
    slack = 0.01  # inches: the antialiased edge of a line
    assert min(drawn_area.x0, drawn_area.y0) >= -slack
    assert drawn_area.x1 <= edge.x1 + slack
    assert drawn_area.y1 <= edge.y1 + slack


def test_spectrum_shows_every_run_at_its_place(varied_runs: list[Records]) -> None:
    result = spectrum(varied_runs)
    left, middle, right = draw_spectrum(result).axes
    marks = [len(axes.containers) for axes in (left, middle, right)]
    assert marks == [1, 4, 1]
    shown = sorted(float(bar[0].get_xdata()[0]) for bar in middle.containers)
    np.testing.assert_allclose(shown, np.sort(result.nats_per_patch[result.bottlenecked]))


def test_heads_draws_a_line_for_each_active_head(varied_runs: list[Records]) -> None:
    results = [heads(run) for run in first_seeds(varied_runs) if run.beta is not None]
    axes = draw_heads(results).axes
    counts = [len(panel.lines) - 1 for panel in axes[::2]]  # one line is the threshold
    assert counts == [1, 2, 3]


def test_saved_results_draw_the_same_figure(varied_runs: list[Records], tmp_path: Path) -> None:
    make_figure("1b", varied_runs, tmp_path)
    again = draw_spectrum(Spectrum.load(tmp_path / "fig1b"))
    assert len(again.axes) == 3


def test_unknown_figure_names_the_valid_ones(varied_runs: list[Records], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected one of 1b, 1c, 2, .*12 or all, got '13'"):
        make_figures("13", [run.run for run in varied_runs], tmp_path)
    with pytest.raises(ValueError, match="expected one of 1b"):
        make_figure("13", varied_runs, tmp_path)


@pytest.mark.parametrize(
    ("name", "kept", "message"),
    [
        ("7", slice(0, -1), "--attention full"),
        ("8", slice(1, -1), "--attention full"),
        ("3", slice(0, 1), "needs a run with bottlenecks"),
        ("4", slice(0, 1), "figure 4 needs a run with a head that spends"),
        ("11", slice(2, None), "second seed of β = 10"),
        ("12", slice(0, 3), "more than one head that is active on average"),
    ],
)
def test_missing_runs_are_named(
    name: str, kept: slice, message: str, varied_runs: list[Records], tmp_path: Path
) -> None:
    with pytest.raises(RecordsError, match=message):
        make_figure(name, varied_runs[kept], tmp_path)


def test_all_says_what_it_cannot_draw(
    varied_runs: list[Records], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(catalogue, "FIGURES", {name: FIGURES[name] for name in ("1b", "7")})
    make_figures("all", [run.run for run in varied_runs[:-1]], tmp_path)
    said = capsys.readouterr().out
    assert "figure 1b, accuracy against information:" in said
    assert "figure 7: not drawn: runs: expected a run with --attention full" in said
    assert not (tmp_path / "fig7.png").exists()


def test_colour_follows_the_place_alone(varied_runs: list[Records]) -> None:
    assert style.color(varied_runs[1].identity) == style.color(varied_runs[2].identity)
    assert catalogue.first_seeds(varied_runs)[1].seed == 0
