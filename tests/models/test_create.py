"""Starting from timm weights; saving and loading."""

from __future__ import annotations

import json
import pickle
from typing import get_args, get_type_hints

import pytest
import timm
import torch
from safetensors.torch import save_file

import ibvit
from ibvit.config import TrainConfig
from ibvit.kinds import KINDS, KindName
from ibvit.models import load_backbone, read_state_dict, save_model

ARGS = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}


def make(**args):
    return ibvit.create_model(latent_dim=8, hidden_dim=16, **{**ARGS, "num_classes": 5, **args})


@pytest.mark.parametrize(
    "source",
    [
        {},
        {"class_token": False, "global_pool": "avg"},
        {"img_size": 24},
        {"patch_size": 2, "img_size": 8},
        {"num_classes": 9},
    ],
    ids=["class token", "norm after pooling", "larger grid", "smaller patches", "other classes"],
)
def test_fine_tuning_from_a_timm_checkpoint_file(source, tmp_path):
    plain = timm.create_model("vit_tiny_patch16_224", **{**ARGS, "num_classes": 5, **source})
    torch.save({"state_dict": plain.state_dict()}, tmp_path / "plain.pth")
    save_file(plain.state_dict(), tmp_path / "plain.safetensors")
    for path in (tmp_path / "plain.pth", tmp_path / "plain.safetensors"):
        model = make(pretrained=path)
        for name in ("blocks.1.attn.qkv.weight", "blocks.0.mlp.fc1.bias"):
            assert torch.equal(model.state_dict()[name], plain.state_dict()[name])
    assert torch.isfinite(model(torch.randn(1, 3, 16, 16))).all()
    if not source:
        torch.testing.assert_close(model.pos_embed, plain.pos_embed[:, 1:])


def test_a_foreign_state_is_refused():
    state = timm.create_model("vit_tiny_patch16_224", **{**ARGS, "num_classes": 5}).state_dict()
    del state["blocks.1.attn.qkv.weight"]
    with pytest.raises(ValueError, match=r"expected the tensor blocks\.1\.attn\.qkv\.weight"):
        load_backbone(make(), state)
    wide = timm.create_model("vit_tiny_patch16_224", **{**ARGS, "num_classes": 5, "embed_dim": 64}).state_dict()
    with pytest.raises(ValueError, match=r"expected blocks\.0\.\S+ \[32.*got \[64"):
        load_backbone(
            make(),
            {k: v for k, v in wide.items() if k.startswith("blocks")}
            | {k: v for k, v in make().state_dict().items() if not k.startswith("blocks")},
        )


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
        with pytest.raises(ValueError, match=f"{name} is damaged or not a checkpoint"):
            read_state_dict(tmp_path / name)
    with pytest.raises(ValueError, match=r"expected a dictionary of tensors in .*list\.pt"):
        read_state_dict(tmp_path / "list.pt")
    with pytest.raises(FileNotFoundError, match="no file"):
        read_state_dict(tmp_path / "absent.pt")


def test_save_and_load(tmp_path):
    model = make().eval()
    spec = {"attention": "ib", "latent_dim": 8, "hidden_dim": 16, "num_classes": 5, **ARGS}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": spec}))
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
    with pytest.raises(ValueError, match="does not fit"):
        ibvit.load(tmp_path)


def test_options_name_the_kinds_of_attention():
    """The command line and the table agree; what a model can do follows from the table."""
    assert get_type_hints(TrainConfig)["attention"] == KindName
    assert set(get_args(KindName)) == set(KINDS)
    for name, kind in KINDS.items():
        model = ibvit.create_model("vit_tiny_patch16_224", attention=name, depth=1, num_classes=2)
        assert (bool(model.attentions), model.has_kl) == (kind.has_attention, kind.has_kl)
