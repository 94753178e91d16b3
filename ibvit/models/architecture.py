"""What an architecture may contain: the arguments of `create_model` with their types and ranges.

One table for callers in Python and for configurations in files, which are not trusted: what is not in it is refused, so
that a file can neither name another file to load nor describe a model that no machine can build.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, get_args

import timm

from ibvit import arguments, ops
from ibvit.kinds import KindName
from ibvit.ops.noise import MAX_LATENTS

_WEIGHT_INITS = ("", "jax", "jax_nlhb", "moco", "skip", "reset")


def _name(argument: str, value: Any) -> None:
    if not (isinstance(value, str) and timm.is_model(value)):
        value_text = arguments.shown(value)
        raise ValueError(f"{argument}: expected the name of a timm model (timm.list_models('vit_*')), got {value_text}")
    if value.startswith(("ibvit_", "vit_noattn_")):
        raise ValueError(f"{argument}: expected a backbone such as 'vit_tiny_patch16_224', got {value!r}")


def _size(argument: str, value: Any, *, most: int) -> None:
    """Pixels: one number, or (height, width)."""
    both = value if isinstance(value, list | tuple) else (value, value)
    if len(both) != 2:
        raise ValueError(f"{argument}: expected a size or (height, width), got {arguments.shown(value)}")
    for one in both:
        arguments.whole(argument, one, 1, most)


def _rate(argument: str, value: Any) -> None:
    if arguments.number(argument, value, 0, 1) == 1:
        raise ValueError(f"{argument}: expected less than 1, got {value}")


def _optional_number(argument: str, value: Any) -> None:
    if value is not None:
        arguments.number(argument, value, 0, 100)


def _whole(low: int, high: int) -> Callable[[str, Any], object]:
    return partial(arguments.whole, low=low, high=high)


ARGUMENTS: dict[str, Callable[[str, Any], object]] = {
    "name": _name,
    "attention": partial(arguments.choice, options=get_args(KindName)),
    "latent_dim": _whole(1, MAX_LATENTS),
    "hidden_dim": _whole(1, 4096),
    "num_classes": _whole(0, 1_000_000),
    "img_size": partial(_size, most=16_384),
    "patch_size": partial(_size, most=1024),
    "in_chans": _whole(1, 1024),
    "embed_dim": _whole(1, 16_384),
    "depth": _whole(1, 256),
    "num_heads": _whole(1, 256),
    "mlp_ratio": partial(arguments.number, low=0.01, high=64),
    "init_values": _optional_number,
    "pos_embed": partial(arguments.choice, options=("", "none", "learn")),
    "weight_init": partial(arguments.choice, options=_WEIGHT_INITS),
    **dict.fromkeys(
        ("qkv_bias", "qk_norm", "scale_attn_norm", "scale_mlp_norm", "proj_bias", "pre_norm", "final_norm", "fix_init"),
        arguments.boolean,
    ),
    **dict.fromkeys(
        (
            "drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate",
        ),
        _rate,
    ),
}  # fmt: skip
LAYERS = ("norm_layer", "embed_norm_layer", "act_layer", "mlp_layer")
"""Classes of layers, which only callers in Python can give."""


def check_argument(name: str, value: Any, shown_as: str | None = None) -> None:
    """Refuse a value that this argument of `create_model` cannot have.

    Args:
        shown_as: what messages call the argument; None: by its name.
    """
    shown_as = shown_as or name
    if name == "impl":
        arguments.choice(shown_as, value, get_args(ops.Impl))
    elif name in LAYERS:
        if not (isinstance(value, str) or callable(value)):
            raise TypeError(f"{shown_as}: expected a class of layers, got {arguments.shown(value)}")
    elif name in ARGUMENTS:
        ARGUMENTS[name](shown_as, value)
    else:
        raise ValueError(f"{shown_as}: expected one of {', '.join((*ARGUMENTS, *LAYERS))}, got another argument")


def check_architecture(spec: Mapping[str, Any], source: str) -> None:
    """Refuse an architecture from a file that contains anything but what is in the table.

    Args:
        spec: the value of ``architecture`` in ``config.json``.
        source: argument and file, for messages.

    Raises:
        ValueError: names the file and the key.
    """
    for name, value in spec.items():
        if name not in ARGUMENTS:
            names = ", ".join(ARGUMENTS)
            raise ValueError(f"{source}: architecture: expected only {names}, got {arguments.shown(name)}")
        try:
            check_argument(name, value, f"{source}: architecture: {name}")
        except TypeError as error:  # of the file's content, which is no argument of a caller
            raise ValueError(str(error)) from None
