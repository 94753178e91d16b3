"""Signals as a request to save and stop, and child processes that stop with their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""What people, terminals and Slurm send to end a process."""

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


class SignalWatch:
    """Notes ``signals`` while active; a second SIGINT acts as usual.

    A process of torchrun also receives SIGTERM when torchrun is killed, which can pass nothing on then.

    Attributes:
        received: number of the last signal that came; 0 if none did.
    """

    def __init__(self, signals: Sequence[signal.Signals] = SIGNALS) -> None:
        self.received = 0
        self._signals = signals
        self._previous: dict[int, object] = {}

    def __enter__(self) -> SignalWatch:
        for signum in self._signals:
            if signum == signal.SIGHUP and signal.getsignal(signum) == signal.SIG_IGN:
                continue  # nohup
            self._previous[signum] = signal.signal(signum, self._note)
        if "TORCHELASTIC_RUN_ID" in os.environ:
            stop_with_parent(os.getppid())
        return self

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.received and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signum

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]


def stop_with_parent(parent: int) -> None:
    """Have Linux send this process SIGTERM when its parent, a process id, ends; other systems offer no such thing."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it has ended already
            os.kill(os.getpid(), signal.SIGTERM)


def start_training(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a training command as a child of this process: SIGTERM makes it save and stop, torchrun included.

    It has a session of its own, so that a terminal's Ctrl-C reaches it only through this process. It is sent SIGTERM
    when this process ends, even by SIGKILL.

    Args:
        options: of ``subprocess.Popen``.
    """
    parent = os.getpid()

    def prepare() -> None:
        # Slurm sends these to every process of a job step: torchrun would die and leave its processes behind.
        # Processes that train set handlers of their own.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        stop_with_parent(parent)

    return subprocess.Popen(command, start_new_session=True, preexec_fn=prepare, **options)
