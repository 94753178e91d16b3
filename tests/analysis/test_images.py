"""Maps, extreme patches and their pictures on constructed runs."""

import numpy as np
import pytest
import torch

from ibvit.analysis.extremes import Extremes, carrying_latent, extremes
from ibvit.analysis.images import normalised_images, read_images
from ibvit.analysis.klmaps import KLMaps, kl_maps
from ibvit.analysis.records import Records, RecordsError


def test_images_come_in_the_order_asked_for(spectrum_runs: list[Records], constructed_images: torch.Tensor) -> None:
    rows = np.array([23, 0, 11, 11])
    assert torch.equal(normalised_images(spectrum_runs[0], rows), constructed_images[rows])


def test_pictures_span_black_to_white(spectrum_runs: list[Records], constructed_images: torch.Tensor) -> None:
    pictures = read_images(spectrum_runs[0], np.array([0, 20]))
    assert pictures.shape == (2, 8, 8, 3)
    assert pictures[0, 0, 0].tolist() == [0, 0, 0]
    assert pictures[0, 7, 7].tolist() == [255, 255, 255]


def test_kl_maps_sum_over_heads(spectrum_runs: list[Records], constructed_images: torch.Tensor, tmp_path) -> None:
    result = kl_maps(spectrum_runs, np.array([4, 5]))
    assert [run["name"] for run in result.runs] == ["beta10", "beta10-seed1", "beta1"]
    expected = np.zeros((4, 4))
    expected[1, 1] = 3.0  # patch 5, heads 0.1 and 1.0 of β = 1
    np.testing.assert_allclose(result.maps[2, 0], expected)
    np.testing.assert_allclose(result.maps[2, 1], 0.0)
    assert result.highest.tolist() == [0.5, 0.5, 3.0]
    assert result.labels == ["class 4", "class 0"]
    result.save(tmp_path / "maps")
    np.testing.assert_array_equal(KLMaps.load(tmp_path / "maps").images, result.images)


def test_extremes_are_the_patches_that_pay(spectrum_runs: list[Records], constructed_images: torch.Tensor) -> None:
    result = extremes(spectrum_runs[1], "1.0", count=3)
    assert isinstance(result, Extremes)
    assert (result.head, result.latent) == ("1.0", 1)
    assert result.mu.tolist() == [-1.0] * 3 + [1.0] * 3
    assert set(result.patch) == {5}
    assert all(index % 4 == 2 for index in result.index[:3])
    assert all(index % 4 == 0 for index in result.index[3:])
    np.testing.assert_allclose(result.kl, 0.5)
    assert result.attention.shape == (6, 4, 4)
    assert (result.attention.reshape(6, -1).argmax(axis=1) == 10).all()


def test_extremes_need_attention(spectrum_runs: list[Records], constructed_images: torch.Tensor) -> None:
    del spectrum_runs[1].meta["arrays"]["attention"]  # type: ignore[attr-defined]
    with pytest.raises(RecordsError, match="--attention"):
        extremes(spectrum_runs[1], "1.0")


def test_carrying_latent(spectrum_runs: list[Records]) -> None:
    mu, _ = spectrum_runs[1].latent("1.0")
    mu[:, :, 2] = 5.0
    assert carrying_latent(spectrum_runs[1], "1.0") == 1  # the file is mapped anew; only this mapping was changed
