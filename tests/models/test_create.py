"""Saving and loading, and what a configuration from elsewhere may ask for."""

from __future__ import annotations

import json
import pickle
from typing import get_args, get_type_hints

import pytest
import timm
import torch

import ibvit
from ibvit.config import TrainConfig
from ibvit.data.sets.recipes import RECIPES, apply_recipe
from ibvit.errors import UnavailableError
from ibvit.kinds import KINDS, KindName
from ibvit.models import load_weights, read_state_dict, save_model
from ibvit.models.architecture import check_architecture
from ibvit.training.run import model_arguments

ARGS = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
SPEC = {"attention": "ib", "latent_dim": 8, "hidden_dim": 16, "num_classes": 5, **ARGS}


def make(**args):
    return ibvit.create_model(latent_dim=8, hidden_dim=16, **{**ARGS, "num_classes": 5, **args})


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code ran')",))


def test_damaged_and_hostile_files(tmp_path):
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil()))
    torch.save({"a": torch.zeros(3)}, tmp_path / "cut.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:200])
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    for name in ("evil.pt", "cut.pt", "cut.safetensors"):
        with pytest.raises(ValueError, match=f"{name} is damaged or not a "):
            read_state_dict(tmp_path / name)
    with pytest.raises(ValueError, match=r"expected a dictionary of tensors in .*list\.pt"):
        read_state_dict(tmp_path / "list.pt")
    with pytest.raises(FileNotFoundError, match="no file"):
        read_state_dict(tmp_path / "absent.pt")


def test_save_and_load(tmp_path):
    model = make().eval()
    (tmp_path / "config.json").write_text(json.dumps({"architecture": SPEC}))
    save_model(model, tmp_path)
    loaded = ibvit.load(tmp_path)
    images, key = torch.randn(2, 3, 16, 16), torch.tensor([1, 2, 3])
    assert not loaded.training
    assert torch.equal(model(images, key=key), loaded(images, key=key))


def test_load_names_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a run folder with config\.json"):
        ibvit.load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    save_model(make(), tmp_path)
    with pytest.raises(ValueError, match="is not the configuration of a run"):
        ibvit.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": {**ARGS, "num_classes": 6}}))
    with pytest.raises(ValueError, match=r"does not fit .*: blocks\.0\.attn\.b1 \(.* expected, .* found\), .* more$"):
        ibvit.load(tmp_path)


HOSTILE = {
    "a pickle to load": {"checkpoint_path": "evil.pt"},
    "a download": {"pretrained": True},
    "another configuration": {"pretrained_cfg": {"file": "evil.pt"}},
    "a hub name": {"name": "hf-hub:someone/something"},
    "another kind of model": {"name": "resnet18"},
    "too deep": {"depth": 100_000},
    "more than the weights are": {"depth": 256, "embed_dim": 16_384, "num_heads": 64},
    "too large images": {"img_size": 10**9},
    "not a number": {"mlp_ratio": float("nan")},
    "a number for a flag": {"qkv_bias": 1},
    "a flag for a number": {"depth": True},
    "heads that do not divide": {"num_heads": 7},
    "an implementation": {"impl": "triton"},
    "a layer": {"norm_layer": "batchnorm2d"},
    "another kind": {"attention": "partial"},
    "a line break": {"x\ny": 1},
}


@pytest.mark.parametrize("asked", HOSTILE.values(), ids=HOSTILE)
def test_a_configuration_may_ask_for_an_architecture_alone(asked, tmp_path, monkeypatch):
    """No other file is read, nothing is downloaded, and nothing is built that is larger than the weights."""
    model = make()
    save_model(model, tmp_path)
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil()))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": {**SPEC, **asked}}))
    for read in (ibvit.load, lambda folder: load_weights(model, folder)):
        with pytest.raises(ValueError, match=r"^(directory|path): .*config\.json") as raised:
            read(tmp_path)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_recipes_write_is_what_a_configuration_may_ask_for(recipe, tmp_path):
    config, known = apply_recipe(TrainConfig(recipe=recipe, out=tmp_path))
    check_architecture(json.loads(json.dumps(model_arguments(config, known, 10))), "config.json")


def test_options_name_the_kinds_of_attention():
    """The command line and the table agree; what a model can do follows from the table."""
    assert get_type_hints(TrainConfig)["attention"] == KindName
    assert set(get_args(KindName)) == set(KINDS)
    for name, kind in KINDS.items():
        model = ibvit.create_model("vit_tiny_patch16_224", attention=name, depth=1, num_classes=2)
        assert (bool(model.attentions), model.has_kl) == (kind.has_attention, kind.has_kl)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"depth": 0}, ValueError, "depth: expected at least 1, got 0"),
        ({"depth": 10**30}, ValueError, "depth: expected at most 256, got 1000000000000000000000000000000"),
        (
            {"num_heads": 5},
            ValueError,
            "name: timm cannot build .* with num_heads=5: .*num_heads",
        ),
        ({"patch_size": 0}, ValueError, "patch_size: expected at least 1, got 0"),
        ({"img_size": 8}, ValueError, r"img_size: expected at least one patch of \(16, 16\) pixels, got \(8, 8\)"),
        ({"img_size": (32, 32, 3)}, ValueError, r"img_size: expected a size or \(height, width\), got \(32, 32, 3\)"),
        ({"latent_dim": 1.0}, TypeError, "latent_dim: expected a whole number, got 1.0"),
        ({"impl": "cuda"}, ValueError, "impl: expected one of auto, triton, native, reference, got 'cuda'"),
        ({"features_only": True}, ValueError, "features_only: expected one of name, .* got another argument"),
        ({"checkpoint_path": "x.pt"}, ValueError, "checkpoint_path: expected one of name, .* got another argument"),
        ({"name": "deit_tiny_distilled_patch16_224"}, ValueError, "name: timm cannot build 'deit_tiny_distilled_.*"),
        (
            {"name": "ibvit_tiny_patch16_224"},
            ValueError,
            "name: expected a backbone such as .*, got 'ibvit.*",
        ),
        ({"name": None}, ValueError, "name: expected the name of a timm model .*, got None"),
        ({"pretrained": 3}, TypeError, "pretrained: expected True, False or a path, got 3"),
        ({"pretrained": "a\0b"}, ValueError, r"pretrained: expected a path, got 'a\\x00b'"),
        ({"pretrained": "a" * 5000}, ValueError, "pretrained: .*File name too long.*"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arguments_are_checked_before_anything_is_built(arguments, error, message):
    with pytest.raises(error, match=f"^{message}$") as raised:
        ibvit.create_model(**arguments)
    assert "\n" not in str(raised.value)


def test_weights_that_timm_cannot_get(monkeypatch):
    build = timm.create_model

    def without_network(name, pretrained=False, **options):
        if pretrained:
            raise ConnectionError("first line\nsecond line")
        return build(name, **options)

    monkeypatch.setattr(timm, "create_model", without_network)
    with pytest.raises(UnavailableError, match=r"^pretrained: .* of 'vit_tiny_patch16_224': first line second line$"):
        ibvit.create_model(depth=1, pretrained=True)
