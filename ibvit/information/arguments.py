"""Checks of the estimators' arguments: every error is one line, "argument: expected X, got Y"."""

from __future__ import annotations

import math
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

_LONGEST = 80  # characters of a value in a message


def shown(value: object) -> str:
    """A value as a message shows it, on one line; arrays by their type alone.

    Example:
        >>> shown(np.zeros(3)), shown("a\\nb")
        ('ndarray', "'a\\\\nb'")
    """
    if isinstance(value, np.ndarray | Tensor):
        return type(value).__name__
    try:
        text = " ".join(repr(value).split())
    except Exception:  # an integer of more digits than Python prints; anything a stranger's class does
        return type(value).__name__
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def whole(name: str, value: Any, low: int, high: int) -> None:
    """A whole number in [low, high]; Python's or numpy's, and no bool."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: expected a whole number, got {shown(value)}")
    if int(value) < low:
        raise ValueError(f"{name}: expected at least {low}, got {shown(value)}")
    if int(value) > high:
        raise ValueError(f"{name}: expected at most {high}, got {shown(value)}")


def number(name: str, value: Any, low: float) -> None:
    """A finite number of at least `low`; Python's or numpy's, and no bool."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name}: expected a number, got {shown(value)}")
    if not low <= value <= 1e300 or not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number of at least {low:g}, got {shown(value)}")


def choice(name: str, value: Any, options: Sequence[str]) -> None:
    """One of some words."""
    if not (isinstance(value, str) and value in options):
        raise ValueError(f"{name}: expected one of {', '.join(options)}, got {shown(value)}")


def path(name: str, value: Any) -> Path:
    """A path of a file."""
    if not isinstance(value, str | PathLike):
        raise TypeError(f"{name}: expected a path, got {shown(value)}")
    if not str(value) or "\0" in str(value):
        raise ValueError(f"{name}: expected a path, got {shown(str(value))}")
    return Path(value)
