"""What takes too long is told, and ends."""

from __future__ import annotations

import time

import pytest

from pytest_dm.differential.watch import Overdue, Watch


def _busy_until(released):
    end = time.monotonic() + 10
    while not released and time.monotonic() < end:
        time.sleep(0.05)


def _watched(watch, released):
    with watch.over(lambda: "the step", lambda: released.append(1)):
        _busy_until(released)


def test_an_example_that_takes_too_long_is_told_released_and_ends():
    watch = Watch(0.2)
    released = []
    with pytest.raises(Overdue, match=r"longer than 0\.2 s"):
        _watched(watch, released)
    watch.close()
    assert released == [1]
