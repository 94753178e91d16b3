"""Reading and changing what heads transmit."""

from __future__ import annotations

import logging

import pytest
import torch

import ibvit
from ibvit.models import interventions
from ibvit.ops import Posterior
from ibvit.ops.reference import kl_to_prior


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def make(attention="ib"):
    torch.manual_seed(0)
    return ibvit.create_model(
        attention=attention, img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, num_classes=5,
        latent_dim=8, hidden_dim=16,
    ).eval()  # fmt: skip


def run(model, images):
    with torch.no_grad(), ibvit.noise(model, seed=1):
        return model(images)


def test_cache_holds_what_the_model_computed(images):
    model = make()
    expected = run(model, images)
    with torch.no_grad(), ibvit.noise(model, seed=1):
        _, kl = model(images, return_kl=True)
    names = [f"blocks.1.attn.hook_{hook}" for hook in ("mu", "logvar", "z", "kl", "pattern", "update")]
    with torch.no_grad(), ibvit.noise(model, seed=1):
        logits, cache = ibvit.run_with_cache(model, images, names)
    torch.testing.assert_close(logits, expected)
    assert list(cache) == names
    mu, logvar, _z, cached_kl, pattern, update = cache.values()
    assert mu.shape == (2, 2, 16, 8)
    assert pattern.shape == (2, 2, 16, 16)
    assert update.shape == (2, 16, 32)
    torch.testing.assert_close(pattern.sum(-1), torch.ones(2, 2, 16))
    torch.testing.assert_close(cached_kl, kl[:, 1])
    torch.testing.assert_close(kl_to_prior(Posterior(mu, logvar)), cached_kl)


def test_pattern_reproduces_the_fused_attention(images):
    """softmax(QKᵀ/√D) V from the cached pattern gives the update that the model writes."""
    model = make("full")
    attention = model.attentions[0]
    inputs = []
    handle = attention.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    with torch.no_grad():
        _, cache = ibvit.run_with_cache(model, images, ["blocks.0.attn.hook_pattern", "blocks.0.attn.hook_update"])
        handle.remove()
        value = attention.qkv(inputs[0]).view(2, 16, 3, 2, 16)[:, :, 2].transpose(1, 2)
        written = attention.proj((cache["blocks.0.attn.hook_pattern"] @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(written, cache["blocks.0.attn.hook_update"], atol=1e-5, rtol=1e-4)


def test_default_names_cover_all_blocks_without_patterns(images):
    _, cache = ibvit.run_with_cache(make(), images)
    assert len(cache) == 2 * 5
    assert not any("pattern" in name for name in cache)


def test_use_mean_is_deterministic_and_sends_mu(images):
    model = make()
    with torch.no_grad(), ibvit.use_mean(model):
        assert torch.equal(model(images), model(images))
        _, cache = ibvit.run_with_cache(model, images, ["blocks.0.attn.hook_mu", "blocks.0.attn.hook_z"])
    assert torch.equal(cache["blocks.0.attn.hook_mu"], cache["blocks.0.attn.hook_z"])
    assert not torch.equal(run(model, images), run(make(), images)) or model.attentions[0].probe is None


@pytest.mark.parametrize("attention", ["ib", "full"])
def test_silencing_every_head_leaves_the_projection_bias(attention, images):
    model = make(attention)
    with torch.no_grad(), ibvit.silence(model, ["1.0", "1.1"]):
        _, cache = ibvit.run_with_cache(model, images, ["blocks.1.attn.hook_update"])
    torch.testing.assert_close(
        cache["blocks.1.attn.hook_update"], model.attentions[1].proj.bias.detach().expand(2, 16, 32)
    )


def test_a_silent_head_pays_nothing_and_the_other_is_unchanged(images):
    model = make()
    with torch.no_grad(), ibvit.noise(model, seed=1):
        _, plain = model(images, return_kl=True)
    with torch.no_grad(), ibvit.noise(model, seed=1), ibvit.silence(model, ["0.1"]):
        _, kl = model(images, return_kl=True)
    assert torch.all(kl[:, 0, 1] == 0)
    torch.testing.assert_close(kl[:, 0, 0], plain[:, 0, 0])


def test_replace_sends_the_given_latent(images):
    model = make()
    expected = run(model, images)
    with torch.no_grad(), ibvit.noise(model, seed=1):
        _, cache = ibvit.run_with_cache(model, images, ["blocks.1.attn.hook_z"])
    own = cache["blocks.1.attn.hook_z"][:, 0]
    with ibvit.replace(model, "1.0", z=own):
        torch.testing.assert_close(run(model, images), expected)
    with ibvit.replace(model, "1.0", z=torch.full((8,), 5.0)):
        assert not torch.allclose(run(model, images), expected)


def test_contexts_nest_and_undo_themselves(images):
    model = make()
    before = run(model, images)
    with ibvit.silence(model, ["0.0"]):
        one = run(model, images)
        with ibvit.silence(model, ["0.1"]), ibvit.use_mean(model):
            probe = model.attentions[0].probe
            assert probe is not None
            assert probe.mean
            assert probe.silent == {0, 1}
        assert torch.equal(run(model, images), one)
    assert torch.equal(run(model, images), before)
    with pytest.raises(RuntimeError, match="stop"), ibvit.silence(model, ["0.0"]):
        raise RuntimeError("stop")
    assert all(attention.probe is None for attention in model.attentions)


def test_noise_restores_the_key(images):
    model = make()
    model.noise_key[1] = 5
    with ibvit.noise(model, seed=9):
        model(images)
    assert model.noise_key.tolist() == [0, 5, 0]


def test_the_switch_of_path_is_said(images, caplog):
    interventions._log_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="ibvit"):
        ibvit.run_with_cache(make(), images, ["blocks.1.attn.hook_mu"])
    assert "the affected blocks run the reference implementation" in caplog.text


def test_works_through_a_compiled_wrapper(images):
    model = make()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        run(compiled, images)
        _, cache = ibvit.run_with_cache(compiled, images, ["blocks.1.attn.hook_mu"])
    assert cache["blocks.1.attn.hook_mu"].shape == (2, 2, 16, 8)


def test_mistakes_are_named(images):
    model = make()
    with pytest.raises(ValueError, match="names: expected hooks of this model"):
        ibvit.run_with_cache(model, images, ["blocks.7.attn.hook_mu"])
    with pytest.raises(ValueError, match="names: expected hooks"):
        ibvit.run_with_cache(make("full"), images, ["blocks.0.attn.hook_mu"])
    with pytest.raises(ValueError, match=r"head: expected 'block\.head'"), ibvit.silence(model, ["2.0"]):
        pass
    with pytest.raises(ValueError, match="expected attention='ib', got attention='full'"), ibvit.use_mean(make("full")):
        pass
    with (
        pytest.raises(ValueError, match=r"z: expected .* \[B, 16, 8\], got \[7\]"),
        ibvit.replace(model, "0.0", z=torch.zeros(7)),
    ):
        pass
    with (
        pytest.raises(ValueError, match=r"z: expected .* \[B, 16, 8\]"),
        ibvit.replace(model, "0.0", z=torch.zeros(15, 8)),
    ):
        pass
    with (
        pytest.raises(ValueError, match=r"z: expected .* values, got one on meta"),
        ibvit.replace(model, "0.0", z=torch.zeros(8, device="meta")),
    ):
        pass
    with (
        pytest.raises(TypeError, match="z: expected a dense"),
        ibvit.replace(model, "0.0", z=torch.ones(8).to_sparse()),
    ):
        pass
    with (
        pytest.raises(ValueError, match="z: expected a batch of 2 images like the model's, got 3"),
        ibvit.replace(model, "0.0", z=torch.zeros(3, 16, 8)),
    ):
        model(images)
    for heads in ([0.0], "0.0", None):
        with pytest.raises(TypeError, match="heads: expected a list of names, got"), ibvit.silence(model, heads):
            pass
    for names in ([3], "blocks.0.attn.hook_mu", [["a"]]):
        with pytest.raises(TypeError, match="names: expected a list of names, got"):
            ibvit.run_with_cache(model, images, names)
    with (
        pytest.raises(ValueError, match=r"seed: expected at most .*, got 9223372036854775808"),
        ibvit.noise(model, 2**63),
    ):
        pass
    with pytest.raises(TypeError, match="model: expected an ibvit VisionTransformer, got Linear"):
        ibvit.run_with_cache(torch.nn.Linear(1, 1), images)
