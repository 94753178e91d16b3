"""Progress is shown where nobody watches a bar."""

from __future__ import annotations

import re
import time

import pytest

from ibvit import progress
from ibvit.progress import Progress, for_all


def test_lines_where_there_is_no_terminal(monkeypatch, caplog):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with caplog.at_level("INFO", "ibvit"):
        with Progress(100, "NMI", "samples", done=50) as shown:
            shown.advance(25)
        assert list(for_all(lambda index: index**2, 3, None, "squaring", "numbers")) == [0, 1, 4]
    assert re.fullmatch(r"NMI: 75 of 100 samples, \d+ s left", caplog.messages[0])
    assert [line.partition(",")[0] for line in caplog.messages[1:]] == [
        f"squaring: {n} of 3 numbers" for n in (1, 2, 3)
    ]


def test_nothing_for_what_is_over_at_once_or_hidden(monkeypatch, caplog):
    with caplog.at_level("INFO", "ibvit"):
        list(for_all(lambda index: index, 3, None, "counting", "numbers"))
        monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
        with Progress(2, "hidden", "steps", show=False) as shown:
            shown.advance()
    assert not caplog.messages


def test_an_error_in_the_work_ends_it():
    done = []

    def work(index: int) -> None:
        done.append(index)
        time.sleep(0.01)
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        list(for_all(work, 1000, 1, "working", "things"))
    assert len(done) < 1000
