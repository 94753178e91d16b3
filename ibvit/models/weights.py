"""Load weights of another run or file into a model: what fits is taken, all else is named or refused."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import timm.models.vision_transformer as timm_vit
import torch
import torch.nn.functional as F
from timm.layers import resample_patch_embed
from torch import Tensor, nn

from ibvit import arguments, ops
from ibvit.models.loaded import BLOCK, Loaded
from ibvit.models.sources import (
    PATCHES,
    POSITIONS,
    PREFIX,
    Grid,
    Source,
    check_tensors,
    first_of,
    possible_patches,
    read_source,
    shape_of,
)
from ibvit.models.vit import VisionTransformer

_UNUSED = ("mask_token",)  # of pretraining alone


def load_weights(model: VisionTransformer, path: str | Path, *, grid: Grid | None = None) -> Loaded:
    """Start a model from the weights of a run folder or of a checkpoint file, bottlenecks included.

    The source may have another grid, other classes, or another kind of attention; see :func:`load_backbone`.

    Args:
        path: a run folder, or a ``.safetensors`` or torch file of an ibvit or timm ViT.
        grid: (rows, columns) of the source's patches. It is known of a run folder, and of a file with timm's or our
            ``config.json`` beside it.

    Returns:
        what was taken, changed, left out and is new; also ``model.loaded``, and one line of the log.

    Raises:
        TypeError: an argument is of another type.
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, its grid cannot be known, or it does not fit the model; then nothing is loaded.

    Example:
        >>> import ibvit, tempfile
        >>> tiny = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 1}
        >>> folder = Path(tempfile.mkdtemp())
        >>> ibvit.models.save_model(ibvit.create_model(num_classes=10, **tiny), folder)
        >>> loaded = load_weights(ibvit.create_model(num_classes=3, **tiny), folder / "model.safetensors", grid=(2, 2))
        >>> loaded.left_out, loaded.new
        (('head.bias', 'head.weight'), ('head.bias', 'head.weight'))
    """
    _check_target(model, grid)
    return load_source(model, read_source(path, "path"), grid)


def load_backbone(
    model: VisionTransformer, source: nn.Module | Mapping[str, Tensor], *, grid: Grid | None = None
) -> Loaded:
    """Start a model from the weights of a timm or ibvit ViT, or from its state dict.

    Bottlenecks are loaded too if the source has them, and keep their initialisation if not. The position embedding and
    the patch embedding are resampled to the model's grid. Left out, and named, are a class token and registers with
    their positions, a head for other classes, and what the model's kind of attention does without. Tensors alone do
    not tell the number of heads: it is compared where the source is a model or a run folder.

    Args:
        source: the model, or its tensors by name.
        grid: (rows, columns) of the source's patches; needed for a state dict with a position embedding.

    Raises:
        TypeError: the source is neither.
        ValueError: a tensor is missing, has another shape, or is not in the model; then nothing is loaded.
    """
    if isinstance(source, VisionTransformer | timm_vit.VisionTransformer):
        rows, columns = source.patch_embed.grid_size
        heads = source.num_heads if isinstance(source, VisionTransformer) else _heads(source)
        return load_source(model, Source("source", source.state_dict(), (rows, columns), heads), grid)
    if not isinstance(source, Mapping):
        raise TypeError(f"source: expected a timm or ibvit ViT or its state dict, got {type(source).__name__}")
    return load_source(model, Source("source", source), grid)


def _heads(source: timm_vit.VisionTransformer) -> int:
    blocks: list[Any] = list(source.blocks)
    return blocks[0].attn.num_heads


@torch.no_grad()
def load_source(model: VisionTransformer, source: Source, grid: Grid | None = None) -> Loaded:
    """See :func:`load_backbone`; a `grid` from the caller overrides the one of the source."""
    _check_target(model, grid)
    check_tensors(source)
    own, state = model.state_dict(), dict(source.state)
    changed: list[str] = []
    left_out = [name for name in (*PREFIX, *_UNUSED) if name in state]
    _check_blocks(model, source)

    if POSITIONS in state and POSITIONS in own and state[POSITIONS].ndim == 3:
        grid = source.grid if grid is None else (grid[0], grid[1])
        if grid is None:
            raise ValueError(_cannot_tell(source))
        if math.prod(grid) not in possible_patches(source.state):
            counts = " or ".join(map(str, possible_patches(source.state)))
            raise ValueError(f"{source.label}: expected positions of {_times(grid)} patches, got {counts}")
        before = state[POSITIONS].shape[1] - math.prod(grid)
        if before:
            left_out.append(f"{POSITIONS} of {before} tokens before the patches")
        state[POSITIONS] = state[POSITIONS][:, before:]
        if grid != model.grid_size:
            state[POSITIONS] = _resampled(state[POSITIONS], grid, model.grid_size)
            changed.append(f"{POSITIONS} ({_times(grid)} to {_times(model.grid_size)} patches)")
    if PATCHES in state and state[PATCHES].ndim == 4 and tuple(state[PATCHES].shape[-2:]) != model.patch_size:
        size = tuple(state[PATCHES].shape[-2:])
        state[PATCHES] = resample_patch_embed(state[PATCHES].float(), list(model.patch_size))
        changed.append(f"{PATCHES} ({_times(size)} to {_times(model.patch_size)} pixels)")
    if "fc_norm.weight" in state and "norm.weight" not in state:  # timm's name for the norm of an average of tokens
        for name in [name for name in state if name.startswith("fc_norm.")]:
            state[name.removeprefix("fc_")] = state.pop(name)
        changed.append("norm (from fc_norm, which acted after pooling)")

    left_out += [name for name in state if _is_without_counterpart(name, model)]
    heads = [name for name in {*own, *state} if name.startswith(("head.", "head_dist."))]
    if any(shape_of(own.get(name)) != shape_of(state.get(name)) for name in ("head.weight", "head.bias")):
        left_out += [name for name in heads if name in state]
    elif "head_dist.weight" in state:
        left_out += [name for name in heads if name in state and name not in own]
    state = {name: value for name, value in state.items() if name not in left_out}
    bottleneck = {name for name in own if _is_bottleneck(name)}
    new = {name for name in heads if name in own and name not in state}
    new |= set() if bottleneck & set(state) else bottleneck

    _check_fit(own, state, new, source.label)
    model.load_state_dict(state, strict=False)
    loaded = Loaded(source.label, tuple(sorted(state)), tuple(changed), tuple(sorted(left_out)), tuple(sorted(new)))
    model.loaded = loaded
    logging.getLogger("ibvit").info("weights: %s", loaded)
    return loaded


def _check_target(model: Any, grid: Any) -> None:
    if not isinstance(model, VisionTransformer):
        raise TypeError(f"model: expected an ibvit VisionTransformer, got {type(model).__name__}")
    if grid is None:
        return
    if not isinstance(grid, tuple | list) or len(grid) != 2:
        raise TypeError(f"grid: expected (rows, columns) of patches, got {arguments.shown(grid)}")
    for size in grid:
        arguments.whole("grid", size, 1, 1 << 16)


def _check_blocks(model: VisionTransformer, source: Source) -> None:
    """Check what shapes do not show: the number of blocks and, where it is known, of heads."""
    blocks = 1 + max((int(match[1]) for name in source.state if (match := BLOCK.match(name))), default=-1)
    if blocks and blocks != model.num_blocks:
        raise ValueError(f"{source.label}: expected {model.num_blocks} blocks as the model has, got {blocks}")
    if source.heads is not None and model.attentions and source.heads != model.num_heads:
        raise ValueError(f"{source.label}: expected {model.num_heads} heads as the model has, got {source.heads}")


def _cannot_tell(source: Source) -> str:
    counts = " or ".join(map(str, possible_patches(source.state)))
    return (
        f"{source.label}: expected to know the grid of its {counts} patches, which weights alone do not tell: put the "
        "model's config.json beside model.safetensors, or call ibvit.models.load_weights(…, grid=(rows, columns))"
    )


def _resampled(positions: Tensor, old: Grid, new: Grid) -> Tensor:
    """Positions ``[1, rows·columns, C]`` of another grid."""
    picture = positions.float().unflatten(1, old).permute(0, 3, 1, 2)
    return F.interpolate(picture, new, mode="bicubic", antialias=True).flatten(2).transpose(1, 2)


_ATTENTION = re.compile(r"blocks\.\d+\.(attn|norm1|ls1)\.", re.ASCII)
_IN_BOTTLENECK = re.compile(rf"blocks\.\d+\.attn\.({'|'.join(ops.BottleneckParams._fields)})", re.ASCII)


def _is_bottleneck(name: str) -> bool:
    return _IN_BOTTLENECK.fullmatch(name) is not None


def _is_without_counterpart(name: str, model: VisionTransformer) -> bool:
    """Whether a tensor is of attention or bottlenecks that the model, by its kind, does without."""
    if not model.attentions and _ATTENTION.match(name):
        return True
    return not model.has_kl and _is_bottleneck(name)


def _check_fit(own: Mapping[str, Tensor], state: Mapping[str, Tensor], new: set[str], label: str) -> None:
    if surplus := sorted(set(state) - set(own)):
        raise ValueError(f"{label}: expected tensors that the model has, got also {first_of(surplus)}")
    if missing := sorted(set(own) - set(state) - new):
        raise ValueError(f"{label}: expected all tensors of the model, missing {first_of(missing)}")
    for name, value in state.items():
        if value.shape != own[name].shape:
            raise ValueError(f"{label}: expected {name} {list(own[name].shape)}, got {list(value.shape)}")


def _times(size: Iterable[int]) -> str:
    return "×".join(map(str, size))
