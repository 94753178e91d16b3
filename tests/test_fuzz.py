"""Spoilt arguments of every public function: each call returns, or raises one line that a person can read.

A case draws a valid call and puts hostile values in the place of one or two of its arguments. All of them are wrong
except those that the function's row names as acceptable; then the call must raise.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

import ibvit
from benchmarks.problems import make_problem
from ibvit import information, models, ops
from ibvit.arguments import shown
from ibvit.models import kl as accounting

PAIRS = 60  # cases of each function with two spoilt arguments, beside one case for each argument and hostile value

HOSTILE: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "str": lambda: "text",
    "empty str": lambda: "",
    "two lines": lambda: "two\nlines\0",
    "bytes": lambda: b"bytes",
    "True": lambda: True,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "-1": lambda: -1,
    "0": lambda: 0,
    "1.5": lambda: 1.5,
    "2**63": lambda: 2**63,
    "1e300": lambda: 1e300,
    "10**5000": lambda: 10**5000,
    "complex": lambda: 1j,
    "object": object,
    "class": lambda: int,
    "function": lambda: lambda: None,
    "dict": dict,
    "set": lambda: {1, 2},
    "list": list,
    "nested list": lambda: [[1.0, [2.0]], ["a\nb"]],
    "iterator": lambda: iter([1]),
    "tensor 0-d": lambda: torch.tensor(1.0),
    "tensor empty": lambda: torch.empty(0),
    "tensor 5-d": lambda: torch.zeros(1, 1, 1, 1, 1),
    "tensor int": lambda: torch.zeros(2, 3, dtype=torch.int32),
    "tensor complex": lambda: torch.zeros(2, 3, dtype=torch.cfloat),
    "tensor float8": lambda: torch.zeros(2, 3).to(torch.float8_e4m3fn),
    "tensor sparse": lambda: torch.eye(3).to_sparse(),
    "tensor meta": lambda: torch.zeros(2, 3, device="meta"),
    "tensor nested": lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    "array masked": lambda: np.ma.masked_less(np.zeros((4, 2)), 1),
    "array object": lambda: np.array([None, "a"], dtype=object),
    "array empty": lambda: np.empty((0, 2)),
}
SPOILT: dict[str, Callable[[Any], Any]] = {  # a valid tensor or array, almost
    "flattened": lambda x: x.reshape(-1)[:7],
    "an axis more": lambda x: x[None, None],
    "short": lambda x: x[..., :-1],
    "as integers": lambda x: x.astype(int) if isinstance(x, np.ndarray) else x.to(torch.int16),
    "as complex": lambda x: x + 1j,
    "on meta": lambda x: x.to("meta") if isinstance(x, Tensor) else np.ma.masked_array(x),
}


class Row(NamedTuple):
    """A function, a valid call of it, and for each argument the hostile values that it may take."""

    function: Callable[..., Any]
    arguments: dict[str, Any]
    accepted: dict[str, str] | None = None  # names of hostile values, joined by commas
    called: tuple[str, ...] = ()  # what messages may name instead

    def accepts(self, argument: str, value: str) -> bool:
        return value in (self.accepted or {}).get(argument, "").split(", ")


def entered(context: Callable[..., AbstractContextManager[None]]) -> Callable[..., Any]:
    """The context around one pass of the model."""

    def enter(**arguments: Any) -> None:
        with context(**arguments), torch.no_grad():
            MODEL(IMAGES)

    return enter


TINY = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2, "num_classes": 3}
torch.manual_seed(0)
MODEL = ibvit.create_model(attention="ib", latent_dim=2, hidden_dim=4, **TINY).eval()
FULL = ibvit.create_model(attention="full", **TINY).eval()
BACKBONE = timm.create_model("vit_tiny_patch16_224", **TINY)
IMAGES, KEY, KL = torch.randn(2, 3, 8, 8), torch.tensor([0, 0, 0]), torch.rand(2, 1, 2, 4)
WRITE = make_problem(heads=2, width=4, columns=8, hidden=4, latent=2, batch=1, tokens=3).cast(torch.float32)
MU = np.random.default_rng(0).normal(size=(8, 3))
CHANNEL = {"mu": MU, "logvar": MU * 0 - 1}
PAIR = (MU, MU * 0 - 1)
OPTIONS = {
    "samples": 32, "seed": 0, "method": "auto", "tolerance": 0.5, "idle_nats": 1e-4, "impl": "torch", "threads": 1,
}  # fmt: skip
SEEDS = "-1, 0"
ACCEPTED_OPTIONS = {
    "samples": "None",
    "seed": SEEDS,
    "tolerance": "1.5, 2**63, 1e300",
    "idle_nats": "0, 1.5, 2**63, 1e300",
    "threads": "None",
}
NO_KEY = {"key": "None, flattened"}


def write(params: Any = WRITE.params, **arguments: Any) -> ops.BottleneckWrite:
    """Tensors of `params` by their own names."""
    inner = {name: arguments.pop(name) for name in ops.BottleneckParams._fields}
    return ops.bottleneck_write(
        params=ops.BottleneckParams(**inner) if isinstance(params, tuple) else params, **arguments
    )


def load_with(**architecture: Any) -> None:
    """A run folder whose configuration asks for this, as far as JSON can."""
    Path("config.json").write_text(json.dumps({"architecture": architecture}, default=shown))
    ibvit.load(Path())


def started_from(tensor: Any) -> None:
    models.load_backbone(MODEL, BACKBONE.state_dict() | {"norm.bias": tensor}, grid=(2, 2))


SPEC = {"attention": "ib", "latent_dim": 2, "hidden_dim": 4, **TINY}
ROWS = {
    "create_model": Row(
        ibvit.create_model,
        {
            "name": "vit_tiny_patch16_224", "attention": "ib", "latent_dim": 2, "hidden_dim": 4, "impl": "auto",
            "pretrained": False, "mlp_ratio": 2.0, "qkv_bias": True, "drop_rate": 0.0, "init_values": None,
            "weight_init": "", "pos_embed": "learn", "norm_layer": "layernorm", **TINY,
        },
        {
            "num_classes": "0", "qkv_bias": "True", "mlp_ratio": "1.5", "drop_rate": "0", "init_values": "None, 0, 1.5",
            "weight_init": "empty str", "pos_embed": "empty str", "norm_layer": "None, empty str",
        },
    ),
    "VisionTransformer": Row(
        models.VisionTransformer,
        {"source": BACKBONE, "attention": "ib", "latent_dim": 2, "hidden_dim": 4, "impl": "auto"},
    ),
    "Block": Row(models.Block, {"source": BACKBONE.blocks[0], "attention": None}, {"attention": "None"}),
    "model()": Row(MODEL, {"images": IMAGES, "return_kl": True, "key": KEY}, {"return_kl": "True", **NO_KEY}),
    "patch_logits": Row(MODEL.patch_logits, {"images": IMAGES, "key": KEY}, NO_KEY),
    "forward_features": Row(MODEL.forward_features, {"images": IMAGES, "key": KEY}, NO_KEY),
    "set_grad_checkpointing": Row(MODEL.set_grad_checkpointing, {"enable": False}, {"enable": "True"}),
    "load, its architecture": Row(load_with, SPEC, called=("directory",)),
    "load_backbone, a tensor": Row(started_from, {"tensor": torch.zeros(8)}, called=("norm.bias",)),
    "create_model, its sizes": Row(
        lambda height, width: ibvit.create_model(**{**SPEC, "img_size": (height, width)}), {"height": 8, "width": 8},
        called=("img_size",),
    ),
    "load_backbone, its grid": Row(
        lambda rows, columns: models.load_backbone(MODEL, BACKBONE.state_dict(), grid=(rows, columns)),
        {"rows": 2, "columns": 2},
        called=("grid",),
    ),
    "silence, a head": Row(
        lambda head: entered(ibvit.silence)(model=MODEL, heads=[head]), {"head": "0.1"}, called=("heads",)
    ),
    "run_with_cache, a name": Row(
        lambda names: ibvit.run_with_cache(MODEL, IMAGES, [names]), {"names": "blocks.0.attn.hook_z"}
    ),
    "nmi, a channel": Row(lambda mu, logvar: ibvit.nmi(PAIR, (mu, logvar), **OPTIONS), CHANNEL),
    "nmi_matrix, a channel": Row(
        lambda channels, others: ibvit.nmi_matrix([PAIR, channels], [others], **OPTIONS),
        {"channels": PAIR, "others": PAIR},
    ),
    "a model of full attention": Row(FULL, {"images": IMAGES, "return_kl": False, "key": KEY}, NO_KEY),
    "silence, full attention": Row(
        entered(ibvit.silence), {"model": FULL, "heads": ["0.1"]}, {"heads": "list"}
    ),
    "load": Row(ibvit.load, {"directory": Path()}),
    "save_model": Row(models.save_model, {"model": MODEL, "directory": Path()}),
    "read_state_dict": Row(models.read_state_dict, {"path": Path("weights.pt")}),
    "load_weights": Row(models.load_weights, {"model": MODEL, "path": "weights.pt", "grid": (2, 2)}),
    "load_backbone": Row(
        models.load_backbone,
        {"model": MODEL, "source": BACKBONE.state_dict(), "grid": (2, 2)},
    ),
    "unwrap": Row(models.unwrap, {"model": MODEL}),
    "use_mean": Row(entered(ibvit.use_mean), {"model": MODEL}),
    "noise": Row(entered(ibvit.noise), {"model": MODEL, "seed": 1}, {"seed": SEEDS}),
    "silence": Row(entered(ibvit.silence), {"model": MODEL, "heads": ["0.1"]}, {"heads": "list"}),
    "replace": Row(
        entered(ibvit.replace),
        {"model": MODEL, "head": "0.1", "z": torch.zeros(2, 4, 2)},
        {"z": "tensor 0-d, short"},
    ),
    "run_with_cache": Row(
        ibvit.run_with_cache,
        {"model": MODEL, "images": IMAGES, "names": ["blocks.0.attn.hook_mu"]},
        {"names": "None, list"},
    ),
    "penalty": Row(accounting.penalty, {"kl": KL, "reduction": "mean"}, {"kl": "short, on meta"}),
    "convert_beta": Row(
        accounting.convert_beta,
        {"beta": 1.0, "channels": MODEL.channels, "source": "mean", "target": "sum"},
        {"beta": "-1, 0, 1.5, 1e300, 2**63"},
    ),
    "bits": Row(accounting.bits, {"nats": 1.0}, {"nats": "nan, inf, -1, 0, 1.5, 2**63, 1e300"}),
    "active_heads": Row(
        accounting.active_heads,
        {"kl": KL, "threshold": 0.01},
        {"kl": "short, on meta", "threshold": "-1, 0, 1.5, 2**63, 1e300"},
    ),
    "per_image": Row(accounting.per_image, {"kl": KL}, {"kl": "short, on meta"}),
    "per_patch": Row(accounting.per_patch, {"kl": KL}, {"kl": "short, on meta"}),
    "per_head": Row(accounting.per_head, {"kl": KL}, {"kl": "short, on meta"}),
    "active_latents": Row(
        accounting.active_latents,
        {"mu": KL, "logvar": KL, "threshold": 0.01},
        {"threshold": "-1, 0, 1.5, 2**63, 1e300"},
    ),
    "head_names": Row(accounting.head_names, {"active": KL[0, :, :, 0] > 0.5}, {"active": "short"}),
    "KLMeter.update": Row(lambda kl: accounting.KLMeter().update(kl), {"kl": KL}, {"kl": "short, on meta"}),
    "parse_head": Row(
        accounting.parse_head, {"head": "0.1", "blocks": 1, "heads": 2}, {"blocks": "2**63", "heads": "2**63"}
    ),
    "parse_heads": Row(
        accounting.parse_heads,
        {"names": ["0.1"], "blocks": 1, "heads": 2},
        {"names": "list", "blocks": "2**63", "heads": "2**63"},
    ),
    "mutual_information": Row(ibvit.mutual_information, {**CHANNEL, **OPTIONS}, ACCEPTED_OPTIONS),
    "nmi": Row(ibvit.nmi, {"first": PAIR, "second": PAIR, **OPTIONS}, ACCEPTED_OPTIONS),
    "nmi_matrix": Row(
        ibvit.nmi_matrix,
        {"channels": [PAIR, PAIR], "others": [PAIR], **OPTIONS},
        {"others": "None", **ACCEPTED_OPTIONS},
    ),
    "Options": Row(information.Options, OPTIONS, {**ACCEPTED_OPTIONS}),
    "load_channel": Row(information.load_channel, {"path": "head.npz"}),
    "bottleneck_write": Row(
        write,
        {
            "y": WRITE.y, **WRITE.params._asdict(), "params": WRITE.params, "proj_weight": WRITE.proj_weight,
            "proj_bias": WRITE.proj_bias, "key": KEY, "block": 0, "impl": "auto",
        },
        {"block": "0", "key": "flattened"},
    ),
    "noise_key": Row(
        ops.noise_key,
        {"seed": 0, "step": 0, "first_sample": 0, "device": "cpu"},
        {"seed": SEEDS, "step": "0", "first_sample": "0", "device": "None"},
    ),
    "evaluation_key": Row(
        ops.evaluation_key,
        {"seed": 0, "repeat": 0, "first_sample": 0, "device": "cpu"},
        {"seed": SEEDS, "repeat": "0", "first_sample": "0", "device": "None"},
    ),
}  # fmt: skip
SKIPPED = {("create_model", "pretrained", "True")}  # timm would ask the network
SKIPPED |= {("load, its architecture", argument, "10**5000") for argument in SPEC}  # JSON cannot be written with it


def cases(name: str) -> list[tuple[tuple[str, str], ...]]:
    """Which arguments get which hostile values: each by itself, and some pairs, the same in every run."""
    row = ROWS[name]
    single = [
        (argument, value)
        for argument, valid in row.arguments.items()
        for value in (*HOSTILE, *(SPOILT if isinstance(valid, Tensor | np.ndarray) else ()))
        if (name, argument, value) not in SKIPPED
    ]
    draw = random.Random(name)
    pairs = [tuple(draw.sample(single, 2)) for _ in range(PAIRS if len(row.arguments) > 1 else 0)]
    return [*((one,) for one in single), *(pair for pair in pairs if pair[0][0] != pair[1][0])]


def complaint(name: str, case: tuple[tuple[str, str], ...]) -> str | None:
    """What is wrong with the answer to a case."""
    row = ROWS[name]
    arguments = dict(row.arguments)
    for argument, value in case:
        arguments[argument] = HOSTILE[value]() if value in HOSTILE else SPOILT[value](arguments[argument])
    must_raise = not all(row.accepts(*each) for each in case)
    try:
        row.function(**arguments)
    except (ValueError, TypeError, ops.UnavailableError, FileNotFoundError) as error:
        message = str(error)
        if not message or "\n" in message:
            return f"{case}: no single line: {message!r}"
        if not any(re.search(rf"\b{re.escape(argument)}\b", message) for argument in (*row.arguments, *row.called)):
            return f"{case}: names no argument: {message!r}"
        return None
    except BaseException as error:
        return f"{case}: {type(error).__name__}: {error}"
    return f"{case}: accepted" if must_raise else None


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the valid calls read, in the working directory."""
    monkeypatch.chdir(tmp_path)
    torch.save(BACKBONE.state_dict(), "weights.pt")
    np.savez("head.npz", **CHANNEL)
    models.save_model(MODEL, Path())
    Path("config.json").write_text(json.dumps({"architecture": {"latent_dim": 2, "hidden_dim": 4, **TINY}}))


@pytest.mark.parametrize("name", ROWS)
def test_valid_calls_are_valid(name: str) -> None:
    ROWS[name].function(**ROWS[name].arguments)


@pytest.mark.parametrize("name", ROWS)
def test_spoilt_arguments(name: str) -> None:
    complaints = [found for case in cases(name) if (found := complaint(name, case)) is not None]
    assert not complaints, "\n".join(complaints)


def test_there_are_many_cases_and_all_public_functions() -> None:
    assert sum(len(cases(name)) for name in ROWS) >= 5000
    plain = {"BottleneckParams", "BottleneckWrite", "Posterior", "Impl", "UnavailableError", "Estimate"}
    plain |= {"EstimateMatrix", "Output", "Loaded"}  # named tuples hold what they are given
    public = {*ibvit.__all__, *models.__all__, *information.__all__, *ops.__all__}
    assert public - plain == public & set(ROWS)
