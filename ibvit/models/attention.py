"""Self-attention with and without a bottleneck on each head's write.

Both modules adopt the parameters of a timm ``Attention`` under their own names (``qkv``, ``proj``, …), so a timm state
dict loads. ``forward`` is the fast path; when a :class:`Probe` is attached, the same computation runs step by step and
exposes or changes what the probe names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from timm.layers import Attention as TimmAttention
from torch import Tensor, nn

from ibvit import ops
from ibvit.ops import reference

INITIAL_LOGVAR = -6.0
"""Initial bias of ρ: the channel starts at about 80 nats per head and token."""

HOOKS = ("hook_pattern", "hook_mu", "hook_logvar", "hook_z", "hook_kl", "hook_update")


@dataclass
class Probe:
    """What to read from one block's attention, and what to change in it.

    ``cache`` maps the names of hooks to None; the forward pass fills in the tensors.
    """

    cache: dict[str, Tensor | None] = field(default_factory=dict)
    mean: bool = False  # z = μ instead of a sample
    silent: frozenset[int] = frozenset()  # heads that write nothing and whose KL counts as 0
    z: dict[int, Tensor] = field(default_factory=dict)  # head → latent to use instead, broadcast to [B, N, r]

    def wants(self, hook: str) -> bool:
        return hook in self.cache

    def record(self, hook: str, value: Tensor) -> None:
        if hook in self.cache:
            self.cache[hook] = value


class Attention(nn.Module):
    """The unmodified attention of a ViT: tokens ``[B, N, C]`` → update ``[B, N, C]``."""

    hooks: tuple[str, ...] = ("hook_pattern", "hook_update")

    def __init__(self, source: TimmAttention, block: int) -> None:
        super().__init__()
        self.block = block
        self.num_heads: int = source.num_heads
        self.head_dim: int = source.head_dim
        self.qkv, self.q_norm, self.k_norm = source.qkv, source.q_norm, source.k_norm
        self.attn_drop, self.norm = source.attn_drop, source.norm
        self.proj, self.proj_drop = source.proj, source.proj_drop
        self.probe: Probe | None = None

    def attend(self, x: Tensor) -> Tensor:
        """softmax(QKᵀ/√D) V of all heads, ``[B, N, H·D]``, through the fused kernel: no N×N matrix."""
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.probe is not None and self.probe.wants("hook_pattern"):
            logits = (q @ k.transpose(-2, -1)).float() / math.sqrt(self.head_dim)
            self.probe.record("hook_pattern", logits.softmax(dim=-1))
        dropout = self.attn_drop.p if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return self.norm(y.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, key: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Update ``[B, N, C]`` and no KL: that of a deterministic write is infinite."""
        y = self.attend(x)
        probe = self.probe
        if probe is not None and probe.silent:
            y = _mask_heads(y.unflatten(2, (self.num_heads, -1)), probe.silent, axis=2).flatten(2)
        update = self.proj_drop(self.proj(y))
        if probe is not None:
            probe.record("hook_update", update)
        return update, None


class BottleneckAttention(Attention):
    """Attention with a variational bottleneck on each head's write (paper, Eqs. 1-3).

    Parameters are batched over the H heads; see :class:`ibvit.ops.BottleneckParams` for shapes. Initialised like
    ``nn.Linear``, except that ρ starts at −6.

    Args:
        source: the timm attention to adopt.
        block: index of the block, part of the address of its noise.
        latent_dim: r, dimensions of z.
        hidden_dim: h, width of encoder and decoder.
        impl: ``"auto"``, ``"triton"``, ``"native"`` or ``"reference"``, see :func:`ibvit.ops.bottleneck_write`.
    """

    hooks = HOOKS

    def __init__(
        self, source: TimmAttention, block: int, latent_dim: int = 32, hidden_dim: int = 64, impl: ops.Impl = "auto"
    ) -> None:
        super().__init__(source, block)
        self.latent_dim, self.hidden_dim, self.impl = latent_dim, hidden_dim, impl
        heads, width = self.num_heads, self.head_dim
        for name, fan_in, fan_out in (
            ("1", width, hidden_dim),
            ("2", hidden_dim, 2 * latent_dim),
            ("3", latent_dim, hidden_dim),
            ("4", hidden_dim, width),
        ):
            self.register_parameter(f"w{name}", nn.Parameter(self.proj.weight.new_empty(heads, fan_in, fan_out)))
            self.register_parameter(f"b{name}", nn.Parameter(self.proj.weight.new_empty(heads, fan_out)))
        self.reset_parameters()

    def extra_repr(self) -> str:
        sizes = f"heads={self.num_heads}, hidden_dim={self.hidden_dim}, latent_dim={self.latent_dim}"
        return f"{sizes}, impl={self.impl}"

    @torch.no_grad()
    def reset_parameters(self) -> None:
        params = self.params
        for weight, bias in zip(params[::2], params[1::2], strict=True):
            bound = 1 / math.sqrt(weight.shape[1])  # nn.Linear's default, for weight and bias alike
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)
        params.b2[:, self.latent_dim :] = INITIAL_LOGVAR

    @property
    def params(self) -> ops.BottleneckParams:
        return ops.BottleneckParams(*(getattr(self, name) for name in ops.BottleneckParams._fields))

    def forward(self, x: Tensor, key: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Update ``[B, N, C]`` and KL ``[B, H, N]`` in nats, with the noise that ``key`` addresses."""
        if key is None:
            raise ValueError("key: expected a noise key [seed, step, first_sample], got None")
        y = self.attend(x)
        weight, bias = self.proj.weight, self._proj_bias()
        if self.probe is None:
            update, kl = ops.bottleneck_write(y, self.params, weight, bias, key, self.block, impl=self.impl)
        else:
            update, kl = self._probed_write(y, weight, bias, key, self.probe)
        return self.proj_drop(update), kl

    def _proj_bias(self) -> Tensor:
        if self.proj.bias is None:
            return self.proj.weight.new_zeros(self.proj.out_features)
        return self.proj.bias

    def _probed_write(
        self, y: Tensor, weight: Tensor, bias: Tensor, key: Tensor, probe: Probe
    ) -> reference.BottleneckWrite:
        posterior = reference.encode(y, self.params)
        z = posterior.mu if probe.mean else reference.sample(posterior, key, self.block)
        if probe.z:
            z = z.clone()
            for head, value in probe.z.items():
                if value.ndim == 3 and value.shape[0] not in (1, len(z)):
                    raise ValueError(f"z: expected a batch of {len(z)} images like the model's, got {len(value)}")
                if value.ndim > 1 and value.shape[-2] not in (1, z.shape[2]):
                    raise ValueError(f"z: expected {z.shape[2]} tokens like the model's, got {value.shape[-2]}")
                z[:, head] = value.to(z)
        messages = _mask_heads(reference.decode(z, self.params, y.dtype), probe.silent, axis=1)
        kl = _mask_heads(reference.kl_to_prior(posterior), probe.silent, axis=1)
        update = reference.project(messages, weight, bias)
        probe.record("hook_mu", posterior.mu)
        probe.record("hook_logvar", posterior.logvar)
        probe.record("hook_z", z)
        probe.record("hook_kl", kl)
        probe.record("hook_update", update)
        return reference.BottleneckWrite(update, kl)


def _mask_heads(x: Tensor, silent: frozenset[int], axis: int) -> Tensor:
    """x with the slices of the silent heads set to zero."""
    if not silent:
        return x
    return x.index_fill(axis, torch.tensor(sorted(silent), device=x.device), 0)
