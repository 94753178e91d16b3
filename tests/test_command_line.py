"""Options in files, and how a command ends."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import tyro

from ibvit.command_line import TrainOptions, with_files
from ibvit.config import TrainConfig, as_dict
from ibvit.data.sets.recipes import apply_recipe
from ibvit.run_folder import read_config
from ibvit.training import train
from ibvit.training.run import stored_config
from tests.training.runs import SMALL


def parsed(*args: str) -> TrainConfig:
    return tyro.cli(TrainOptions, args=with_files(args)).checked()


def test_the_configuration_of_a_run_can_be_given_back(tmp_path, monkeypatch):
    """The same weights' file, bit for bit, in another folder."""
    first = train(replace(SMALL, out=tmp_path / "first", max_steps=2, cuda_graph=False))
    again = parsed("--config", str(first / "config.json"), "--out", str(tmp_path / "again"))
    assert replace(stored_config(first), out=tmp_path / "again") == apply_recipe(again)[0]
    second = train(again)
    assert (second / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()


def test_what_is_typed_wins_wherever_it_stands(tmp_path):
    file = tmp_path / "options.json"
    file.write_text(json.dumps({"beta": 4, "compile": True, "min_lr": 1e-7, "lr": None, "out": "x", "resume": "none"}))
    expected = TrainConfig(beta=2, compile=True, min_lr=1e-7)
    assert parsed("--config", str(file), "--beta", "2") == expected
    assert parsed(f"--config={file}", "--beta", "2") == expected
    assert parsed("--config", str(file), "--no-compile").compile is False
    assert parsed("--config", str(file)).out is None


def test_a_sweep_takes_from_a_file_what_it_does_not_set(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(as_dict(TrainConfig(beta=4, seed=3, attention="full", data="repetition", lr=0.1))))
    words = with_files(["sweep", "--betas", "1", "--train.config", str(file)])
    assert {"--train.lr", "0.1"} <= set(words)
    assert not {"--train.beta", "--train.seed", "--train.attention", "--train.data"} & set(words)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"config: expected a JSON file of options, got .*absent\.json .*No such file"),
        ("{", "config: expected a JSON file of options"),
        ("[" * 10_000, "config: expected a JSON file of options"),
        ("[1]", "config: expected a JSON object of options in .*, got a list"),
        ('{"betta": 1}', "config: .* holds 'betta', which is not an option of train.py"),
        ('{"beta": [1]}', r"config: .* holds beta = \[1\]; expected text, a number, true or false"),
        ('{"beta": -1}', "^beta: expected a finite number of at least 0, got -1.0"),
    ],
)
def test_mistakes_name_the_file(content, message, tmp_path):
    file = tmp_path / "absent.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=message):
        parsed("--config", str(file))


def test_config_json_of_a_run_holds_more_than_options(tmp_path):
    run = train(replace(SMALL, out=tmp_path / "run", max_steps=1))
    assert {"architecture", "versions"} <= set(read_config(run))
    assert parsed("--config", str(run / "config.json")).beta == SMALL.beta
