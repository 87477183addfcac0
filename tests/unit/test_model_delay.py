"""delay in virtual time: exact, by class of request, at once for the clock on the wall."""

from __future__ import annotations

import errno

import pytest

from dmcore import open_volume
from dmcore.model.stores import MemoryStore
from dmcore.targets.delay import DelayStatus


def disks(count=3):
    return {f"d{number}": MemoryStore(1 << 20, word=f"d{number}") for number in range(count)}


@pytest.mark.parametrize(
    ("params", "waits"),
    [
        ("d0 0 7", (7, 7, 7, 7)),
        ("d0 0 7 d0 0 100", (7, 100, 100, 100)),
        ("d0 0 7 d0 0 100 d0 0 4294967295", (7, 100, 2**32 - 1, 100)),
        ("d0 0 0", (0, 0, 0, 0)),
    ],
)
def test_each_class_waits_exactly_as_long_as_the_table_says(params, waits):
    with open_volume(f"0 64 delay {params}", disks()) as volume:
        passed = []
        for request in (
            lambda: volume.read(0, 512),
            lambda: volume.write(0, bytes(512)),
            volume.flush,
            lambda: volume.discard(0, 512),
        ):
            before = volume.clock.now
            request()
            passed.append(volume.clock.now - before)
        assert tuple(passed) == waits
        assert volume.status() == [DelayStatus(0, 0, 0)]


def test_classes_go_to_devices_and_offsets_of_their_own():
    below = disks()
    with open_volume("0 64 delay d0 3 1 d1 5 2 d2 7 3", below) as volume:
        volume.write(1024, b"w" * 512)
        below["d0"].write(5, memoryview(b"r" * 512))
        assert volume.read(1024, 512) == b"r" * 512
        assert volume.table_text() == "0 64 delay d0 3 1 d1 5 2 d2 7 3"
    assert below["d1"].read(7, 1) == b"w" * 512


def test_a_flush_goes_to_its_device_only():
    table = "0 8 error\n8 64 delay flat 0 0 flat 0 0 log 0 9"
    stack = f"flat: 0 96 linear d0 0\nlog: 0 96 flakey d1 0 0 1 1 error_writes\ntop: {table.splitlines()[1].replace('8 64', '0 64')}"
    with open_volume(stack, disks()) as volume:
        volume.write(0, bytes(512))
        with pytest.raises(OSError) as caught:
            volume.flush()
        assert caught.value.errno == errno.EIO
        assert volume.clock.now == 9
        volume.device.suspend()


def test_pieces_of_one_request_wait_together():
    table = "0 8 delay d0 0 30\n8 8 delay d1 0 50\n16 8 delay d2 0 10"
    with open_volume(table, disks()) as volume:
        volume.read(0, 24 * 512)
        assert volume.clock.now == 50
        volume.write(8 * 512, bytes(16 * 512))
        assert volume.clock.now == 100
        volume.flush()
        assert volume.clock.now == 150
        volume.discard(0, 24 * 512)
        assert volume.clock.now == 200
