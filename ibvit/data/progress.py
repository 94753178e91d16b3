"""Progress of long work over files: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

_PAUSE = 10  # seconds between lines


def for_all(work: Callable[[int], Result], count: int, workers: int | None, what: str) -> Iterator[Result]:
    """``work(0)``, ``work(1)``, … in order, by ``workers`` threads (None: as many as there are cores), with progress.

    Raises:
        ValueError: no workers.

    Example:
        >>> list(for_all(lambda index: index**2, count=3, workers=2, what="squaring"))
        [0, 1, 4]
    """
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers: expected at least 1, got {workers}")
    said = time.monotonic()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for done, result in enumerate(
                tqdm(pool.map(work, range(count)), what, count, leave=False, disable=None), 1
            ):
                yield result
                if not sys.stderr.isatty() and time.monotonic() - said > _PAUSE:
                    said = time.monotonic()
                    logger.info("%s: %d of %d", what, done, count)
        finally:
            pool.shutdown(cancel_futures=True)
