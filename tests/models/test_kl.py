"""Reductions and conversions of the KL."""

from __future__ import annotations

import math

import pytest
import torch

from ibvit.models import kl as accounting
from ibvit.models.kl import Channels, KLMeter


@pytest.fixture
def kl() -> torch.Tensor:
    return torch.rand(5, 2, 3, 4, generator=torch.Generator().manual_seed(0))


def test_both_prices_give_the_same_objective(kl):
    channels = Channels(blocks=2, heads=3, tokens=4)
    beta_sum = accounting.convert_beta(0.7, channels, "mean", "sum")
    assert 0.7 * accounting.penalty(kl, "mean") == pytest.approx(beta_sum * accounting.penalty(kl, "sum"))
    assert accounting.convert_beta(beta_sum, channels, "sum", "mean") == pytest.approx(0.7)
    assert accounting.convert_beta(0.7, channels, "sum", "sum") == 0.7


def test_vit_tiny_conversion_factor():
    assert accounting.convert_beta(1.0, Channels(12, 3, 196), "mean", "sum") == pytest.approx(1 / 7056)


def test_unknown_reduction(kl):
    with pytest.raises(ValueError, match="reduction: expected one of mean, sum, got 'max'"):
        accounting.penalty(kl, "max")
    with pytest.raises(ValueError, match="target: expected one of mean, sum, got 'max'"):
        accounting.convert_beta(1.0, Channels(1, 1, 1), "mean", "max")


@pytest.mark.parametrize(
    "kl", [None, torch.zeros(3), torch.zeros(1, 2, 3, 4).int()], ids=["none", "vector", "integers"]
)
def test_what_is_no_kl_is_named(kl):
    for function in (accounting.per_image, accounting.per_patch, accounting.per_head, accounting.active_heads):
        with pytest.raises((TypeError, ValueError), match=r"^kl: expected"):
            function(kl)
    with pytest.raises((TypeError, ValueError), match=r"^kl: expected"):
        KLMeter().update(kl)
    with pytest.raises(ValueError, match=r"^kl: expected \[B, L, H, N\], at least 1 numbers, got \[0, 1, 2, 3\]$"):
        accounting.active_heads(torch.zeros(0, 1, 2, 3))


def test_axes(kl):
    assert accounting.per_image(kl)[1] == pytest.approx(float(kl[1].sum()))
    assert accounting.per_patch(kl)[1, 2] == pytest.approx(float(kl[1, :, :, 2].sum()))
    assert accounting.per_head(kl)[1, 0] == pytest.approx(float(kl[:, 1, 0].mean()))
    assert accounting.bits(2 * math.log(2)) == pytest.approx(2)


def test_active_heads_and_latents():
    kl = torch.zeros(3, 2, 2, 4)
    kl[2, 1, 0, 3] = 0.011
    kl[0, 0, 1, 0] = 0.009
    assert accounting.head_names(accounting.active_heads(kl)) == ["1.0"]
    mu, logvar = torch.zeros(3, 4, 5), torch.zeros(3, 4, 5)
    mu[1, 2, 3] = 0.2
    assert accounting.active_latents(mu, logvar).tolist() == [False, False, False, True, False]


def test_latents_add_up_to_the_kl():
    from ibvit.ops import Posterior
    from ibvit.ops.reference import kl_to_prior

    mu, logvar = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(accounting.per_latent(mu, logvar).sum(-1), kl_to_prior(Posterior(mu, logvar)))


def test_meter_equals_the_whole_and_joins_ranks(kl):
    whole, first, second = KLMeter(), KLMeter(), KLMeter()
    whole.update(kl)
    first.update(kl[:2])
    second.update(kl[2:])
    first.reduce(5, lambda x: x + second._total, lambda x: torch.maximum(x, second._peak))
    assert first.summary().nats_per_image == pytest.approx(float(accounting.per_image(kl).mean()))
    torch.testing.assert_close(first.summary().heads, whole.summary().heads)
    assert first.summary().active_heads == whole.summary().active_heads


def test_empty_meter():
    with pytest.raises(ValueError, match="no batch"):
        KLMeter().summary()


@pytest.mark.parametrize("name", ["12.0", "0.3", "1", "a.b", "1.-1", "", "²" + ".0", "9" * 5000 + ".0", None, 0.0])
def test_bad_head_names(name):
    with pytest.raises(ValueError, match=r"head: expected 'block\.head' with block < 12 and head < 3"):
        accounting.parse_head(name, blocks=12, heads=3)
