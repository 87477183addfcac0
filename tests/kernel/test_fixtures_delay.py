"""dm_delay on a real kernel."""

from __future__ import annotations

import threading
import time

import pytest

from dmcore.errors import SpecError

LATE = 400
TICK = 0.02
pytestmark = pytest.mark.dm(size="1M")


def seconds(action, *args):
    began = time.monotonic()
    action(*args)
    return time.monotonic() - began


def late(device):
    """Return which operations are late; a flush that follows a write (fsync) counts by itself."""
    found = {
        "read": seconds(device.read, 0, 512),
        "write": seconds(device.write, 0, bytes(512)),
        "flush": seconds(device.flush),
    }
    return {name for name, took in found.items() if took >= LATE / 1000 - TICK}


def test_at_once_at_first(dm_delay):
    assert late(dm_delay) == set()
    assert (dm_delay.read_ms, dm_delay.write_ms, dm_delay.flush_ms) == (0, 0, 0)


@pytest.mark.parametrize("kind", ["read", "write", "flush"])
def test_each_kind_by_itself(dm_delay, kind):
    with dm_delay.set(**{f"{kind}_ms": LATE}):
        assert late(dm_delay) == {kind}
    assert late(dm_delay) == set()


def test_what_is_not_given_stays(dm_delay):
    dm_delay.set(read_ms=LATE, write_ms=1)
    dm_delay.set(flush_ms=LATE)
    assert (dm_delay.read_ms, dm_delay.write_ms, dm_delay.flush_ms) == (LATE, 1, LATE)
    assert late(dm_delay) == {"read", "flush"}


def test_defaults_of_the_factory(dm):
    def delays(**given):
        device = dm.delay(**given)
        return device.read_ms, device.write_ms, device.flush_ms

    assert delays(read_ms=5) == (5, 5, 5)
    assert delays(read_ms=5, write_ms=0) == (5, 0, 0)
    assert delays(read_ms=1, write_ms=2, flush_ms=3) == (1, 2, 3)
    assert delays(write_ms=7) == (0, 7, 7)


def test_data_passes(dm_delay):
    dm_delay.set(read_ms=20, write_ms=20)
    dm_delay.write(512, b"x" * 512)
    assert dm_delay.read(512, 512) == b"x" * 512
    assert dm_delay.lower.read(512, 512) == b"x" * 512


def test_status_counts_what_waits(dm_delay):
    dm_delay.set(read_ms=60_000)
    reader = threading.Thread(target=dm_delay.read, args=(0, 512))
    reader.start()
    deadline = time.monotonic() + 10
    while dm_delay.status()[0].reads == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert dm_delay.status()[0].reads == 1
    assert seconds(dm_delay.set) < 10
    dm_delay.set(read_ms=0)
    reader.join(timeout=10)
    assert not reader.is_alive()


@pytest.mark.parametrize("value", [-1, 1 << 32, True, 1.5])
def test_what_is_no_delay(dm_delay, value):
    with pytest.raises(SpecError):
        dm_delay.set(write_ms=value)
    assert dm_delay.write_ms == 0
