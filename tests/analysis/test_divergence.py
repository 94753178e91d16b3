"""Jensen-Shannon divergence against closed forms and SciPy, and the choice of images."""

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from ibvit.analysis.divergence import divergence, jensen_shannon, select_images, softmax
from ibvit.analysis.records import Records, RecordsError


def test_agrees_with_scipy() -> None:
    p, q = np.random.default_rng(0).dirichlet(np.ones(7), size=(2, 50))
    expected = [jensenshannon(a, b, base=2) ** 2 for a, b in zip(p, q, strict=True)]
    np.testing.assert_allclose(jensen_shannon(p, q), expected, atol=1e-12)


def test_bounds_and_symmetry() -> None:
    p, q = np.array([0.5, 0.5, 0.0]), np.array([0.0, 0.0, 1.0])
    assert jensen_shannon(p, p) == 0.0
    assert jensen_shannon(p, q) == pytest.approx(1.0)  # nothing in common: one bit
    assert jensen_shannon(p, q) == jensen_shannon(q, p)


def test_softmax_of_large_logits() -> None:
    np.testing.assert_allclose(softmax(np.array([1000.0, 1000.0, -1000.0])), [0.5, 0.5, 0.0])


def test_ends_do_not_diverge_from_themselves(spectrum_runs: list[Records]) -> None:
    result = divergence(spectrum_runs)
    assert result.from_none[0].max() == 0.0
    assert result.from_full[-1].max() == 0.0
    shares = result.shares()[0]
    assert shares.shape == (5, 5)
    np.testing.assert_allclose(shares.sum(axis=1), 1.0)
    assert shares[0].tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]


def test_a_missing_end_is_named(spectrum_runs: list[Records]) -> None:
    with pytest.raises(RecordsError, match="expected a run with --attention full"):
        divergence(spectrum_runs[:-1])


def test_selection_is_seeded_and_meets_its_conditions(spectrum_runs: list[Records]) -> None:
    full = spectrum_runs[-1]
    full.logits[0, :6] = -np.asarray(full.logits[0, :6])  # six images are now classified wrongly, far from `none`
    wrong = select_images(spectrum_runs, 10, correct=False)
    assert wrong.tolist() == [0, 1, 2, 3, 4, 5]
    assert select_images(spectrum_runs, 4, correct=True).min() >= 6
    assert set(select_images(spectrum_runs, 10, most_divergent=0.2)) <= set(range(6))
    assert select_images(spectrum_runs, 4, seed=3).tolist() == select_images(spectrum_runs, 4, seed=3).tolist()
    with pytest.raises(RecordsError, match="no image meets"):
        select_images(spectrum_runs, 4, correct=True, most_divergent=0.1)
