"""How a command line is read and how a command ends: options in files, errors in one line, exit codes.

Exit codes: 0, done; 1, an error that the last line names; 2, the command line cannot be parsed; 128 + the number of a
signal, interrupted by it.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import tyro

from ibvit.config import TrainConfig, words
from ibvit.errors import Interrupted, UserError

Options = TypeVar("Options", bound=Callable[..., Any])
_OF_THE_SWEEP = {"beta", "seed", "attention", "data"}  # what `ibvit sweep` sets for each run
_NOT_FROM_A_FILE = {"out", "resume"}  # they say where a run is, not what it is


def without_none(options: Options) -> Options:
    """Let ``--help`` show an option that may be left open as its type alone; its text says what it is then."""
    hints = get_type_hints(options, include_extras=True)
    for name, hint in hints.items():
        types = [kind for kind in get_args(hint) if kind is not NoneType]
        if NoneType in get_args(hint):
            metavar = "|".join(get_args(types[0])) if get_args(types[0]) else types[0].__name__.upper()
            options.__annotations__[name] = Annotated[hint, tyro.conf.arg(metavar=metavar, help_behavior_hint="")]
    return options


@dataclass(frozen=True)
class TrainOptions(TrainConfig):
    """Train a vision transformer with an information bottleneck on every attention head."""

    config: Path | None = None
    """Take options from this file, such as a run's config.json; options on the command line win (default: none)."""

    def __post_init__(self) -> None:
        """Ranges are checked by :meth:`checked`: an error inside the parser would name the parser's parts."""

    def checked(self, prefix: str = "") -> TrainConfig:
        """The options without the file that they came from.

        Raises:
            ValueError: an option is out of its range.
        """
        try:
            return TrainConfig(**{option.name: getattr(self, option.name) for option in fields(TrainConfig)})
        except ValueError as error:
            raise ValueError(f"{prefix}{error}") from error


without_none(TrainConfig)
without_none(TrainOptions)


def with_files(args: Sequence[str]) -> list[str]:
    """A command line in which the options of each file that ``--config`` names stand before that option.

    Raises:
        ValueError: a file is missing, or is not a JSON object of options.
    """
    line: list[str] = []
    for position, word in enumerate(args):
        name, is_one_word, value = word.partition("=")
        if name in ("--config", "--train.config") and (is_one_word or position + 1 < len(args)):
            line += _from_file(name, Path(value if is_one_word else args[position + 1]))
        line.append(word)
    return line


def _from_file(name: str, path: Path) -> list[str]:
    argument = name.removeprefix("--")
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{argument}: expected a JSON file of options, got {path} ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{argument}: expected a JSON object of options in {path}, got a {type(content).__name__}")
    option_names = {option.name for option in fields(TrainConfig)}
    is_of_a_run = "architecture" in content  # config.json holds more than options
    if unknown := sorted(set(content) - option_names) if not is_of_a_run else []:
        raise ValueError(f"{argument}: {path} holds {unknown[0]!r}, which is not an option of train.py")
    skipped = _NOT_FROM_A_FILE | (_OF_THE_SWEEP if name == "--train.config" else set())
    options = {key: value for key, value in content.items() if key in option_names - skipped}
    for key, value in options.items():
        if not isinstance(value, str | int | float | NoneType):
            raise ValueError(f"{argument}: {path} holds {key} = {value!r}; expected text, a number, true or false")
    return words(options, "--train." if name == "--train.config" else "--")


def run_command(command: Callable[[], Any]) -> None:
    """Run a command; an error that a user can correct ends in one line, not in a traceback."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr)  # stdout is for results
    if int(os.environ.get("RANK", 0)) == 0:
        logging.getLogger("ibvit").setLevel(logging.INFO)
    try:
        command()
    except (ValueError, TypeError, UserError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.strerror or error}: {error.filename}" if error.filename else f"error: {error}")
    except Interrupted as stop:
        print(f"{stop}; run the same command to resume", file=sys.stderr)
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
