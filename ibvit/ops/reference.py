"""The bottleneck in plain PyTorch: the specification, and the oracle of every fast path.

One variational bottleneck on each attention head's write to the residual stream (paper, Eqs. 1-3)::

    a     = GELU(y W1 + b1)                  [μ|ρ] = a W2 + b2,  ρ = log σ² clamped to [-10, 10]
    z     = μ + exp(ρ/2) ε                   g     = GELU(z W3 + b3),  ŷ = g W4 + b4
    out   = concat_heads(ŷ) Woᵀ + bo         KL    = ½ Σ_j (exp ρ_j + μ_j² − 1 − ρ_j)

Shapes: B images, N tokens, H heads, D head width, C = H·D model width, h hidden, r latent. Heads are the batch
dimension of every product, all images' tokens its rows: no loop runs over heads. μ, ρ, z and KL are float32 (float64
for float64 input) in any precision.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ibvit.ops.noise import standard_normal

LOGVAR_RANGE = (-10.0, 10.0)


class BottleneckParams(NamedTuple):
    """Parameters of one block's H bottlenecks; the last two axes of each weight are [in, out]."""

    w1: Tensor  # [H, D, h]
    b1: Tensor  # [H, h]
    w2: Tensor  # [H, h, 2r], columns [μ | ρ]
    b2: Tensor  # [H, 2r]
    w3: Tensor  # [H, r, h]
    b3: Tensor  # [H, h]
    w4: Tensor  # [H, h, D]
    b4: Tensor  # [H, D]


class Posterior(NamedTuple):
    """q(z | y) = N(mu, diag exp(logvar)) of each head and token."""

    mu: Tensor  # [B, H, N, r]
    logvar: Tensor  # [B, H, N, r], clamped


class BottleneckWrite(NamedTuple):
    """What one block writes to the residual stream, and its KL."""

    update: Tensor  # [B, N, C], in y's dtype
    kl: Tensor  # [B, H, N], nats, float32


def _per_head(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x ``[H, B·N, in]`` through each head's linear map ``[H, in, out]``, in x's dtype."""
    return torch.baddbmm(bias[:, None].to(x.dtype), x, weight.to(x.dtype))


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def encode(y: Tensor, params: BottleneckParams) -> Posterior:
    """Posterior of each head from the attention output y ``[B, N, H·D]`` (Eq. 2)."""
    batch, tokens, _ = y.shape
    heads = params.w1.shape[0]
    y = y.reshape(batch * tokens, heads, params.w1.shape[1]).transpose(0, 1)
    hidden = F.gelu(_per_head(y, params.w1, params.b1))
    both = _at_least_float32(_per_head(hidden, params.w2, params.b2))
    mu, logvar = both.unflatten(1, (batch, tokens)).transpose(0, 1).chunk(2, dim=-1)
    return Posterior(mu, logvar.clamp(*LOGVAR_RANGE))


def sample(posterior: Posterior, key: Tensor, block: int) -> Tensor:
    """z = μ + exp(ρ/2) ε ``[B, H, N, r]`` with the ε that (key, block) address."""
    batch, heads, tokens, latents = posterior.mu.shape
    eps = standard_normal(key, block, batch, heads, tokens, latents)
    return posterior.mu + torch.exp(posterior.logvar / 2) * eps.to(posterior.mu.dtype)


def kl_to_prior(posterior: Posterior) -> Tensor:
    """KL(q(z|y) ‖ N(0, I)) in nats, ``[B, H, N]``: what each head pays for each token."""
    mu, logvar = posterior
    return 0.5 * (torch.exp(logvar) + mu.square() - 1 - logvar).sum(dim=-1)


def decode(z: Tensor, params: BottleneckParams, dtype: torch.dtype) -> Tensor:
    """Each head's message ŷ ``[B, H, N, D]`` from z ``[B, H, N, r]``, computed in ``dtype``."""
    batch, _, tokens, _ = z.shape
    hidden = F.gelu(_per_head(z.to(dtype).transpose(0, 1).flatten(1, 2), params.w3, params.b3))
    return _per_head(hidden, params.w4, params.b4).unflatten(1, (batch, tokens)).transpose(0, 1)


def project(messages: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Concatenate the heads' messages ``[B, H, N, D]`` and project them: the update ``[B, N, C]``."""
    return F.linear(messages.transpose(1, 2).flatten(2), weight, bias)


def bottleneck_write(
    y: Tensor, params: BottleneckParams, proj_weight: Tensor, proj_bias: Tensor, key: Tensor, block: int
) -> BottleneckWrite:
    """The whole op: y ``[B, N, H·D]`` → update ``[B, N, C]`` and KL ``[B, H, N]``.

    Args:
        proj_weight, proj_bias: the attention's output projection, ``[C, H·D]`` and ``[C]`` (``nn.Linear`` layout).
        key, block: address of the noise, see :mod:`ibvit.ops.noise`.
    """
    posterior = encode(y, params)
    messages = decode(sample(posterior, key, block), params, y.dtype)
    return BottleneckWrite(project(messages, proj_weight, proj_bias), kl_to_prior(posterior))
