"""Build models by timm name, start them from weights, save and load them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from timm.models import register_model
from torch import nn

from ibvit import arguments, ops, run_folder
from ibvit.errors import UnavailableError
from ibvit.kinds import KindName
from ibvit.models.build import build
from ibvit.models.sources import read_run, read_source
from ibvit.models.storage import save_weights
from ibvit.models.vit import VisionTransformer
from ibvit.models.weights import load_backbone, load_source


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
        pretrained: start from these weights: a timm checkpoint file, a run folder or its ``model.safetensors``
            (bottlenecks included), or True for the checkpoint that timm downloads. See
            :func:`ibvit.models.load_weights`; ``model.loaded`` says what was taken, changed, left out and is new.
        timm_args: ``num_classes``, ``img_size``, ``patch_size``, ``depth`` and other arguments of timm's
            ``VisionTransformer``; :mod:`ibvit.models.architecture` lists them.

    Raises:
        TypeError, ValueError: an unknown name or argument, a value out of range, a model that is not a plain
            ``VisionTransformer``, or weights that do not fit.
        FileNotFoundError: there is no such file of weights.
        UnavailableError: timm cannot get the weights of this model here.

    Example:
        >>> model = create_model("vit_tiny_patch16_224", num_classes=100)
        >>> sum(p.numel() for p in model.parameters())
        6068644
    """
    if not isinstance(pretrained, bool | str | Path):
        raise TypeError(f"pretrained: expected True, False or a path, got {arguments.shown(pretrained)}")
    model = build(name, attention, latent_dim, hidden_dim, impl, **timm_args)
    if pretrained is True:
        load_backbone(model, _download(name))
    elif pretrained is not False:
        config = timm.get_pretrained_cfg(name)
        size = config.input_size[-2:] if config is not None else None
        load_source(model, read_source(pretrained, "pretrained", size))
    return model


def _download(name: str) -> nn.Module:
    """timm's model of this name with its pretrained weights."""
    try:
        return timm.create_model(name, pretrained=True)
    except Exception as error:  # no weights, no network, no space: everyone on the way has errors of their own
        reason = arguments.one_line(error)
        raise UnavailableError(f"pretrained: timm cannot get the weights of {name!r}: {reason}") from error


def save_model(model: VisionTransformer, directory: str | Path, facts: Mapping[str, Any] | None = None) -> None:
    """Write the weights to ``model.safetensors`` (the run's ``config.json`` beside it tells how to build the model).

    Args:
        facts: what else the file's header says, as JSON can hold it.

    Raises:
        TypeError: not a model of ours, or not a path.
        FileNotFoundError: there is no such folder.
    """
    if not isinstance(model, VisionTransformer):
        raise TypeError(f"model: expected an ibvit VisionTransformer, got {type(model).__name__}")
    directory = arguments.path("directory", directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"directory: expected a folder, found none at {directory}")
    save_weights(directory / run_folder.MODEL, model.state_dict(), facts or {})


def load(directory: str | Path) -> VisionTransformer:
    """The model of a run folder, or of an exported ``model.safetensors`` + ``config.json``, in evaluation mode.

    The configuration may contain nothing but what :mod:`ibvit.models.architecture` lists, and neither file runs code.

    Raises:
        TypeError: not a path.
        FileNotFoundError: the folder lacks one of the two files.
        ValueError: a file is damaged, the configuration is refused, or the weights do not fit the configuration.
    """
    directory = arguments.path("directory", directory)
    run = read_run(directory, "directory")
    model = build(**run.architecture)
    model.load_state_dict(run.weights)
    return model.eval()


def _register(size: str) -> None:
    """Give timm the names ``ibvit_<size>_patch16_224`` and ``vit_noattn_<size>_patch16_224``."""
    backbone = f"vit_{size}_patch16_224"
    kinds: dict[str, KindName] = {f"ibvit_{size}_patch16_224": "ib", f"vit_noattn_{size}_patch16_224": "none"}
    for name, attention in kinds.items():

        def entrypoint(pretrained: bool = False, *, _attention: KindName = attention, **args: Any) -> VisionTransformer:
            options = {key: value for key, value in args.items() if value is not None}
            return create_model(backbone, attention=_attention, pretrained=pretrained, **options)

        entrypoint.__name__ = entrypoint.__qualname__ = name
        globals()[name] = register_model(entrypoint)


__all__ = ["create_model", "load", "save_model"]
for _size in ("tiny", "small", "base", "large"):
    _register(_size)
