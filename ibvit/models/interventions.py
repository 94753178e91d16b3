"""Read and change what heads transmit: ``run_with_cache``, ``noise``, ``use_mean``, ``silence``, ``replace``.

The contexts nest, undo themselves, and work on any backend and on a compiled or DDP-wrapped model: while one needs it,
a block runs step by step through the reference instead of the fused op, and the log says so.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace as with_changes

from torch import Tensor, nn

from ibvit import arguments, ops
from ibvit.models.attention import Attention, BottleneckAttention, Probe
from ibvit.models.kl import parse_head, parse_heads
from ibvit.models.vit import VisionTransformer

log = logging.getLogger(__name__)


def unwrap(model: nn.Module) -> VisionTransformer:
    """The VisionTransformer inside ``torch.compile`` and DDP wrappers."""
    while not isinstance(model, VisionTransformer):
        inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            raise TypeError(f"model: expected an ibvit VisionTransformer, got {type(model).__name__}")
        model = inner
    return model


@functools.cache
def _log_once() -> None:
    log.info("hooks and interventions: the affected blocks run the reference implementation")


@contextmanager
def _probing(attention: Attention, probe: Probe) -> Iterator[Probe]:
    previous, attention.probe = attention.probe, probe
    if previous is None and isinstance(attention, BottleneckAttention):
        _log_once()
    try:
        yield probe
    finally:
        attention.probe = previous


def _probe(attention: Attention) -> Probe:
    return attention.probe or Probe()


@contextmanager
def noise(model: nn.Module, seed: int = 0) -> Iterator[None]:
    """Draw the noise inside from ``seed``: what runs inside can be repeated. Then the model has its own noise again.

    Each forward pass inside moves on by one step, so batches get different noise.

    Raises:
        TypeError, ValueError: not a model of ours, or not a seed.

    Example:
        >>> import ibvit, torch
        >>> model = ibvit.create_model(depth=1, num_classes=10).eval()
        >>> images = torch.randn(2, 3, 224, 224)
        >>> with torch.no_grad(), ibvit.noise(model, seed=0):
        ...     first = model(images)
        >>> with torch.no_grad(), ibvit.noise(model, seed=0):
        ...     again = model(images)
        >>> torch.equal(first, again)
        True
    """
    key, new = unwrap(model).noise_key, ops.noise_key(seed)
    previous = key.clone()
    key.copy_(new)
    try:
        yield
    finally:
        key.copy_(previous)


@contextmanager
def use_mean(model: nn.Module) -> Iterator[None]:
    """Send the mean μ of each posterior instead of a sample: a deterministic model; the KL stays as it is.

    Raises:
        ValueError: the model has no bottlenecks.
    """
    core = _require_bottlenecks(unwrap(model))
    with ExitStack() as stack:
        for attention in core.attentions:
            stack.enter_context(_probing(attention, with_changes(_probe(attention), mean=True)))
        yield


@contextmanager
def silence(model: nn.Module, heads: Sequence[str]) -> Iterator[None]:
    """Zero ablation: the named heads write nothing to the residual stream, and their KL counts as 0.

    Args:
        heads: names "block.head", e.g. ``["11.0"]``. Works for ``ib`` and ``full``.

    Raises:
        TypeError: not a list of names.
        ValueError: no such head.
    """
    core = unwrap(model)
    if not core.attentions:
        raise ValueError(f"model: expected a model with attention, got attention={core.attention!r}")
    with ExitStack() as stack:
        for block, silent in parse_heads(heads, core.num_blocks, core.num_heads).items():
            attention = core.attentions[block]
            probe = _probe(attention)
            stack.enter_context(_probing(attention, with_changes(probe, silent=probe.silent | frozenset(silent))))
        yield


@contextmanager
def replace(model: nn.Module, head: str, *, z: Tensor) -> Iterator[None]:
    """Send ``z`` as one head's latent instead of its own sample; its KL stays that of its own posterior.

    Args:
        head: name "block.head".
        z: anything that broadcasts to ``[B, N, r]``, floating-point.

    Raises:
        TypeError: ``z`` is not such a tensor.
        ValueError: no such head, no bottlenecks, or a shape that does not broadcast; a batch of another size is found
            when the model runs.
    """
    core = _require_bottlenecks(unwrap(model))
    block, index = parse_head(head, core.num_blocks, core.num_heads)
    arguments.tensor("z", z)
    arguments.with_values("z", z)
    tokens, latents = core.channels.tokens, core.latent_dim
    fits = all(size in (1, whole) for size, whole in zip(z.shape[::-1], (latents, tokens), strict=False))
    if z.ndim > 3 or not fits:
        raise ValueError(f"z: expected a tensor that broadcasts to [B, {tokens}, {latents}], got {list(z.shape)}")
    attention = core.attentions[block]
    probe = _probe(attention)
    with _probing(attention, with_changes(probe, z={**probe.z, index: z})):
        yield


def run_with_cache(
    model: nn.Module, images: Tensor, names: Sequence[str] | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and the named intermediate tensors of one forward pass.

    Args:
        images: ``[B, 3, height, width]``, normalised.
        names: hooks ``"blocks.{l}.attn.{hook}"`` with hook one of ``hook_pattern`` (attention probabilities,
            ``[B, H, N, N]``), ``hook_mu``, ``hook_logvar``, ``hook_z`` (``[B, H, N, r]``), ``hook_kl``
            (``[B, H, N]``, nats), ``hook_update`` (what the block's attention writes, ``[B, N, C]``). Default: all but
            the patterns. A ``full`` model has ``hook_pattern`` and ``hook_update`` only.

    Raises:
        TypeError: images or names of another type.
        ValueError: images of another size or device, or no such hook in this model.

    Example:
        >>> import ibvit, torch
        >>> model = ibvit.create_model(depth=2, num_classes=10).eval()
        >>> with torch.no_grad():
        ...     logits, cache = ibvit.run_with_cache(model, torch.randn(2, 3, 224, 224), ["blocks.1.attn.hook_kl"])
        >>> cache["blocks.1.attn.hook_kl"].shape
        torch.Size([2, 3, 196])
    """
    core = unwrap(model)
    available = _hook_names(core)
    if names is None:
        names = [name for name in available if not name.endswith("hook_pattern")]
    arguments.names("names", names)
    unknown = [name for name in names if name not in available]
    if unknown:
        examples = f"{available[0]} … {available[-1]}" if available else "none: this model has no attention"
        raise ValueError(
            f"names: expected hooks of this model ({examples}), got {arguments.one_line(', '.join(unknown))}"
        )
    hooks_by_block: dict[int, list[str]] = {}
    for name in names:
        _, index, _, hook = name.split(".")
        hooks_by_block.setdefault(int(index), []).append(hook)
    with ExitStack() as stack:
        probes = {}
        for block, hooks in hooks_by_block.items():
            attention = core.attentions[block]
            probe = with_changes(_probe(attention), cache=dict.fromkeys(hooks))
            probes[block] = stack.enter_context(_probing(attention, probe))
        logits = model(images)
    cache = {f"blocks.{b}.attn.{hook}": value for b, probe in probes.items() for hook, value in probe.cache.items()}
    return logits, {name: value for name in names if (value := cache[name]) is not None}


def _hook_names(model: VisionTransformer) -> list[str]:
    return [f"blocks.{attention.block}.attn.{hook}" for attention in model.attentions for hook in attention.hooks]


def _require_bottlenecks(model: VisionTransformer) -> VisionTransformer:
    if not model.has_kl:
        raise ValueError(f"model: expected attention='ib', got attention={model.attention!r}")
    return model
