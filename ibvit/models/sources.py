"""Read weights from files, with what is known of the model that they come from.

A file of weights does not say which grid of patches its position embedding belongs to, nor whether its class token and
registers have positions: 64 positions are 8×8 or 4×16. So the grid is *known*, from the model that the weights come
from, from the configuration beside the file, from timm's configuration of that architecture, or from the caller.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ibvit import arguments, run_folder
from ibvit.models.architecture import check_architecture
from ibvit.models.build import build
from ibvit.models.storage import read_weights
from ibvit.models.vit import VisionTransformer

Grid = tuple[int, int]
PREFIX = ("cls_token", "dist_token", "reg_token")
"""Tokens before the patches, which a model here does not have."""
POSITIONS, PATCHES = "pos_embed", "patch_embed.proj.weight"


class Source(NamedTuple):
    """Weights, with what is known of the model that they come from."""

    label: str  # for messages
    state: Mapping[str, Tensor]
    grid: Grid | None = None  # rows and columns of its patches
    heads: int | None = None


def read_state_dict(path: str | Path, argument: str = "path") -> dict[str, Tensor]:
    """Tensors of a checkpoint file (.safetensors, or a torch file, which is read without running any code in it).

    Args:
        argument: what the caller's user calls the file, for messages.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, or holds anything but tensors and plain containers.
    """
    path = arguments.path(argument, path)
    if not path.is_file():
        raise FileNotFoundError(f"{argument}: no file {path}")
    if path.suffix == ".safetensors":
        return read_weights(path, argument)[0]
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = arguments.one_line(str(error).partition(" In PyTorch")[0])  # it goes on to advise running the code
        raise ValueError(f"{argument}: {path} is damaged or not a checkpoint of tensors ({reason})") from error
    for wrapper in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{argument}: expected a dictionary of tensors in {path}")
    return content


def read_source(path: str | Path, argument: str, size: Grid | None = None) -> Source:
    """Weights of a run folder or a file, with the grid if it can be known.

    Args:
        argument: what the caller's user calls the path, for messages.
        size: (height, width) in pixels of the images that the file's model takes, where nothing beside the file says.
    """
    path = arguments.path(argument, path)
    if path.is_dir():
        run = read_run(path, argument)
        return Source(f"{argument}: {path}", run.weights, run.skeleton.grid_size, run.skeleton.num_heads)
    state = read_state_dict(path, argument)
    label = f"{argument}: {path}"
    beside = path.with_name(run_folder.CONFIG)
    if path.name in (run_folder.MODEL, "pytorch_model.bin") and beside.is_file():
        content = _read_json(beside, argument)
        if isinstance(content.get("architecture"), dict):
            model = build_skeleton(content["architecture"], f"{argument}: {beside}")
            return Source(label, state, model.grid_size, model.num_heads)
        size = _size_in_timm_config(content) or size
    patches = state.get(PATCHES)
    if size is None or patches is None or patches.ndim != 4 or min(patches.shape[2:]) < 1:
        return Source(label, state)
    grid = size[0] // patches.shape[2], size[1] // patches.shape[3]
    return Source(label, state, grid if math.prod(grid) in possible_patches(state) else None)


def possible_patches(state: Mapping[str, Tensor]) -> list[int]:
    """How many patches the position embedding can be of: tokens before the patches have positions, all or none."""
    if POSITIONS not in state or state[POSITIONS].ndim != 3:
        return []
    positions = state[POSITIONS].shape[1]
    before = sum(state[name].shape[1] for name in PREFIX if name in state and state[name].ndim == 3)
    return sorted({positions - before, positions})


def _read_json(path: Path, argument: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{argument}: {path} is damaged ({arguments.one_line(error)})") from error
    return content if isinstance(content, dict) else {}


def _size_in_timm_config(content: Mapping[str, Any]) -> Grid | None:
    """(height, width) of a model on the Hugging Face hub: what it was built with, or what its weights were made for."""
    stored, model_args = content.get("pretrained_cfg"), content.get("model_args")
    size = stored.get("input_size") if isinstance(stored, dict) else None
    size = size[-2:] if isinstance(size, list) and len(size) == 3 else None
    if isinstance(model_args, dict) and model_args.get("img_size"):
        size = model_args["img_size"] if isinstance(model_args["img_size"], list) else [model_args["img_size"]] * 2
    if size is None or len(size) != 2 or not all(type(one) is int and 0 < one < 1 << 16 for one in size):
        return None
    return size[0], size[1]


class Run(NamedTuple):
    """The model of a run folder: arguments of `build`, the model without memory, and weights that fit it."""

    architecture: dict[str, Any]
    skeleton: VisionTransformer
    weights: dict[str, Tensor]


def read_run(folder: Path, argument: str) -> Run:
    """What a run folder says of its model.

    Raises:
        FileNotFoundError: the folder lacks its configuration or its weights.
        ValueError: one of them is damaged, the architecture is refused, or they do not fit each other.
    """
    spec = run_folder.read_config(folder, argument)["architecture"]
    weights, config = folder / run_folder.MODEL, folder / run_folder.CONFIG
    if not weights.is_file():
        raise FileNotFoundError(f"{argument}: expected a run folder with {weights.name}, found none in {folder}")
    skeleton = build_skeleton(spec, f"{argument}: {config}")
    state = read_state_dict(weights, argument)
    own = skeleton.state_dict()
    differing = [
        f"{name} ({shape_of(own.get(name))} expected, {shape_of(state.get(name))} found)"
        for name in sorted({*own, *state})
        if shape_of(own.get(name)) != shape_of(state.get(name))
    ]
    if differing:
        raise ValueError(f"{argument}: {weights} does not fit {config}: {first_of(differing)}")
    check_tensors(Source(f"{argument}: {weights}", state))
    return Run(spec, skeleton, state)


def build_skeleton(spec: Mapping[str, Any], source: str) -> VisionTransformer:
    """The model of an architecture from a file, without memory for its weights.

    Raises:
        ValueError: the architecture contains what it may not, or cannot be built.
    """
    check_architecture(spec, source)
    try:
        with torch.device("meta"):
            return build(**spec)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def check_tensors(source: Source) -> None:
    for name, value in source.state.items():
        if not isinstance(name, str):
            raise TypeError(f"{source.label}: expected tensors by name, got the name {arguments.shown(name)}")
        try:
            arguments.tensor(name, value)
            arguments.with_values(name, value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{source.label}: {error}") from None


def shape_of(tensor: Tensor | None) -> str:
    """The shape as messages show it; "none" without a tensor."""
    return "none" if tensor is None else str(list(tensor.shape))


def first_of(names: list[str]) -> str:
    """A few of some names, and how many there are."""
    names = [arguments.one_line(name) for name in names]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
