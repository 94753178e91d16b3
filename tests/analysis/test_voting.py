"""Votes of constructed patches, whose range, variety and ranks are known."""

import numpy as np
import pytest

from ibvit.analysis.records import Records
from ibvit.analysis.voting import VoteMaps, Voting, effective_classes, logit_range, vote_maps, vote_ranks, voting
from tests.analysis.constructed import CLASSES, IMAGES


def votes_for(*classes: int) -> np.ndarray:
    """One image whose patches vote for the given classes, [1, patches, CLASSES]."""
    return np.eye(CLASSES)[list(classes)][None]


@pytest.mark.parametrize(
    ("classes", "expected"),
    [((2, 2, 2, 2), 1.0), ((0, 1, 2, 3), 4.0), ((0, 0, 0, 1), 1 / (0.75**2 + 0.25**2))],
    ids=["consensus", "all differ", "three to one"],
)
def test_effective_number_of_classes(classes: tuple[int, ...], expected: float) -> None:
    assert effective_classes(votes_for(*classes)).item() == pytest.approx(expected)


def test_logit_range_spans_patches_and_classes() -> None:
    votes = np.zeros((2, 3, 4))
    votes[0, 0, 0], votes[0, 2, 3] = -5.0, 7.0
    assert logit_range(votes).tolist() == [12.0, 0.0]


def test_ranks_follow_the_prediction_of_the_image() -> None:
    votes = votes_for(3, 3, 3, 1, 1, 4)
    assert vote_ranks(votes).tolist() == [[1, 1, 1, 2, 2, 3]]


def test_voting_covers_every_image_of_every_run(spectrum_runs: list[Records]) -> None:
    result = voting(spectrum_runs)
    assert result.logit_range.shape == result.effective_classes.shape == (5, IMAGES)
    assert np.all((result.effective_classes >= 1) & (result.effective_classes <= CLASSES))
    expected = np.asarray(spectrum_runs[0].patch_logits)
    np.testing.assert_allclose(result.logit_range[0], np.ptp(expected.reshape(IMAGES, -1), axis=1))


def test_vote_maps_and_round_trip(spectrum_runs: list[Records], tmp_path) -> None:
    rows = np.array([3, 8])
    result = vote_maps(spectrum_runs, rows)
    assert result.ranks.shape == (5, 2, 4, 4)
    assert result.ranks.min() == 1
    labels = spectrum_runs[0].labels[rows]
    assert (result.predicted == labels).all()  # the constructed votes favour the true class
    result.save(tmp_path / "votes")
    loaded = VoteMaps.load(tmp_path / "votes")
    assert loaded.runs == result.runs
    np.testing.assert_array_equal(loaded.ranks, result.ranks)


def test_load_refuses_another_result(spectrum_runs: list[Records], tmp_path) -> None:
    voting(spectrum_runs).save(tmp_path / "votes")
    with pytest.raises(ValueError, match="holds a Voting, expected a VoteMaps"):
        VoteMaps.load(tmp_path / "votes")
    with pytest.raises(ValueError, match="does not exist"):
        Voting.load(tmp_path / "absent")


def test_csv_holds_a_row_a_run(spectrum_runs: list[Records], tmp_path) -> None:
    voting(spectrum_runs).save(tmp_path / "votes")
    lines = (tmp_path / "votes.csv").read_text().splitlines()
    assert lines[0].startswith("run,")
    assert len(lines) == 1 + len(spectrum_runs)
