"""NMI between constructed heads: the same message in another head, and unrelated ones."""

import numpy as np
import pytest

from ibvit.analysis.records import Records, RecordsError
from ibvit.analysis.similarity import Similarity, similarity
from tests.analysis.constructed import changed


def test_the_same_message_in_another_head_is_recognised(spectrum_runs: list[Records], tmp_path) -> None:
    result = similarity(spectrum_runs[1:4])
    assert result.heads == ["1.0", "1.1", "1.0", "0.1"]  # strongest first in each run
    assert result.nmi[0, 1] == pytest.approx(1.0, abs=1e-3)
    assert np.all(result.nmi[0, 2:] > 0.5)  # the same images, in a larger voice
    np.testing.assert_allclose(result.nmi, result.nmi.T)
    result.save(tmp_path / "nmi")
    assert Similarity.load(tmp_path / "nmi").heads == result.heads
    assert len((tmp_path / "nmi.csv").read_text().splitlines()) == 1 + 4 * 3 // 2


def test_unrelated_heads_share_nothing(make_run) -> None:
    folder = make_run("run", "ib", active={"0.0": 1.0, "1.1": 1.0})
    with changed(folder, "mu") as mu:
        mu[:, :, 5, 1] = 0
        mu[0, :, :8, 1] = 3.0  # one head tells the upper half of the image from the lower one,
        mu[1, :, ::2, 1] = 3.0  # the other the even columns from the odd ones
    result = similarity([Records.open(folder)])
    assert result.nmi[0, 1] == pytest.approx(0.0, abs=5e-3)


def test_only_the_strongest_heads(spectrum_runs: list[Records]) -> None:
    assert similarity(spectrum_runs, most=1).heads == ["1.0", "1.1", "1.0"]


def test_what_a_whisper_shares_is_not_a_number(make_run) -> None:
    """Messages of little information in noise: no affordable number of draws tells what they share, and none is made
    up; nor does the search for one go on for hours."""
    folder = make_run("run", "ib", active={"0.0": 1.0, "1.1": 1.0})
    with changed(folder, "mu") as mu:
        mu[:] = 0.02 * np.random.default_rng(0).normal(size=mu.shape)
    result = similarity([Records.open(folder)], samples=1024)
    assert np.isnan(result.nmi[0, 1])
    assert result.nmi[0, 0] == 1.0


def test_no_head_is_active_on_average(make_run) -> None:
    with pytest.raises(RecordsError, match=r"at least one run with a head that spends 0\.01 nats per patch"):
        similarity([Records.open(make_run("run", "ib", active={"1.0": 0.1}))])


def test_text_that_a_spreadsheet_would_take_for_a_formula(make_run, tmp_path) -> None:
    result = similarity([Records.open(make_run("=cmd", "ib", active={"0.0": 1.0, "1.1": 1.0}))], samples=64)
    result.save_csv(tmp_path / "nmi")
    assert (tmp_path / "nmi.csv").read_text().splitlines()[1].startswith("'=cmd,0.0,")
