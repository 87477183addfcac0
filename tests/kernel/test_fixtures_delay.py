"""dm_delay: on a real kernel, and on models, whose time is virtual."""

from __future__ import annotations

import threading
import time

import pytest

from dmcore.errors import SpecError

LATE = 400
TICK = 0.02
pytestmark = pytest.mark.dm(size="1M")


def seconds(device, action, *args):
    began = device.runtime.monotonic()
    action(*args)
    return device.runtime.monotonic() - began


def late(device):
    """Return which operations are late; a flush that follows a write (fsync) counts by itself."""
    found = {
        "read": seconds(device, device.read, 0, 512),
        "write": seconds(device, device.write, 0, bytes(512)),
        "flush": seconds(device, device.flush),
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


@pytest.mark.dm(needs="kernel")
def test_status_counts_what_waits(dm_delay):
    dm_delay.set(read_ms=60_000)
    reader = threading.Thread(target=dm_delay.read, args=(0, 512))
    reader.start()
    deadline = time.monotonic() + 10
    while dm_delay.status()[0].reads == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert dm_delay.status()[0].reads == 1
    assert seconds(dm_delay, dm_delay.set) < 10
    dm_delay.set(read_ms=0)
    reader.join(timeout=10)
    assert not reader.is_alive()


@pytest.mark.parametrize("value", [-1, 1 << 32, True, 1.5])
@pytest.mark.parametrize("field", ["read_ms", "write_ms", "flush_ms"])
def test_what_is_no_delay(dm, dm_delay, field, value):
    for refused in (dm_delay.set, dm.delay):
        with pytest.raises(SpecError) as caught:
            refused(**{field: value})
        assert (caught.value.field, caught.value.value) == (field, value)
    assert getattr(dm_delay, field) == 0


def test_the_backend_s_clock_sees_delays(dm_backend, dm_delay):
    with dm_delay.set(read_ms=LATE):
        began = dm_backend.monotonic()
        dm_delay.read(0, 512)
        assert dm_backend.monotonic() - began >= LATE / 1000 - TICK
