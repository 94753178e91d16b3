"""Work ahead: order, errors, and threads that stop."""

from __future__ import annotations

import itertools
import threading

import pytest

from ibvit.data.loaders.prefetch import prefetched


def workers() -> int:
    return sum(thread.name == "ibvit-data" for thread in threading.enumerate())


def test_an_error_comes_after_the_items_before_it():
    def items():
        yield 1
        raise OSError("disk")

    stream = prefetched(items(), ahead=4)
    assert next(stream) == 1
    with pytest.raises(OSError, match="disk"):
        next(stream)
    assert workers() == 0


def test_leaving_the_loop_stops_the_thread():
    made = []
    stream = prefetched((made.append(item) or item for item in itertools.count()), ahead=2)
    assert list(itertools.islice(stream, 3)) == [0, 1, 2]
    assert workers() == 1
    stream.close()
    assert workers() == 0
    assert len(made) <= 3 + 2 + 2  # no further ahead than asked


def test_nothing_starts_before_the_first_item_is_asked_for():
    prefetched(iter(range(3)), ahead=1)
    assert workers() == 0
