"""Progress of long work over files: a bar on a terminal, a line every ten per cent elsewhere."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


def for_all(work: Callable[[int], Result], count: int, workers: int, what: str) -> Iterator[Result]:
    """``work(0)``, ``work(1)``, … in order, by ``workers`` threads, with progress.

    Example:
        >>> list(for_all(lambda index: index**2, count=3, workers=2, what="squaring"))
        [0, 1, 4]
    """
    tenth = max(1, count // 10)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            for done, result in enumerate(
                tqdm(pool.map(work, range(count)), what, count, leave=False, disable=None), 1
            ):
                yield result
                if not sys.stderr.isatty() and count >= 1000 and done % tenth == 0:
                    logger.info("%s: %d of %d", what, done, count)
        finally:
            pool.shutdown(cancel_futures=True)
