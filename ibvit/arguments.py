"""Checks of arguments: every error is one line, "argument: expected X, got Y"."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
HUGE = 1e300  # a limit that stands for none: its square root and sums of few are finite
INT64 = (-(1 << 63), (1 << 63) - 1)
_WHOLE = (int, np.integer)  # tuples by name: torch.compile of torch 2.6 knows no `int | np.integer`
_NUMBER = (*_WHOLE, float, np.floating)
_LONGEST = 80  # characters of a value in a message


def one_line(text: object) -> str:
    """A text, such as another library's error, on one line and not too long."""
    line = " ".join(str(text).split())
    return line if len(line) <= 300 else line[:299] + "…"


def shown(value: object) -> str:
    """A value as a message shows it: on one line, arrays by type and shape.

    Example:
        >>> shown(torch.zeros(2, 3)), shown("a\\nb"), shown(None)
        ('a tensor float32 [2, 3]', "'a\\\\nb'", 'None')
    """
    if isinstance(value, Tensor):
        if value.is_nested:
            return "a nested tensor"
        kind = "" if value.layout == torch.strided else f"{_short(value.layout)} "
        return f"a {kind}tensor {_short(value.dtype)} {list(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"{type(value).__name__} {value.dtype} {list(value.shape)}"
    try:
        text = " ".join(repr(value).split())
    except Exception:  # an integer of more digits than Python prints; anything a stranger's class does
        return type(value).__name__
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


@contextmanager
def called(names: Mapping[str, str]) -> Iterator[None]:
    """Errors about these arguments name them as the caller's user does.

    Example:
        >>> with called({"img_size": "image_size"}):
        ...     raise ValueError("img_size: expected 8, got 9")
        Traceback (most recent call last):
        ValueError: image_size: expected 8, got 9
    """
    try:
        yield
    except (ValueError, TypeError, FileNotFoundError) as error:
        name, _, message = str(error).partition(":")
        if name in names and type(error) in (ValueError, TypeError, FileNotFoundError):
            raise type(error)(f"{names[name]}:{message}") from error
        raise


def whole(name: str, value: Any, low: int, high: int = INT64[1]) -> int:
    """A whole number in [low, high]; Python's or numpy's, and no bool."""
    if isinstance(value, bool) or not isinstance(value, _WHOLE):
        raise TypeError(f"{name}: expected a whole number, got {shown(value)}")
    converted = int(value)
    if converted < low:
        raise ValueError(f"{name}: expected at least {low}, got {shown(value)}")
    if converted > high:
        raise ValueError(f"{name}: expected at most {high}, got {shown(value)}")
    return converted


def number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number in [low, high]; Python's or numpy's, and no bool."""
    if isinstance(value, bool) or not isinstance(value, _NUMBER):
        raise TypeError(f"{name}: expected a number, got {shown(value)}")
    try:
        converted = float(value)
    except OverflowError:
        converted = math.inf
    if not (low <= converted <= high and math.isfinite(converted)):
        limits = "" if low == -math.inf else f" of at least {low:g}" if high >= HUGE else f" from {low:g} to {high:g}"
        raise ValueError(f"{name}: expected a finite number{limits}, got {shown(value)}")
    return converted


def choice(name: str, value: Any, options: Sequence[str]) -> None:
    """One of some words."""
    if not (isinstance(value, str) and value in options):
        raise ValueError(f"{name}: expected one of {', '.join(options)}, got {shown(value)}")


def path(name: str, value: Any) -> Path:
    """The path of a file or folder, which need not exist."""
    if not isinstance(value, str | PathLike):
        raise TypeError(f"{name}: expected a path, got {shown(value)}")
    if not str(value) or "\0" in str(value):
        raise ValueError(f"{name}: expected a path, got {shown(str(value))}")
    try:
        Path(value).exists()
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise ValueError(f"{name}: {one_line(error)}") from error
    return Path(value)


def boolean(name: str, value: Any) -> None:
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {shown(value)}")


def names(name: str, value: Any) -> None:
    """A list or tuple of strings: one string would be taken for its letters."""
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise TypeError(f"{name}: expected a list of names, got {shown(value)}")


def tensor(name: str, value: Any, dtypes: Sequence[torch.dtype] = FLOATS) -> None:
    """A dense tensor of one of some dtypes."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch tensor, got {shown(value)}")
    if value.layout != torch.strided or value.is_nested:
        raise TypeError(f"{name}: expected a dense tensor, got {shown(value)}")
    if value.dtype not in dtypes:
        raise TypeError(f"{name}: expected {', '.join(map(_short, dtypes))}, got {_short(value.dtype)}")


def with_values(name: str, value: Tensor) -> None:
    """A tensor that is not on the meta device."""
    if value.is_meta:
        raise ValueError(f"{name}: expected a tensor with values, got one on meta")


def _short(name: torch.dtype | torch.layout) -> str:
    return str(name).removeprefix("torch.")
