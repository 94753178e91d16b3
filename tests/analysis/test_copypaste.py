"""Copies of patches: where they go, what they leave alone, and the probe on a trained model."""

import numpy as np
import pytest
import torch

from ibvit.analysis.copypaste import CopyPaste, copy_paste, draw_positions, paste
from ibvit.analysis.recorder import RecordOptions, write_records


def test_places_are_different_and_never_the_patch_itself() -> None:
    patches = np.arange(16).repeat(20)
    places = draw_positions(patches, 15, 16, np.random.default_rng(0))
    for patch, drawn in zip(patches, places, strict=True):
        assert sorted({patch, *drawn}) == list(range(16))


def test_every_other_place_is_equally_likely() -> None:
    places = draw_positions(np.full(6000, 3), 2, 9, np.random.default_rng(1))
    counts = np.bincount(places.ravel(), minlength=9)
    assert counts[3] == 0
    np.testing.assert_allclose(np.delete(counts, 3), 12000 / 8, rtol=0.1)


@pytest.mark.parametrize("copies", [0, 16])
def test_too_many_copies(copies: int) -> None:
    with pytest.raises(ValueError, match=f"copies: expected 1 to 15 .* got {copies}"):
        draw_positions(np.array([0]), copies, 16, np.random.default_rng(0))


def test_paste_moves_whole_patches() -> None:
    # 2 × 3 patches of 2 × 4 pixels; every pixel holds its patch's number, plus its place in the patch as a fraction
    number = torch.arange(6.0).view(2, 3).repeat_interleave(2, 0).repeat_interleave(4, 1)
    images = (number + torch.arange(8.0).view(2, 4).repeat(2, 3) / 10).expand(2, 3, 4, 12)
    pasted = paste(images, torch.tensor([4, 0]), torch.tensor([[0, 2], [5, 1]]), (2, 4))
    assert pasted[0, 0, ::2, ::4].tolist() == [[4, 1, 4], [3, 4, 5]]
    assert pasted[1, 2, ::2, ::4].tolist() == [[0, 0, 2], [3, 4, 0]]
    torch.testing.assert_close(pasted % 1, images % 1)


def test_probe_on_a_model(digits_run, tmp_path) -> None:
    """The first block's μ depends on the image alone, so without copies it must be what the records hold."""
    records = write_records(digits_run, RecordOptions(attention=True, passes=1))
    result = copy_paste(records, ["0.1", "3.0"], images=20, examples=2, batch_size=8)
    assert result.copies.tolist() == [4]  # 16 copies have no room among 16 patches
    assert result.mu_aug.shape == (2, 1, 20)
    stored = records.latent("0.1")[0][result.index, result.patch, result.latents[0]]
    np.testing.assert_allclose(result.mu_0[0], stored, atol=1e-5)
    pattern = records.attention("0.1")[result.index[:2], result.patch[:2]]
    np.testing.assert_allclose(result.example_attention[0, :, 0].reshape(2, -1), pattern, atol=1e-5)
    assert result.example_places.sum(axis=(2, 3)).tolist() == [[4], [4]]
    assert result.example_images.shape == (2, 2, 8, 8, 3)
    assert np.abs(result.shift).max() > 0
    result.save(tmp_path / "probe")
    np.testing.assert_array_equal(CopyPaste.load(tmp_path / "probe").mu_aug, result.mu_aug)


def test_probe_is_seeded(digits_run) -> None:
    records = write_records(digits_run, RecordOptions(attention=True, passes=1))
    first, again, other = (copy_paste(records, ["0.0"], images=6, examples=0, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.mu_aug, again.mu_aug)
    assert not np.array_equal(first.index, other.index) or not np.array_equal(first.patch, other.patch)
