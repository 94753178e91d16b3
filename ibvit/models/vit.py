"""The vision transformer of the paper, in three kinds: ``ib``, ``full`` and ``none``.

timm builds the backbone; :class:`VisionTransformer` adopts its parts under their own names and runs them so that the
noise goes in and the KL comes out explicitly. There is no class token, and the final norm acts on each token before
the mean, so the logits are the mean of the patches' votes.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import timm.models.vision_transformer as timm_vit
import torch
import torch.nn.functional as F
from timm.layers import Attention as TimmAttention
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ibvit import arguments, ops
from ibvit.kinds import KINDS, KindName
from ibvit.models.architecture import check_argument
from ibvit.models.attention import Attention, BottleneckAttention
from ibvit.models.kl import Channels
from ibvit.models.loaded import Loaded
from ibvit.ops.noise import check_key


class Output(NamedTuple):
    """What ``model(images, return_kl=True)`` gives."""

    logits: Tensor  # [B, classes]
    kl: Tensor  # [B, L, H, N], nats, float32


class Block(nn.Module):
    """One residual block: the attention's write, if there is attention, then the MLP's."""

    def __init__(self, source: timm_vit.Block, attention: Attention | None) -> None:
        super().__init__()
        if not isinstance(source, timm_vit.Block):
            raise TypeError(f"source: expected a timm Block, got {arguments.shown(source)}")
        if not (attention is None or isinstance(attention, Attention)):
            raise TypeError(f"attention: expected the block's Attention or None, got {arguments.shown(attention)}")
        self.attn = attention
        if attention is not None:
            self.norm1, self.ls1, self.drop_path1 = source.norm1, source.ls1, source.drop_path1
        self.norm2, self.mlp, self.ls2, self.drop_path2 = source.norm2, source.mlp, source.ls2, source.drop_path2

    def forward(self, x: Tensor, key: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Residual stream ``[B, N, C]`` → (the same, KL ``[B, H, N]`` or None)."""
        kl = None
        if self.attn is not None:
            update, kl = self.attn(self.norm1(x), key)
            x = x + self.drop_path1(self.ls1(update))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x)))), kl


class VisionTransformer(nn.Module):
    """A timm ``VisionTransformer`` whose attention is bottlenecked, unmodified, or absent.

    Made by :func:`ibvit.create_model`. Calling it draws fresh noise each time; the noise follows from the key
    (seed, step, first sample) alone, see :mod:`ibvit.ops.noise`.

    Attributes:
        attention: ``"ib"``, ``"full"`` or ``"none"``.
        num_blocks, num_heads, latent_dim: L, H, r (``latent_dim`` is 0 without bottlenecks).
        grid_size, patch_size: patches (rows, columns) of an image; pixels (height, width) of a patch.
        loaded: which weights the model started from (checkpoint or run); None for random weights.
    """

    noise_key: Tensor

    def __init__(
        self, source: timm_vit.VisionTransformer, attention: KindName, latent_dim: int, hidden_dim: int, impl: ops.Impl
    ) -> None:
        super().__init__()
        if not isinstance(source, timm_vit.VisionTransformer):
            raise TypeError(f"source: expected a timm VisionTransformer, got {arguments.shown(source)}")
        options = {"attention": attention, "latent_dim": latent_dim, "hidden_dim": hidden_dim, "impl": impl}
        for argument, value in options.items():
            check_argument(argument, value)
        self.attention: KindName = attention
        self.loaded: Loaded | None = None
        self.num_classes: int = source.num_classes
        self.embed_dim: int = source.embed_dim
        blocks: list[Any] = list(source.blocks)
        self.num_heads: int = blocks[0].attn.num_heads
        self.latent_dim = latent_dim if self.has_kl else 0
        self.grad_checkpointing = False

        def adopt_attention(block: int, timm_attention: TimmAttention) -> Attention | None:
            if self.has_kl:
                return BottleneckAttention(timm_attention, block, latent_dim, hidden_dim, impl)
            return Attention(timm_attention, block) if KINDS[attention].has_attention else None

        self.patch_embed = source.patch_embed
        self.pos_embed = source.pos_embed
        self.pos_drop, self.patch_drop, self.norm_pre = source.pos_drop, source.patch_drop, source.norm_pre
        self.blocks = nn.ModuleList(Block(b, adopt_attention(i, b.attn)) for i, b in enumerate(blocks))
        self.norm, self.head_drop, self.head = source.norm, source.head_drop, source.head
        self.register_buffer("noise_key", ops.noise_key(0), persistent=False)

    @property
    def has_kl(self) -> bool:
        """Whether heads write through bottlenecks: then the model has a KL and latents, and takes a noise key."""
        return KINDS[self.attention].has_kl

    @property
    def attentions(self) -> list[Attention]:
        """The attention of each block; empty for ``none``."""
        return [block.attn for block in cast(list[Block], list(self.blocks)) if block.attn is not None]

    @property
    def num_blocks(self) -> int:
        return len(self.blocks)

    @property
    def grid_size(self) -> tuple[int, int]:
        rows, columns = self.patch_embed.grid_size
        return rows, columns

    @property
    def patch_size(self) -> tuple[int, int]:
        height, width = self.patch_embed.patch_size
        return height, width

    @property
    def image_size(self) -> tuple[int, int]:
        height, width = self.patch_embed.img_size
        return height, width

    @property
    def channels(self) -> Channels:
        """How many bottlenecked channels an image passes through: blocks, heads, tokens."""
        return Channels(self.num_blocks, self.num_heads, self.grid_size[0] * self.grid_size[1])

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of storing its activations."""
        arguments.boolean("enable", enable)
        self.grad_checkpointing = enable

    def forward_features(self, images: Tensor, key: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Normalised tokens ``[B, N, C]`` and KL ``[B, L, H, N]`` (None without bottlenecks).

        Args:
            images: ``[B, 3, height, width]``, normalised.
            key: noise key; by default the model's own, which then moves on by one step.
        """
        self._check_images(images)
        if key is not None:
            check_key(key, images.device)
        if key is None and self.has_kl:
            key = self.noise_key.clone()  # the backward pass needs this step's key after the next step has begun
            self.noise_key[1] += 1
        x = self._embed(images)
        if self.pos_embed is not None:
            x = x + self.pos_embed
        x = self.norm_pre(self.patch_drop(self.pos_drop(x)))
        kls = []
        for block in self.blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x, kl = checkpoint(block, x, key, use_reentrant=False)
            else:
                x, kl = block(x, key)
            kls.append(kl)
        return self.norm(x), torch.stack(kls, dim=1) if self.has_kl else None

    def forward(self, images: Tensor, return_kl: bool = False, key: Tensor | None = None) -> Tensor | Output:
        """Logits ``[B, classes]``; with ``return_kl`` also the KL ``[B, L, H, N]`` in nats.

        Args:
            images: ``[B, 3, height, width]``, normalised.
            return_kl: give an :class:`Output` (logits, kl).
            key: int64 ``[3]`` noise key; by default the model's own, which then moves on by one step.

        Raises:
            TypeError: images or key of another type or dtype.
            ValueError: images of another size or device, or ``return_kl`` on a model that has no bottlenecks.
        """
        arguments.boolean("return_kl", return_kl)
        if return_kl and not self.has_kl:
            raise ValueError(f"return_kl: expected a model with attention='ib', got attention={self.attention!r}")
        tokens, kl = self.forward_features(images, key)
        logits = self.head(self.head_drop(tokens.mean(dim=1)))
        return logits if kl is None or not return_kl else Output(logits, kl)

    def patch_logits(self, images: Tensor, key: Tensor | None = None) -> Tensor:
        """The vote of each patch, ``[B, N, classes]``; their mean over N is the logits."""
        tokens, _ = self.forward_features(images, key)
        return self.head(self.head_drop(tokens))

    def _embed(self, images: Tensor) -> Tensor:
        """Patches as tokens ``[B, N, C]``: a convolution whose stride is its kernel is one matrix product."""
        (rows, columns), (height, width) = self.grid_size, self.patch_size
        whole = images[:, :, : rows * height, : columns * width].unflatten(3, (columns, width))
        patches = whole.unflatten(2, (rows, height)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        proj = self.patch_embed.proj
        return self.patch_embed.norm(F.linear(patches, proj.weight.flatten(1), proj.bias))

    def _check_images(self, images: Tensor) -> None:
        weight = self.patch_embed.proj.weight
        if isinstance(images, Tensor) and not images.is_meta and torch.is_autocast_enabled(images.device.type):
            arguments.tensor("images", images, (torch.float32, torch.bfloat16, torch.float16))
        else:
            arguments.tensor("images", images, (weight.dtype,))
        expected = (weight.shape[1], *self.image_size)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise ValueError(f"images: expected [B, {', '.join(map(str, expected))}], got {list(images.shape)}")
        if images.device != weight.device:
            raise ValueError(f"images: expected on the model's device {weight.device}, got {images.device}")
