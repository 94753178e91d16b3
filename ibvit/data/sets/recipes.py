"""Recipes: what model and schedule suit a data set, and what they reach."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from ibvit.config import RunConfig, TrainConfig
from ibvit.data.sets.built_in import is_built_in


@dataclass(frozen=True)
class Recipe:
    """Defaults of :class:`ibvit.config.TrainConfig` for one data set."""

    model: str
    image_size: int
    epochs: int
    batch_size: int
    lr: float
    warmup_epochs: float
    eval_every: int
    model_args: dict[str, Any] = field(default_factory=dict)


RECIPES = {
    "digits": Recipe(
        model="vit_tiny_patch16_224",
        model_args={"patch_size": 2, "embed_dim": 64, "depth": 4, "num_heads": 2, "weight_init": "moco"},
        image_size=8,
        epochs=30,
        batch_size=32,
        lr=1e-3,
        warmup_epochs=2,
        eval_every=1,
    ),
    "repetition": Recipe(
        model="vit_tiny_patch16_224",
        model_args={"patch_size": 4, "embed_dim": 64, "depth": 2, "num_heads": 2, "weight_init": "moco"},
        image_size=24,
        epochs=8,
        batch_size=64,
        lr=2e-3,
        warmup_epochs=0.5,
        eval_every=1,
    ),
    "tiny100": Recipe(
        model="vit_tiny_patch16_224",
        model_args={"patch_size": 8},
        image_size=64,
        epochs=300,
        batch_size=256,
        lr=6e-4,
        warmup_epochs=10,
        eval_every=5,
    ),
    "imagenet100": Recipe(
        model="vit_tiny_patch16_224",
        image_size=224,
        epochs=1000,
        batch_size=256,
        lr=6e-4,
        warmup_epochs=10,
        eval_every=1,
    ),
}


def apply_recipe(config: TrainConfig) -> tuple[RunConfig, Recipe]:
    """What runs: the options with those that are open filled in, and the recipe that they came from.

    Raises:
        ValueError: ``--data`` is neither a built-in data set nor a folder, or the recipe is unknown.

    Example:
        >>> config, recipe = apply_recipe(TrainConfig(data="digits"))
        >>> config.image_size, config.beta_warmup_epochs
        (8, 3.0)
    """
    name = config.recipe or (config.data if is_built_in(config.data) else "imagenet100")
    if name not in RECIPES:
        raise ValueError(f"recipe: expected one of {', '.join(RECIPES)}, got {name!r}")
    recipe = RECIPES[name]
    epochs = config.epochs or recipe.epochs
    defaults: dict[str, Any] = {
        "recipe": name,
        "out": config.run_dir,
        "model": recipe.model,
        "image_size": recipe.image_size,
        "epochs": epochs,
        "batch_size": recipe.batch_size,
        "lr": recipe.lr,
        "warmup_epochs": min(recipe.warmup_epochs, epochs / 4),
        "beta_warmup_epochs": epochs / 10,
        "eval_every": recipe.eval_every,
    }
    options = {field.name: getattr(config, field.name) for field in fields(config)}
    return RunConfig(**options | {key: value for key, value in defaults.items() if options[key] is None}), recipe
