"""Progress of long work: a bar on a terminal, a line now and then elsewhere, nothing for what is over at once."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

SILENT_SECONDS = 2.0  # nothing is shown before
LINE_SECONDS = 30.0  # between two lines where there is no terminal


class Progress:
    """Counts what is done.

    Args:
        total: how many there are.
        name: of the work.
        unit: what is counted.
        done: how many were done before.
        show: False shows nothing.

    Example:
        >>> with Progress(2000, "NMI", "samples") as progress:
        ...     for _ in range(2):
        ...         progress.advance(1000)
    """

    def __init__(self, total: int, name: str, unit: str, *, done: int = 0, show: bool = True) -> None:
        from tqdm import tqdm  # here: `import ibvit` does without it

        terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=name,
            unit=f" {unit}",
            unit_scale=total > 10_000,
            delay=SILENT_SECONDS,
            disable=not (show and terminal),
            leave=False,
        )
        self._lines = show and not terminal
        self._total, self._name, self._unit = total, name, unit
        self._done = self._first = done
        self._start = self._last = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def advance(self, count: int = 1) -> None:
        """`count` more are done."""
        self._bar.update(count)
        self._done += count
        now = time.monotonic()
        if self._lines and now - self._last >= LINE_SECONDS:
            self._last = now
            left = (now - self._start) * (self._total - self._done) / (self._done - self._first)
            logger.info("%s: %d of %d %s, %.0f s left", self._name, self._done, self._total, self._unit, left)


def for_all(work: Callable[[int], Result], count: int, workers: int | None, name: str, unit: str) -> Iterator[Result]:
    """``work(0)``, ``work(1)``, … in order, by ``workers`` threads (None: as many as there are cores), with progress.

    Raises:
        ValueError: no workers.

    Example:
        >>> list(for_all(lambda index: index**2, count=3, workers=2, name="squaring", unit="numbers"))
        [0, 1, 4]
    """
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers: expected at least 1, got {workers}")
    with ThreadPoolExecutor(workers) as pool, Progress(count, name, unit) as progress:
        try:
            for result in pool.map(work, range(count)):
                yield result
                progress.advance()
        finally:
            pool.shutdown(cancel_futures=True)
