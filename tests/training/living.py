"""Which processes train a run, and waiting for them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest


def wait_for(condition: Callable[[], object], process: subprocess.Popen | None = None, seconds: float = 120) -> None:
    """Wait until ``condition`` holds; fail if that takes too long, or ``process`` ends before."""
    end = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, f"ended with {process.returncode}"
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def of_run(folder: Path) -> set[int]:
    """Ids of the living processes whose command line names ``folder``, which exactly one run should."""
    if sys.platform != "linux":
        pytest.skip("processes are found in /proc")
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
        except OSError:
            continue  # it has ended
        if os.fsencode(folder) in words:
            found.add(int(entry.name))
    return found


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def ends(pids: set[int], seconds: float = 60) -> bool:
    """Whether all of these processes end in time."""
    limit = time.monotonic() + seconds
    while any(is_alive(pid) for pid in pids) and time.monotonic() < limit:
        time.sleep(0.05)
    return not any(is_alive(pid) for pid in pids)
