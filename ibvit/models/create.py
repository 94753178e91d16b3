"""Build models by timm name, start them from timm weights, save and load them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import timm
import timm.models.vision_transformer as timm_vit
import torch
from timm.layers import Attention as TimmAttention
from timm.layers import PatchEmbed, resample_abs_pos_embed, resample_patch_embed
from timm.models import register_model
from torch import Tensor

from ibvit import ops, run_folder
from ibvit.kinds import KindName
from ibvit.models.storage import read_weights, save_weights
from ibvit.models.vit import VisionTransformer

_POOLING: dict[str, Any] = {"class_token": False, "reg_tokens": 0, "global_pool": "avg", "fc_norm": False}


def create_model(
    name: str = "vit_tiny_patch16_224",
    *,
    attention: KindName = "ib",
    latent_dim: int = 32,
    hidden_dim: int = 64,
    impl: ops.Impl = "auto",
    pretrained: bool | str | Path = False,
    **timm_args: Any,
) -> VisionTransformer:
    """Any timm ``VisionTransformer``, with its attention bottlenecked, unmodified or absent.

    With the same torch seed the three kinds start from the same backbone weights.

    Args:
        name: a timm model name, e.g. ``"vit_small_patch16_224"``.
        attention: ``"ib"`` (a bottleneck on each head's write), ``"full"`` (as in timm), ``"none"`` (no attention).
        latent_dim: r, dimensions of each head's latent.
        hidden_dim: h, width of each head's encoder and decoder.
        impl: which implementation of the bottleneck runs, see :func:`ibvit.ops.bottleneck_write`.
        pretrained: start the backbone from a timm checkpoint: a file, or True for the one that timm downloads.
        timm_args: passed to ``timm.create_model``: ``num_classes``, ``img_size``, ``patch_size``, ``depth``, …

    Raises:
        ValueError: an unknown name or kind, or a model that is not a plain ``VisionTransformer``.

    Example:
        >>> model = create_model("vit_tiny_patch16_224", num_classes=100)
        >>> sum(p.numel() for p in model.parameters())
        6068644
    """
    if attention not in get_args(KindName):
        raise ValueError(f"attention: expected one of {', '.join(get_args(KindName))}, got {attention!r}")
    for argument, size in (("latent_dim", latent_dim), ("hidden_dim", hidden_dim)):
        if size < 1:
            raise ValueError(f"{argument}: expected at least 1, got {size}")
    if not timm.is_model(name):
        raise ValueError(f"name: expected the name of a timm model (timm.list_models('vit_*')), got {name!r}")
    try:
        source = timm.create_model(name, **_POOLING, **timm_args)
    except TypeError as error:  # not a ViT, or an argument that a ViT does not have
        raise ValueError(
            f"name: timm cannot build {name!r} as a VisionTransformer with these arguments: {error}"
        ) from error
    if (
        not isinstance(source, timm_vit.VisionTransformer)
        or type(source.patch_embed) is not PatchEmbed
        or any(type(block) is not timm_vit.Block or type(block.attn) is not TimmAttention for block in source.blocks)
    ):
        raise ValueError(
            f"name: expected a timm VisionTransformer of plain PatchEmbed, Block and Attention layers, got {name!r}"
        )
    model = VisionTransformer(source, attention, latent_dim, hidden_dim, impl)
    if pretrained is True:
        load_backbone(model, timm.create_model(name, pretrained=True).state_dict())
    elif pretrained:
        load_backbone(model, read_state_dict(Path(pretrained)))
    return model


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint file (.safetensors, or a torch file, which is read without running any code in it).

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, or holds anything but tensors and plain containers.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: no file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"checkpoint: {path} is damaged or not a checkpoint of tensors ({error})") from error
    for wrapper in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"checkpoint: expected a dictionary of tensors in {path}")
    return content


@torch.no_grad()
def load_backbone(model: VisionTransformer, state: dict[str, Tensor]) -> None:
    """Load a plain timm ViT's state dict: what the kinds share is taken, the bottlenecks keep their initialisation.

    A class token and its position are left out; the position embedding and the patch embedding are resampled to the
    model's grid; a head for other classes is left out.

    Raises:
        ValueError: a backbone tensor is missing or has another shape.
    """
    own = model.state_dict()
    state = dict(state)
    if "pos_embed" in state and "pos_embed" in own:
        prefix = state["pos_embed"].shape[1] - _square_below(state["pos_embed"].shape[1])
        prefix = prefix if "cls_token" in state or "reg_token" in state else 0
        pos_embed = state["pos_embed"][:, prefix:]
        if pos_embed.shape[1] != own["pos_embed"].shape[1]:
            pos_embed = resample_abs_pos_embed(pos_embed, new_size=list(model.grid_size), num_prefix_tokens=0)
        state["pos_embed"] = pos_embed
    if "patch_embed.proj.weight" in state:
        weight = state["patch_embed.proj.weight"]
        if tuple(weight.shape[-2:]) != model.patch_size:
            state["patch_embed.proj.weight"] = resample_patch_embed(weight, list(model.patch_size))
    if "fc_norm.weight" in state:  # timm's average-pooled models keep the final norm under this name
        state.update({f"norm.{part}": state[f"fc_norm.{part}"] for part in ("weight", "bias")})
    if "head.weight" in state and state["head.weight"].shape != own["head.weight"].shape:
        del state["head.weight"], state["head.bias"]

    bottleneck = {name for name in own if name.split(".")[-1] in ops.BottleneckParams._fields}
    wanted = set(own) - bottleneck - ({"head.weight", "head.bias"} - set(state))
    for name in sorted(wanted):
        if name not in state:
            raise ValueError(f"state: expected the tensor {name}, which a timm ViT of this shape has; it is missing")
        if state[name].shape != own[name].shape:
            raise ValueError(f"state: expected {name} {list(own[name].shape)}, got {list(state[name].shape)}")
    model.load_state_dict({name: state[name] for name in state if name in own}, strict=False)


def _square_below(count: int) -> int:
    return int(count**0.5) ** 2


def save_model(model: VisionTransformer, directory: Path, facts: Mapping[str, Any] | None = None) -> None:
    """Write the weights to ``model.safetensors`` (the run's ``config.json`` beside it tells how to build the model).

    Args:
        facts: what else the file's header says.
    """
    save_weights(directory / run_folder.MODEL, model.state_dict(), facts or {})


def load(directory: str | Path) -> VisionTransformer:
    """The model of a run folder, or of an exported ``model.safetensors`` + ``config.json``, in evaluation mode.

    Raises:
        FileNotFoundError: the folder lacks one of the two files.
        ValueError: a file is damaged, or the weights do not fit the configuration.
    """
    directory = Path(directory)
    spec = run_folder.read_config(directory, "directory")["architecture"]
    weights = directory / run_folder.MODEL
    if not weights.is_file():
        raise FileNotFoundError(f"directory: expected a run folder with {weights.name}, found none in {directory}")
    model = create_model(**spec)
    try:
        model.load_state_dict(read_weights(weights)[0])
    except RuntimeError as error:
        raise ValueError(f"directory: {weights} does not fit {directory / run_folder.CONFIG}: {error}") from error
    return model.eval()


def _register(size: str) -> None:
    """Give timm the names ``ibvit_<size>_patch16_224`` and ``vit_noattn_<size>_patch16_224``."""
    backbone = f"vit_{size}_patch16_224"
    kinds: dict[str, KindName] = {f"ibvit_{size}_patch16_224": "ib", f"vit_noattn_{size}_patch16_224": "none"}
    for name, attention in kinds.items():

        def entrypoint(pretrained: bool = False, *, _attention: KindName = attention, **args: Any) -> VisionTransformer:
            known = {key: value for key, value in args.items() if value is not None}
            return create_model(backbone, attention=_attention, pretrained=pretrained, **known)

        entrypoint.__name__ = entrypoint.__qualname__ = name
        globals()[name] = register_model(entrypoint)


__all__ = ["create_model", "load", "load_backbone", "read_state_dict", "save_model"]
for _size in ("tiny", "small", "base", "large"):
    _register(_size)
