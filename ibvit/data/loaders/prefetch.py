"""Work ahead of the consumer, in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

Item = TypeVar("Item")
_END = object()


def prefetched(items: Iterator[Item], ahead: int) -> Iterator[Item]:
    """The same items, made by a thread that is up to ``ahead`` of them in advance.

    An exception is raised where its item would have come. Closing the generator, or leaving its loop, stops the thread.

    Example:
        >>> list(prefetched(iter(range(4)), ahead=2))
        [0, 1, 2, 3]
    """
    ready: queue.Queue[object] = queue.Queue(ahead)
    stop = threading.Event()

    def put(item: object) -> None:
        while not stop.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put(item)
                if stop.is_set():
                    return
            put(_END)
        except BaseException as error:  # carried over to the consumer, whatever it is
            put(error)

    thread = threading.Thread(target=work, daemon=True, name="ibvit-data")
    thread.start()
    try:
        while (item := ready.get()) is not _END:
            if isinstance(item, BaseException):
                raise item
            yield item  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()
