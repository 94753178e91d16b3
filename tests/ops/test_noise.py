"""The noise is Philox4x32-10 with the documented layout, and nothing but its address decides it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ibvit.ops.noise import evaluation_key, noise_key, philox4x32, standard_normal

# Random123's known answers (kat_vectors, philox4x32 10): counter, key, output.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS, ids=["zeros", "ones", "pi"])
def test_philox_known_answers(counter, key, output):
    result = philox4x32([torch.tensor(word) for word in words(counter)], words(key))
    assert [int(word) for word in result] == words(output)


def test_layout_against_numpy_integers():
    """The same address spelled out in Python integers, one latent at a time."""
    seed, step, first, block = (7 << 32) + 5, 12, 3, 11
    eps = standard_normal(noise_key(seed, step, first), block, batch=2, heads=3, tokens=4, latents=8)
    for b, h, n, j in [(0, 0, 0, 0), (1, 2, 3, 7), (1, 1, 2, 5), (0, 2, 1, 2)]:
        counter = [(block << 20) | (h << 8) | (j // 4), n, first + b, step]
        word = [int(w) for w in philox4x32([torch.tensor(c) for c in counter], [5, 7])]
        pair = word[:2] if j % 4 < 2 else word[2:]
        radius = np.sqrt(-2 * np.log(pair[0] / 2**32 + 2**-33))
        angle = 2 * np.pi * pair[1] / 2**32
        expected = radius * (np.cos(angle) if j % 2 == 0 else np.sin(angle))
        assert float(eps[b, h, n, j]) == pytest.approx(expected, abs=2e-6)


def test_golden_values():
    eps = standard_normal(noise_key(0), block=0, batch=1, heads=1, tokens=1, latents=4).flatten()
    golden = [0.9911377429962158, -0.9246624112129211, -0.6176088452339172, -0.4820687472820282]
    torch.testing.assert_close(eps, torch.tensor(golden), atol=2e-6, rtol=0)


def test_same_noise_for_any_split_of_the_batch():
    whole = standard_normal(noise_key(1, 2), block=3, batch=6, heads=2, tokens=5, latents=8)
    parts = [standard_normal(noise_key(1, 2, first), 3, 2, 2, 5, 8) for first in (0, 2, 4)]
    assert torch.equal(whole, torch.cat(parts))


def test_every_coordinate_matters():
    base = standard_normal(noise_key(1, 2), block=3, batch=1, heads=2, tokens=2, latents=8)
    assert base.unique().numel() == base.numel()
    for other in (noise_key(2, 2), noise_key(1, 3), noise_key(1, 2, 1), noise_key(1 + (1 << 32), 2)):
        assert not torch.equal(base, standard_normal(other, 3, 1, 2, 2, 8))
    assert not torch.equal(base, standard_normal(noise_key(1, 2), 4, 1, 2, 2, 8))


def test_moments_of_a_standard_normal():
    eps = standard_normal(noise_key(0), block=0, batch=64, heads=3, tokens=49, latents=32).double()
    error = 1 / eps.numel() ** 0.5
    assert abs(eps.mean()) < 4 * error
    assert abs(eps.var() - 1) < 4 * error * 2**0.5
    assert abs((eps**4).mean() - 3) < 4 * error * 96**0.5
    assert abs((eps[..., ::2] * eps[..., 1::2]).mean()) < 4 * error * 2**0.5


def test_sizes_beyond_the_counter_are_refused():
    with pytest.raises(ValueError, match=r"latents: expected .* 1024\], got 1025"):
        standard_normal(noise_key(0), block=0, batch=1, heads=1, tokens=1, latents=1025)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"seed": 2**63}, ValueError, "seed: expected at most 9223372036854775807, got 9223372036854775808"),
        ({"seed": 1.0}, TypeError, "seed: expected a whole number, got 1.0"),
        ({"seed": True}, TypeError, "seed: expected a whole number, got True"),
        ({"seed": 0, "step": -1}, ValueError, "step: expected at least 0, got -1"),
        ({"seed": 0, "device": "abacus"}, ValueError, "device: expected a device that torch has here, got 'abacus'"),
    ],
    ids=["huge", "float", "bool", "negative step", "device"],
)
def test_bad_keys_are_named(arguments, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        noise_key(**arguments)
    with pytest.raises(ValueError, match="repeat: expected at least 0, got -1"):
        evaluation_key(0, repeat=-1)
