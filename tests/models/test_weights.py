"""Weights from elsewhere: the source's grid is known or refused, and every tensor that is not simply taken is named."""

from __future__ import annotations

import json
import logging

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import ibvit
from ibvit.models import load_backbone, load_weights, save_model

ARGS = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
SPEC = {"attention": "ib", "latent_dim": 8, "hidden_dim": 16, "num_classes": 5, **ARGS}
BOTTLENECKS = {f"blocks.{block}.attn.{kind}{i}" for block in (0, 1) for kind in "wb" for i in (1, 2, 3, 4)}


def make(**args):
    return ibvit.create_model(**{**SPEC, **args})


def plain(name="vit_tiny_patch16_224", **args):
    return timm.create_model(name, **{**ARGS, "num_classes": 5, **args})


def resampled(positions: torch.Tensor, old: tuple[int, int], new: tuple[int, int]) -> torch.Tensor:
    """By interpolating the picture of each channel on its own."""
    channels = [positions[0, :, c].reshape(1, 1, *old) for c in range(positions.shape[2])]
    channels = [F.interpolate(picture, new, mode="bicubic", antialias=True) for picture in channels]
    return torch.stack([picture.flatten() for picture in channels], -1)[None]


@pytest.mark.parametrize(
    "source",
    [
        {},
        {"class_token": False, "global_pool": "avg"},
        {"img_size": 24},
        {"patch_size": 2, "img_size": 8},
        {"num_classes": 9},
        {"no_embed_class": True, "reg_tokens": 3},
    ],
    ids=["class token", "norm after pooling", "larger grid", "smaller patches", "other classes", "registers"],
)
def test_fine_tuning_from_a_timm_checkpoint_file(source, tmp_path):
    original = plain(**source)
    torch.save({"state_dict": original.state_dict()}, tmp_path / "plain.pth")
    save_file(original.state_dict(), tmp_path / "plain.safetensors")
    for path in (tmp_path / "plain.pth", tmp_path / "plain.safetensors"):
        model = make()
        loaded = load_weights(model, path, grid=original.patch_embed.grid_size)
        for name in ("blocks.1.attn.qkv.weight", "blocks.0.mlp.fc1.bias"):
            assert torch.equal(model.state_dict()[name], original.state_dict()[name])
        assert set(loaded.new) - {"head.weight", "head.bias"} == BOTTLENECKS
        assert set(loaded.taken) | set(loaded.new) == set(model.state_dict())
    assert torch.isfinite(model(torch.randn(1, 3, 16, 16))).all()
    if not source:
        torch.testing.assert_close(model.pos_embed, original.pos_embed[:, 1:])


@pytest.mark.parametrize("class_token", [True, False], ids=["class token", "no class token"])
def test_positions_of_a_grid_that_is_not_square(class_token):
    """14×7 and a class token make 99 positions: no square is near."""
    original = plain(img_size=(56, 28), class_token=class_token, global_pool="token" if class_token else "avg")
    model = make(img_size=(56, 28))
    loaded = load_backbone(model, original)
    assert torch.equal(model.pos_embed, original.pos_embed[:, int(class_token) :])
    assert not [change for change in loaded.changed if "pos_embed" in change]
    assert ("pos_embed of 1 tokens before the patches" in loaded.left_out) == class_token


@pytest.mark.parametrize("old", [(4, 16), (16, 4), (2, 32)], ids=str)
def test_as_many_patches_in_another_grid(old):
    """4×16 and 8×8 are both 64: the positions are resampled all the same."""
    original = plain(img_size=(4 * old[0], 4 * old[1]))
    model = make(img_size=32)
    loaded = load_backbone(model, original.state_dict(), grid=old)
    torch.testing.assert_close(model.pos_embed, resampled(original.pos_embed[:, 1:], old, (8, 8)))
    assert loaded.changed == (f"pos_embed ({old[0]}×{old[1]} to 8×8 patches)",)


def test_a_grid_that_cannot_be_told_is_not_guessed(tmp_path):
    original = plain(img_size=(16, 64))
    save_file(original.state_dict(), tmp_path / "plain.safetensors")
    model = make(img_size=32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for load in (
        lambda: load_backbone(model, original.state_dict()),
        lambda: load_weights(model, tmp_path / "plain.safetensors"),
        lambda: make(img_size=32, pretrained=tmp_path / "plain.safetensors"),
    ):
        with pytest.raises(ValueError, match="expected to know the grid of its 64 or 65 patches") as raised:
            load()
        assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match=r"expected positions of 5×12 patches, got 64 or 65$"):
        load_backbone(model, original.state_dict(), grid=(5, 12))
    with pytest.raises(TypeError, match=r"grid: expected \(rows, columns\) of patches, got 8"):
        load_backbone(model, original.state_dict(), grid=8)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_grid_of_a_checkpoint_of_the_architectures_own_size(tmp_path):
    """timm knows the images of each name: 224 pixels, 14×14 patches of 16."""
    original = plain(img_size=224, patch_size=16)
    save_file(original.state_dict(), tmp_path / "plain.safetensors")
    model = make(pretrained=str(tmp_path / "plain.safetensors"))
    torch.testing.assert_close(model.pos_embed, resampled(original.pos_embed[:, 1:], (14, 14), (4, 4)))
    assert model.loaded.changed == (
        "pos_embed (14×14 to 4×4 patches)",
        "patch_embed.proj.weight (16×16 to 4×4 pixels)",
    )
    assert make().loaded is None


@pytest.mark.parametrize(
    "size", [{"pretrained_cfg": {"input_size": [3, 16, 64]}}, {"model_args": {"img_size": [16, 64]}}]
)
def test_the_grid_that_timms_configuration_tells(size, tmp_path):
    original = plain(img_size=(16, 64))
    save_file(original.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224", **size}))
    model = make(img_size=32)
    load_weights(model, tmp_path / "model.safetensors")
    torch.testing.assert_close(model.pos_embed, resampled(original.pos_embed[:, 1:], (4, 16), (8, 8)))
    for damaged in ("[1", '{"pretrained_cfg": {"input_size": [3, -1, "x"]}}', "[]"):
        (tmp_path / "config.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"config\.json is damaged|expected to know the grid"):
            load_weights(model, tmp_path / "model.safetensors")


REFUSED = {
    "layer scale": (lambda: plain("deit3_small_patch16_224"), "got also blocks.0.ls1.gamma, .* and 1 more$"),
    "deeper": (lambda: plain(depth=4), "expected 2 blocks as the model has, got 4$"),
    "shallower": (lambda: plain(depth=1), "expected 2 blocks as the model has, got 1$"),
    "wider": (lambda: plain(embed_dim=64), r"expected \S+ \[.*32.*\], got \[.*64.*\]$"),
    "other heads": (lambda: plain(num_heads=4), "expected 2 heads as the model has, got 4$"),
    "a norm before": (lambda: plain(pre_norm=True), "got also norm_pre.bias, norm_pre.weight$"),
    "norms of queries": (lambda: plain(qk_norm=True), r"got also blocks\.0\.attn\.k_norm\.bias, .* and 5 more$"),
    "other latents": (lambda: make(latent_dim=16), r"expected blocks\.0\.attn\.\S+ \[.*\], got \[.*\]$"),
    "no attention": (lambda: make(attention="none"), r"missing blocks\.0\.attn\.\S+, .* more$"),
}


@pytest.mark.parametrize(("source", "message"), REFUSED.values(), ids=REFUSED)
def test_what_would_change_the_function_is_refused(source, message):
    model = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=f"^source: .*{message}") as raised:
        load_backbone(model, source())
    assert "\n" not in str(raised.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_layer_scale_into_layer_scale():
    original = plain("deit3_small_patch16_224")
    model = make(name="deit3_small_patch16_224", attention="full")
    loaded = load_backbone(model, original)
    assert torch.equal(model.pos_embed, original.pos_embed)  # DeiT-III gives its class token no position
    assert loaded.left_out == ("cls_token",)
    assert loaded.new == ()


def test_registers_and_class_token_are_named(caplog):
    original = plain("vit_small_patch14_reg4_dinov2")
    model = make(name="vit_small_patch14_reg4_dinov2", num_classes=7)
    with caplog.at_level(logging.INFO, logger="ibvit"):
        loaded = load_backbone(model, original)
    assert loaded.left_out == ("cls_token", "head.bias", "head.weight", "reg_token")
    assert caplog.messages == [f"weights: {loaded}"]
    assert model.loaded == loaded
    assert str(loaded) == (
        "33 of 51 tensors from source; left out: cls_token, head.bias, head.weight, reg_token; new: "
        + ", ".join(f"blocks.*.attn.{kind}{i}" for kind in "bw" for i in (1, 2, 3, 4))
        + ", head.bias, head.weight"
    )


def test_a_distilled_checkpoint_has_two_tokens_before_the_patches():
    original = plain("deit_tiny_distilled_patch16_224")
    model = make()
    loaded = load_backbone(model, original)
    torch.testing.assert_close(model.pos_embed, original.pos_embed[:, 2:])
    assert loaded.left_out == (
        "cls_token", "dist_token", "head_dist.bias", "head_dist.weight", "pos_embed of 2 tokens before the patches",
    )  # fmt: skip


def test_a_norm_after_pooling_is_named():
    loaded = load_backbone(make(), plain(class_token=False, global_pool="avg", fc_norm=True))
    assert loaded.changed == ("norm (from fc_norm, which acted after pooling)",)


@pytest.mark.parametrize("what", ["folder", "file", "last"])
def test_a_warm_start_takes_the_bottlenecks_too(what, tmp_path):
    original = make(img_size=(16, 64))
    save_model(original, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": {**SPEC, "img_size": [16, 64]}}))
    path = {"folder": tmp_path, "file": tmp_path / "model.safetensors", "last": tmp_path / "last.pt"}[what]
    torch.save({"model": original.state_dict()}, tmp_path / "last.pt")
    model = make(img_size=32, num_classes=3)
    loaded = load_weights(model, path, grid=(4, 16) if what == "last" else None)
    assert set(loaded.taken) >= BOTTLENECKS
    assert loaded.new == loaded.left_out == ("head.bias", "head.weight")
    assert loaded.changed == ("pos_embed (4×16 to 8×8 patches)",)
    for name in BOTTLENECKS:
        assert torch.equal(model.state_dict()[name], original.state_dict()[name])
    assert make(img_size=32, num_classes=3, pretrained=tmp_path).loaded == load_weights(model, tmp_path)._replace(
        source=f"pretrained: {tmp_path}"
    )


def test_a_kind_without_attention_or_bottlenecks_names_what_it_does_without():
    full, none = make(attention="full"), make(attention="none")
    assert set(load_backbone(full, make()).left_out) == BOTTLENECKS
    left_out = load_backbone(none, make()).left_out
    assert set(left_out) > BOTTLENECKS
    assert {name.split(".")[2] for name in left_out} == {"attn", "norm1"}


def test_a_model_without_a_head_or_positions():
    assert load_backbone(make(num_classes=0), plain()).left_out[-2:] != ()
    without = make(pos_embed="none")
    with pytest.raises(ValueError, match=r"got also pos_embed$"):
        load_backbone(without, plain())
    load_backbone(without, plain(pos_embed="none"))


FOREIGN = {
    "integers": torch.zeros(3, dtype=torch.int64),
    "complex": torch.zeros(3, dtype=torch.cfloat),
    "sparse": torch.zeros(3, 3).to_sparse(),
    "meta": torch.zeros(3, device="meta"),
    "no tensor": 3.0,
}


@pytest.mark.parametrize("value", FOREIGN.values(), ids=FOREIGN)
def test_tensors_without_values_of_ours_are_named(value):
    state = dict(make().state_dict()) | {"norm.bias": value}
    with pytest.raises(ValueError, match=r"^source: norm.bias: expected"):
        load_backbone(make(), state, grid=(4, 4))
    with pytest.raises(TypeError, match=r"^source: expected a timm or ibvit ViT or its state dict, got int"):
        load_backbone(make(), 3)
    with pytest.raises(TypeError, match=r"^model: expected an ibvit VisionTransformer, got Linear"):
        load_backbone(torch.nn.Linear(1, 1), make())
