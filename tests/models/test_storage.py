"""Weights' files know what they hold."""

from __future__ import annotations

import random

import pytest
import torch
from safetensors.torch import save_file

from ibvit.models.storage import fingerprint, read_facts, read_weights, save_weights

STATE = {"w": torch.arange(600, dtype=torch.float32), "b": torch.ones(3, dtype=torch.bfloat16), "n": torch.tensor(2)}


def test_they_come_back_with_their_facts_and_always_as_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        save_weights(tmp_path / name, STATE, {"step": 3, "epoch": 1})
    state, facts = read_weights(tmp_path / "a")
    assert facts == read_facts(tmp_path / "a") == {"step": 3, "epoch": 1, "sha256": fingerprint(STATE)}
    assert all(torch.equal(state[name], STATE[name]) for name in STATE)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_foreign_file_has_no_facts(tmp_path):
    save_file(STATE, tmp_path / "foreign", {"format": "pt"})
    assert read_weights(tmp_path / "foreign")[1] == read_facts(tmp_path / "foreign") == {}


def test_flipped_bits_are_noticed(tmp_path):
    """300 of them, anywhere: an error, or the same tensors."""
    path, rng = tmp_path / "weights", random.Random(0)
    save_weights(path, STATE, {"step": 3})
    whole, noticed = path.read_bytes(), 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            state, facts = read_weights(path)
        except ValueError:
            noticed += 1
        else:
            assert fingerprint(state) == fingerprint(STATE)
            assert facts in ({}, {"step": 3, "sha256": fingerprint(STATE)})
    assert noticed > 290


def test_the_fingerprint_tells_names_types_shapes_and_values():
    w = torch.zeros(4)
    states = [{"w": w}, {"v": w}, {"w": w.half()}, {"w": w.view(2, 2)}, {"w": w + 1}, {"w": w.int()}, {}]
    assert len({fingerprint(state) for state in states}) == len(states)


def test_absent(tmp_path):
    with pytest.raises(FileNotFoundError, match="weights: no file"):
        read_weights(tmp_path / "absent")
