"""Progress is shown where nobody watches a bar."""

from __future__ import annotations

import logging
import time

import pytest

from ibvit.data import progress


@pytest.mark.parametrize(
    ("pause", "lines"), [(-1, ["squaring: 1 of 3", "squaring: 2 of 3", "squaring: 3 of 3"]), (9, [])]
)
def test_a_line_now_and_then(caplog, monkeypatch, pause, lines):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "_PAUSE", pause)
    assert list(progress.for_all(lambda index: index**2, 3, None, "squaring")) == [0, 1, 4]
    assert [record.getMessage() for record in caplog.records] == lines


def test_an_error_in_the_work_ends_it():
    done = []

    def work(index: int) -> None:
        done.append(index)
        time.sleep(0.01)
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        list(progress.for_all(work, 1000, 1, "working"))
    assert len(done) < 1000
