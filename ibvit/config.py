"""What a training run is: every option, validated, frozen. Imports nothing of ibvit.

:class:`TrainConfig` is what the user types; options that are None are left to the recipe of the data set
(:mod:`ibvit.data.sets.recipes`). :class:`RunConfig` is what runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

LoaderName = Literal["auto", "dali", "torchvision"]
CacheName = Literal["auto", "gpu", "ram", "off"]


@dataclass(frozen=True)
class TrainConfig:
    """Train a vision transformer with an information bottleneck on every attention head."""

    beta: float = 1.0
    """Weight of the information cost K in the loss CE + β·K; 0: no cost (--kl-reduction defines K)."""
    attention: Literal["ib", "full", "none"] = "ib"
    """ib: a bottleneck on every head; full: the unmodified ViT; none: no attention, independent patches."""
    data: str = "digits"
    """digits, repetition, or a folder with train/<class>/ and val/<class>/ images; a folder named digits is
    ./digits."""
    recipe: str | None = None
    """Model size and schedule: digits, repetition, tiny100 or imagenet100 (default: by --data)."""
    out: Path | None = None
    """Run folder (default: runs/<data>-<attention>-beta<β>-seed<s>)."""
    seed: int = 0
    """Seed of initialisation, order of images, augmentation and noise."""

    impl: Literal["auto", "triton", "native", "reference"] = "auto"
    """Implementation of the bottleneck; auto: Triton on CUDA, the native library on the CPU, else the reference."""
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    """Mixed precision; auto: bf16 where the GPU has it, else fp16 with gradient scaling, off on a CPU."""
    compile: bool = False
    """Run forward and backward pass through torch.compile."""
    cuda_graph: bool = False
    """Replay the whole training step as one CUDA graph."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:<index>."""

    kl_reduction: Literal["mean", "sum"] = "mean"
    """K in CE + β·K: mean over images, heads and tokens, or Eq. 3's sum over heads and tokens."""
    beta_warmup_epochs: float | None = None
    """Epochs of the linear ramp of β from 0; 0 keeps β fixed, as in the paper's text (default: a tenth of --epochs)."""
    latent_dim: int = 32
    """Latent dimensions of the bottleneck, per head."""
    hidden_dim: int = 64
    """Hidden width of encoder and decoder, per head."""
    model: str | None = None
    """timm name of the backbone (default: by --recipe)."""
    image_size: int | None = None
    """Pixels per side of the square input (default: by --recipe)."""
    pretrained: Path | None = None
    """Start the backbone from this timm checkpoint, .safetensors or .pth (default: from random weights)."""
    init_from: Path | None = None
    """Start from the newest weights of this run, bottlenecks included (default: from random weights)."""

    epochs: int | None = None
    """Passes over the training set (default: by --recipe)."""
    batch_size: int | None = None
    """Images per optimiser step, over all processes (default: by --recipe)."""
    accumulate: int = 1
    """Micro-batches that each process splits its share of a step into."""
    lr: float | None = None
    """Peak learning rate of AdamW (default: by --recipe)."""
    min_lr: float = 1e-6
    """Learning rate at the end of the cosine."""
    warmup_epochs: float | None = None
    """Epochs of linear learning-rate warm-up (default: by --recipe, a quarter of --epochs at most)."""
    weight_decay: float = 0.05
    """Weight decay, except on biases, one-dimensional and bottleneck parameters."""
    max_steps: int | None = None
    """Stop after this many optimiser steps in all; the schedules stay those of --epochs (default: no limit)."""

    loader: LoaderName = "auto"
    """Loader of image folders; auto: DALI where it can be imported."""
    cache: CacheName = "auto"
    """Where decoded images of a folder are cached between epochs; auto: on the GPU if they fit, else in memory."""
    workers: int | None = None
    """Loader processes or threads per rank (default: the number of cores, shared by the ranks)."""

    eval_every: int | None = None
    """Epochs between validations (default: by --recipe)."""
    eval_repeats: int = 1
    """Noisy validation passes at each validation."""
    checkpoint_every: float = 1.0
    """Epochs between checkpoints; below 1 also within an epoch."""
    resume: str = "auto"
    """auto: resume from the checkpoint in the run folder, if any; none: refuse to overwrite a run;
    or the path of a checkpoint."""
    accept_changed_data: bool = False
    """Resume even if the files of the data set are not those that the run started with; classes must be the same."""
    track: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    """Also send options and metrics to TensorBoard (in the run folder), Weights & Biases, or trackio."""

    def __post_init__(self) -> None:
        if problem := wrong_type(vars(self)):
            raise TypeError(problem)
        at_least = {
            "beta": 0, "seed": 0, "min_lr": 0, "weight_decay": 0, "beta_warmup_epochs": 0, "warmup_epochs": 0,
            "latent_dim": 1, "hidden_dim": 1, "image_size": 1, "epochs": 1, "batch_size": 1, "accumulate": 1,
            "max_steps": 1, "workers": 0, "eval_every": 1, "eval_repeats": 1,
        }  # fmt: skip
        for name, lowest in at_least.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= lowest):
                raise ValueError(f"{name}: expected a finite number of at least {lowest}, got {value}")
        at_most = {"seed": 2**63 - 1, "latent_dim": 1024, "hidden_dim": 1 << 14, "image_size": 1 << 14}
        for name, highest in at_most.items():
            value = getattr(self, name)
            if value is not None and value > highest:
                raise ValueError(f"{name}: expected at most {highest}, got {value}")
        for name in ("lr", "checkpoint_every"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}: expected a positive finite number, got {value}")

    @property
    def run_dir(self) -> Path:
        """The run folder: ``out``, or a name made of what identifies the run."""
        data = Path(self.data).resolve().name if Path(self.data).is_dir() else self.data
        return self.out or Path("runs") / f"{data}-{self.attention}-beta{self.beta:g}-seed{self.seed}"


@dataclass(frozen=True, kw_only=True)
class RunConfig(TrainConfig):
    """What runs: the options of :class:`TrainConfig` with all that the recipe decides filled in.

    Made by :func:`ibvit.data.sets.recipes.apply_recipe`, or read from a run folder.
    """

    # field(): without it the None of TrainConfig would stay the default.
    recipe: str = field()
    out: Path = field()
    model: str = field()
    image_size: int = field()
    epochs: int = field()
    batch_size: int = field()
    lr: float = field()
    warmup_epochs: float = field()
    beta_warmup_epochs: float = field()
    eval_every: int = field()

    def check(self) -> None:
        """Check options of a new run against each other; a run that exists is what it is, and is not judged again.

        Raises:
            ValueError: a warm-up is longer than the run, the learning rate would end above its peak, or weights would
                come from two sources.
        """
        for name in ("warmup_epochs", "beta_warmup_epochs"):
            if getattr(self, name) > self.epochs:
                raise ValueError(f"{name}: expected at most epochs = {self.epochs}, got {getattr(self, name):g}")
        if self.pretrained is not None and self.init_from is not None:
            raise ValueError("init_from: expected no --pretrained beside it; both say where the weights come from")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr: expected at most lr = {self.lr:g}, got {self.min_lr:g}")


def wrong_type(options: Mapping[str, object], needed: Sequence[str] = ()) -> str | None:
    """What is wrong with the types of options, such as those that a file holds; None if nothing is.

    Args:
        needed: options that must be among them.

    Example:
        >>> wrong_type({"beta": "high"}), wrong_type({"beta": 1.0})
        ("beta: expected float, got 'high'", None)
    """
    for name, hint in get_type_hints(TrainConfig).items():
        kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        value = options.get(name)
        if name not in options:
            if name in needed:
                return f"{name}: expected {_name(kinds)}, got nothing"
        elif not any(_is_of(value, kind) for kind in kinds):
            return f"{name}: expected {_name(kinds)}, got {value!r}"
    return None


def _is_of(value: object, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    wider: dict[Any, Any] = {float: Real, int: Integral, Path: (str, Path)}
    return isinstance(value, wider.get(kind, kind))


def _name(kinds: Sequence[Any]) -> str:
    names = [" or ".join(map(repr, get_args(kind))) or kind.__name__ for kind in kinds if kind is not NoneType]
    return " or ".join(names)


# What may differ when a run is resumed: where and how it runs, not what it computes.
_FREE = {
    "out", "device", "impl", "compile", "cuda_graph", "max_steps", "loader", "cache", "workers", "eval_every",
    "eval_repeats", "checkpoint_every", "resume", "track", "data", "accumulate", "accept_changed_data",
}  # fmt: skip


def conflicts(config: TrainConfig, stored: dict[str, object]) -> list[str]:
    """Options in which ``config`` differs from the stored ones of a run that it would resume.

    Example:
        >>> conflicts(TrainConfig(beta=4), {"beta": 1.0, "lr": None})
        ['beta: 4 now, 1.0 in the run']
    """
    return [
        f"{option.name}: {getattr(config, option.name)} now, {stored[option.name]} in the run"
        for option in fields(config)
        if option.name in stored
        and option.name not in _FREE
        and _plain(getattr(config, option.name)) != stored[option.name]
    ]


_NAMED = {"seed", "beta", "attention"}  # what names of runs say already


def told_apart(runs: Sequence[Mapping[str, object]]) -> list[str]:
    """For each of several runs (their ``config.json``) the options in which they differ beside β and seed, in words.

    Example:
        >>> told_apart([{"beta": 1.0, "latent_dim": 32, "seed": 0}, {"beta": 1.0, "latent_dim": 8, "seed": 1}])
        ['latent dim 32', 'latent dim 8']
        >>> told_apart([{"pretrained": "a/vit.pth"}, {"pretrained": "b/vit.pth"}])
        ['pretrained a/vit.pth', 'pretrained b/vit.pth']
    """
    default = as_dict(TrainConfig())  # of options that an earlier edition did not have
    options = [{name: run.get(name, default[name]) for name in default if name not in _FREE | _NAMED} for run in runs]
    differing = [name for name in options[0] if len({str(each[name]) for each in options}) > 1]
    shown = {name: [_short(each[name]) for each in options] for name in differing}
    for name, values in shown.items():  # two files of one name are told apart by their folders
        if len(set(map(str, values))) < len({str(each[name]) for each in options}):
            shown[name] = [each[name] for each in options]
    return [
        ", ".join(f"{name.replace('_', ' ')} {values[number]}" for name, values in shown.items())
        for number in range(len(options))
    ]


def _short(value: object) -> object:
    return f"{value:g}" if isinstance(value, float) else Path(value).name if isinstance(value, str) else value


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def as_dict(config: TrainConfig) -> dict[str, object]:
    """The options as JSON can hold them."""
    return {option.name: _plain(getattr(config, option.name)) for option in fields(config)}


def words(options: dict[str, object], prefix: str = "--") -> list[str]:
    """Options as a command line takes them; those that are None are left open.

    Example:
        >>> words({"beta": 4.0, "compile": True, "cuda_graph": False, "lr": None})
        ['--beta', '4.0', '--compile', '--no-cuda-graph']
    """
    line = []
    for name, value in options.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            line.append(f"{prefix}{'' if value else 'no-'}{option}")
        elif value is not None:
            line += [prefix + option, str(value)]
    return line


def command_line(config: TrainConfig) -> list[str]:
    """The options of ``config`` that are not their defaults, as ``train.py`` takes them.

    Example:
        >>> command_line(TrainConfig(beta=4.0, data="repetition", compile=True))
        ['--beta', '4.0', '--data', 'repetition', '--compile']
    """
    default = as_dict(TrainConfig())
    return words({name: value for name, value in as_dict(config).items() if value != default[name]})
