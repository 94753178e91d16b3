"""Errors that users can mend: the command line shows them as one line, without a traceback."""

from __future__ import annotations

import signal
from importlib.util import find_spec


class UserError(Exception):
    """The message says what was expected, what came, and what to do."""


def is_installed(module: str) -> bool:
    """Whether a module, ``a`` or ``a.b``, can be imported; it is not imported.

    Example:
        >>> is_installed("json"), is_installed("json.decoder"), is_installed("absent.part")
        (True, True, False)
    """
    package = module.partition(".")[0]
    return find_spec(package) is not None and find_spec(module) is not None


class MissingExtraError(UserError, ImportError):
    """An optional dependency is not installed.

    Example:
        >>> raise MissingExtraError("drawing", "matplotlib", "figures")
        Traceback (most recent call last):
        ibvit.errors.MissingExtraError: drawing needs matplotlib, which is not installed (pip install 'ibvit[figures]')
    """

    def __init__(self, purpose: str, package: str, *extras: str) -> None:
        names = " or ".join(f"'ibvit[{extra}]'" for extra in extras)
        super().__init__(f"{purpose} needs {package}, which is not installed (pip install {names})")


class UnavailableError(UserError, RuntimeError):
    """An implementation was asked for by name and cannot run here; the message says why."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint cannot be read or written."""


class NonFiniteLossError(UserError, RuntimeError):
    """The loss became infinite or NaN."""


class Interrupted(Exception):
    """The run was asked to stop; it has saved its checkpoint.

    Attributes:
        exit_code: 128 + the signal's number, as shells report it.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.exit_code = 128 + signum
