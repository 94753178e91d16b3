"""From the arguments of an architecture to its model."""

from __future__ import annotations

from typing import Any

import timm
import timm.models.vision_transformer as timm_vit
from timm.layers import Attention as TimmAttention
from timm.layers import PatchEmbed

from ibvit import arguments, ops
from ibvit.kinds import KindName
from ibvit.models.architecture import check_argument
from ibvit.models.vit import VisionTransformer

_POOLING: dict[str, Any] = {"class_token": False, "reg_tokens": 0, "global_pool": "avg", "fc_norm": False}


def build(
    name: str = "vit_tiny_patch16_224",
    attention: KindName = "ib",
    latent_dim: int = 32,
    hidden_dim: int = 64,
    impl: ops.Impl = "auto",
    **timm_args: Any,
) -> VisionTransformer:
    """The model with random weights; arguments as in :func:`ibvit.create_model`.

    Raises:
        TypeError, ValueError: an argument is not what the table of :mod:`ibvit.models.architecture` allows, or timm
            cannot build a plain ``VisionTransformer`` from them together.
    """
    own = {"name": name, "attention": attention, "latent_dim": latent_dim, "hidden_dim": hidden_dim, "impl": impl}
    for argument, value in (own | timm_args).items():
        check_argument(argument, value)
    argument_list = ", ".join(f"{argument}={arguments.shown(value)}" for argument, value in timm_args.items())
    sizes = {argument: tuple(timm_args[argument]) for argument in _SIZES if isinstance(timm_args.get(argument), list)}
    try:
        source = timm.create_model(name, **_POOLING, **(timm_args | sizes))
    except Exception as error:  # not a ViT, or arguments that exclude each other: timm has no one error for them
        reason = arguments.one_line(error) or type(error).__name__
        raise ValueError(
            f"name: timm cannot build {name!r} as a VisionTransformer with {argument_list or 'no arguments'}: {reason}"
        ) from error
    if (
        not isinstance(source, timm_vit.VisionTransformer)
        or type(source.patch_embed) is not PatchEmbed
        or any(type(block) is not timm_vit.Block or type(block.attn) is not TimmAttention for block in source.blocks)
    ):
        raise ValueError(
            f"name: expected a timm VisionTransformer of plain PatchEmbed, Block and Attention layers, got {name!r}"
        )
    if 0 in source.patch_embed.grid_size:
        size, patch = source.patch_embed.img_size, source.patch_embed.patch_size
        raise ValueError(f"img_size: expected at least one patch of {patch} pixels, got {size}")
    return VisionTransformer(source, attention, latent_dim, hidden_dim, impl)


_SIZES = ("img_size", "patch_size")
