"""The reference does what its equations say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ibvit.ops import BottleneckParams, Posterior, noise_key
from ibvit.ops.noise import standard_normal
from ibvit.ops.reference import bottleneck_write, encode, kl_to_prior

B, N, H, D, HIDDEN, R = 2, 3, 2, 8, 6, 4
C = H * D


def make(dtype=torch.float64, logvar_bias=0.0):
    """Inputs of the op; ``logvar_bias`` moves ρ around or beyond the clamp's edges."""
    torch.manual_seed(0)
    shapes = [
        (H, D, HIDDEN),
        (H, HIDDEN),
        (H, HIDDEN, 2 * R),
        (H, 2 * R),
        (H, R, HIDDEN),
        (H, HIDDEN),
        (H, HIDDEN, D),
        (H, D),
    ]
    params = BottleneckParams(*(torch.randn(shape, dtype=dtype) * 0.5 for shape in shapes))
    params.b2[:, R:] += logvar_bias
    y, weight, bias = torch.randn(B, N, C, dtype=dtype), torch.randn(C, C, dtype=dtype), torch.randn(C, dtype=dtype)
    return y, params, weight, bias


def test_equals_a_loop_over_heads_of_linear_layers():
    """The batched form against the definition written with nn.Linear, one head at a time."""
    y, params, weight, bias = make()
    key = noise_key(3, step=1)
    eps = standard_normal(key, 5, B, H, N, R).double()
    messages, kls = [], []
    for head in range(H):
        layers = []
        for w, b in zip(params[::2], params[1::2], strict=True):
            layer = nn.Linear(w.shape[1], w.shape[2]).double()
            layer.weight.data, layer.bias.data = w[head].T, b[head]
            layers.append(layer)
        encoder, decoder = (
            nn.Sequential(layers[0], nn.GELU(), layers[1]),
            nn.Sequential(layers[2], nn.GELU(), layers[3]),
        )
        mu, logvar = encoder(y[..., head * D : (head + 1) * D]).chunk(2, dim=-1)
        logvar = logvar.clamp(-10, 10)
        messages.append(decoder(mu + (logvar / 2).exp() * eps[:, head]))
        posterior = torch.distributions.Normal(mu, (logvar / 2).exp())
        prior = torch.distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu))
        kls.append(torch.distributions.kl_divergence(posterior, prior).sum(-1))
    update, kl = bottleneck_write(y, params, weight, bias, key, block=5)
    torch.testing.assert_close(update, torch.cat(messages, dim=-1) @ weight.T + bias)
    torch.testing.assert_close(kl, torch.stack(kls, dim=1))


@pytest.mark.parametrize("logvar_bias", [0.0, 9.5, -9.5, 30.0], ids=["inside", "upper edge", "lower edge", "clamped"])
def test_gradcheck(logvar_bias):
    y, params, weight, bias = make(logvar_bias=logvar_bias)
    inputs = [tensor.requires_grad_() for tensor in (y, *params, weight, bias)]

    def op(y, *rest):
        write = bottleneck_write(y, BottleneckParams(*rest[:8]), rest[8], rest[9], noise_key(0), 0)
        return write.update / 100, write.kl / 100  # σ = e⁵ at the upper edge

    assert torch.autograd.gradcheck(op, inputs, atol=1e-6)


def test_clamped_logvar_has_no_gradient():
    y, params, weight, bias = make(logvar_bias=100.0)
    params.b2.requires_grad_()
    bottleneck_write(y, params, weight, bias, noise_key(0), 0).kl.sum().backward()
    assert torch.all(params.b2.grad[:, R:] == 0)
    assert torch.any(params.b2.grad[:, :R] != 0)
    assert torch.all(encode(y, params).logvar == 10)


def test_kl_is_zero_at_the_prior_and_positive_elsewhere():
    zero = torch.zeros(2, 3, 4, R)
    assert torch.all(kl_to_prior(Posterior(zero, zero)) == 0)
    assert torch.all(kl_to_prior(Posterior(zero + 0.1, zero)) > 0)
    assert torch.all(kl_to_prior(Posterior(zero, zero - 0.1)) > 0)


def test_kl_is_float32_in_low_precision():
    y, params, weight, bias = make(dtype=torch.bfloat16)
    write = bottleneck_write(y, params, weight, bias, noise_key(0), 0)
    assert write.update.dtype is torch.bfloat16
    assert write.kl.dtype is torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        write = bottleneck_write(
            y, BottleneckParams(*(p.float() for p in params)), weight.float(), bias.float(), noise_key(0), 0
        )
    assert write.kl.dtype is torch.float32
