"""The three kinds of model, against timm's own and against each other."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch

import ibvit
from ibvit.models.attention import BottleneckAttention

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}


def small(attention="ib", seed=0, **args):
    torch.manual_seed(seed)
    return ibvit.create_model(attention=attention, latent_dim=8, hidden_dim=16, **{**SMALL, **args})


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_vit_tiny_as_specified():
    torch.manual_seed(0)
    model = timm.create_model("ibvit_tiny_patch16_224", num_classes=100)
    assert sum(p.numel() for p in model.parameters()) == 6_068_644
    bottlenecks = [a for a in model.attentions if isinstance(a, BottleneckAttention)]
    assert sum(p.numel() for a in bottlenecks for p in a.params) == 36 * 14_592
    with torch.no_grad():
        logits, kl = model(torch.randn(2, 3, 224, 224), return_kl=True)
    assert logits.shape == (2, 100)
    assert kl.shape == (2, 12, 3, 196)
    assert kl.dtype is torch.float32
    assert 75 < kl.mean() < 85  # near 80 nats a head and token


@pytest.mark.parametrize(
    ("name", "args", "grid"),
    [
        ("vit_small_patch16_224", {"depth": 2}, (14, 14)),
        ("vit_tiny_patch16_224", {"depth": 2, "img_size": (32, 64)}, (2, 4)),
        ("vit_tiny_patch16_224", {"depth": 2, "img_size": 24, "patch_size": 8}, (3, 3)),
        ("vit_small_patch14_reg4_dinov2", {"depth": 2, "img_size": 28}, (2, 2)),
    ],
    ids=["small", "non-square", "patch 8", "registers and layer scale"],
)
def test_any_timm_vit(name, args, grid):
    model = ibvit.create_model(name, num_classes=7, **args)
    assert model.grid_size == grid
    with torch.no_grad():
        logits, kl = model(torch.randn(2, 3, *model.image_size), return_kl=True)
    assert logits.shape == (2, 7)
    assert kl.shape == (2, 2, model.num_heads, grid[0] * grid[1])


def test_full_equals_timm(images):
    torch.manual_seed(0)
    plain = timm.create_model(
        "vit_tiny_patch16_224", class_token=False, global_pool="avg", fc_norm=False, **SMALL
    ).eval()
    model = small("full", seed=1).eval()
    model.load_state_dict(plain.state_dict())
    torch.testing.assert_close(model(images), plain(images), atol=1e-6, rtol=0)


@pytest.mark.parametrize("attention", ["ib", "full", "none"])
def test_logits_are_the_mean_vote(attention, images):
    model = small(attention).eval()
    with torch.no_grad(), ibvit.noise(model, seed=3):
        logits = model(images)
    with torch.no_grad(), ibvit.noise(model, seed=3):
        votes = model.patch_logits(images)
    assert votes.shape == (4, 16, 5)
    torch.testing.assert_close(votes.mean(dim=1), logits, atol=1e-6, rtol=0)


@pytest.mark.parametrize("attention", ["ib", "full"])
def test_a_silent_projection_gives_the_model_without_attention(attention, images):
    model, none = small(attention).eval(), small("none", seed=1).eval()
    ibvit.models.load_backbone(none, model)
    for block in model.attentions:
        torch.nn.init.zeros_(block.proj.weight)
        torch.nn.init.zeros_(block.proj.bias)
    assert torch.equal(model(images), none(images))


def test_kinds_share_the_backbone_for_one_seed():
    states = {attention: small(attention).state_dict() for attention in ("ib", "full", "none")}
    for name, value in states["none"].items():
        assert torch.equal(value, states["full"][name])
    for name, value in states["full"].items():
        assert torch.equal(value, states["ib"][name])


def test_each_call_draws_fresh_noise_and_an_explicit_key_repeats_it(images):
    model = small().eval()
    with torch.no_grad():
        assert not torch.equal(model(images), model(images))
        key = torch.tensor([4, 0, 0])
        assert torch.equal(model(images, key=key), model(images, key=key))
        assert torch.equal(model(images, key=key)[2:], model(images[2:], key=torch.tensor([4, 0, 2])))


def test_gradient_checkpointing_gives_the_same_gradients(images):
    gradients = []
    for enable in (False, True):
        model = small()
        model.set_grad_checkpointing(enable)
        logits, kl = model(images, return_kl=True)
        (logits.square().mean() + kl.mean()).backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


def test_every_parameter_gets_a_gradient(images):
    model = small()
    logits, kl = model(images, return_kl=True)
    (logits.square().mean() + kl.mean()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_compile_fullgraph_agrees(images):
    model = small(depth=1).eval()
    compiled = torch.compile(model, fullgraph=True)
    key = torch.tensor([0, 0, 0])
    with torch.no_grad():
        expected, actual = model(images, return_kl=True, key=key), compiled(images, return_kl=True, key=key)
    torch.testing.assert_close(actual.logits, expected.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(actual.kl, expected.kl, atol=1e-4, rtol=1e-5)


def test_mistakes_are_named(images):
    with pytest.raises(ValueError, match=r"images: expected \[B, 3, 16, 16\], got \[4, 3, 16, 12\]"):
        small()(images[..., :12])
    with pytest.raises(ValueError, match="attention: expected one of ib, full, none, got 'partial'"):
        ibvit.create_model(attention="partial")
    with pytest.raises(ValueError, match="name: expected the name of a timm model"):
        ibvit.create_model("vit_minuscule")
    with pytest.raises(ValueError, match="timm cannot build 'resnet18' as a VisionTransformer"):
        ibvit.create_model("resnet18")
    with pytest.raises(ValueError, match="expected a timm VisionTransformer of plain PatchEmbed, Block"):
        ibvit.create_model("vit_base_patch16_rpn_224")
    with pytest.raises(ValueError, match="latent_dim: expected at least 1, got 0"):
        ibvit.create_model(latent_dim=0)
    with pytest.raises(ValueError, match="return_kl: expected a model with attention='ib'"):
        small("none")(images, return_kl=True)


NO_IMAGES = {
    "none": (None, TypeError, "images: expected a torch tensor, got None"),
    "an array": (
        np.zeros((1, 3, 16, 16), np.float32),
        TypeError,
        "images: expected a torch tensor, got ndarray",
    ),
    "half": (torch.zeros(1, 3, 16, 16).half(), TypeError, "images: expected float32, got float16"),
    "double": (torch.zeros(1, 3, 16, 16).double(), TypeError, "images: expected float32, got float64"),
    "bytes": (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), TypeError, "images: expected float32, got uint8"),
    "sparse": (torch.zeros(1, 3, 16, 16).to_sparse(), TypeError, "images: expected a dense tensor, got a sparse_coo"),
    "meta": (
        torch.zeros(1, 3, 16, 16, device="meta"),
        ValueError,
        "images: expected on .* cpu, got meta",
    ),
    "an image": (torch.zeros(3, 16, 16), ValueError, r"images: expected \[B, 3, 16, 16\], got \[3, 16, 16\]"),
}


@pytest.mark.parametrize(("images", "error", "message"), NO_IMAGES.values(), ids=NO_IMAGES)
def test_what_is_no_batch_of_images_is_named(images, error, message):
    model = small("full", depth=1)
    for call in (model, model.patch_logits, model.forward_features):
        with pytest.raises(error, match=f"^{message}"):
            call(images)


def test_keys_are_checked_on_every_path(images):
    model = small()
    with ibvit.silence(model, ["0.0"]):  # the first block runs step by step, without the op's own checks
        for key in (torch.zeros(3), torch.zeros(2, dtype=torch.int64), [0, 0, 0]):
            with pytest.raises((TypeError, ValueError), match=r"^key: expected"):
                model(images, key=key)


@pytest.mark.parametrize("attention", ["ib", "full", "none"])
def test_no_images_give_no_logits(attention, images):
    model = small(attention).eval()
    assert model(images[:0]).shape == (0, 5)
    assert model.patch_logits(images[:0]).shape == (0, 16, 5)
    logits, cache = ibvit.run_with_cache(model, images[:0])
    assert logits.shape == (0, 5)
    assert all(len(value) == 0 for value in cache.values())


def test_half_precision_models_and_autocast(images):
    assert small(impl="reference").bfloat16()(images.bfloat16()).dtype is torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(small()(images)).all()
        with pytest.raises(TypeError, match="images: expected float32, bfloat16, float16, got float64"):
            small()(images.double())
