"""Progress of long work: a bar on a terminal, plain lines elsewhere, nothing for what is over at once."""

from __future__ import annotations

import logging
import sys
import time

SILENT_SECONDS = 2.0  # nothing is shown before
LINE_SECONDS = 30.0  # between two lines where there is no terminal


class Progress:
    """Counts samples: `with Progress(total, "nmi") as progress: progress.advance(1000)`."""

    def __init__(self, total: int, name: str, show: bool = True) -> None:
        from tqdm import tqdm

        terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            desc=name,
            unit="samples",
            unit_scale=True,
            delay=SILENT_SECONDS,
            disable=not (show and terminal),
            leave=False,
        )
        self._lines = show and not terminal
        self._total, self._name, self._done = total, name, 0
        self._start = self._last = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def advance(self, samples: int) -> None:
        """`samples` more are done."""
        self._bar.update(samples)
        self._done += samples
        now = time.monotonic()
        if self._lines and now - self._last >= LINE_SECONDS:
            self._last = now
            left = (now - self._start) * (self._total / self._done - 1)
            log = logging.getLogger("ibvit")
            log.info("%s: %d of %d samples, %.0f s left", self._name, self._done, self._total, left)
