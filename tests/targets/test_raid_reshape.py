"""Reshapes on kernels, from the first load to the end.

The load that asks for one only writes into the superblocks that it is due, and holds it back: the set tries again and again
(6.12 and 7.2) or waits (6.1). The next load of the table does it.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from raid_lab import PART, letters, members, opened, quiet, state, until

from dmcore import targets
from dmcore.table import Line, Table
from dmcore.targets.delay import Delayed
from dmcore.targets.raid import Check, Raid, RaidDevice, RaidType, SyncAction

pytestmark = pytest.mark.dm
ROOM = 64
"""Sectors of each device that are set aside, so that nothing is overwritten that is not read yet: the kernel wants 32."""
USED = PART - ROOM
CONTENT = random.Random(5).randbytes(2 * USED * 512)


@pytest.fixture
def value(lab, parts) -> Raid:
    """A set of three devices with CONTENT on it, and room at their ends."""
    plain = Raid(kind=RaidType.RAID5_LS, chunk=8, devices=members(parts, 3, meta=True))
    with opened(lab, plain, 2 * USED) as (_, file):
        file.write(0, CONTENT)
    with opened(lab, replace(plain, data_offset=ROOM), 2 * USED):
        pass
    return plain


def _slow(lab, parts) -> None:
    """Let device 0 take its time, so that what goes on is seen."""

    def late(offset: int) -> targets.Delay:
        there = Delayed(lab.refs[0], offset, 15)
        return targets.Delay(read=there, write=there)

    front = Line(0, ROOM, late(USED))
    parts.devices[0].reload(Table((front, Line(ROOM, USED, late(0)))))


def _move_room_to_the_front(lab, parts, count: int) -> None:
    for index in range(count):
        disk, start = lab.refs[index % 2], index // 2 * PART
        front = Line(0, ROOM, targets.Linear(dev=disk, offset=start + USED))
        rest = Line(ROOM, USED, targets.Linear(dev=disk, offset=start))
        parts.devices[index].reload(Table((front, rest)))


def test_another_layout_with_the_data_intact(lab, parts, value):
    """It goes backwards, into the room at the end; then the data begin at the room's length."""
    changed = replace(value, kind=RaidType.RAID5_N, data_offset=ROOM)
    late = Delayed(lab.refs[0], 0, 15)
    with opened(lab, changed, 2 * USED) as (device, file):
        assert state(device).kind is RaidType.RAID5_N
        parts.devices[0].reload(Table.of(targets.Delay(read=late, write=late), PART))
        device.reload(Table.of(changed, 2 * USED))
        seen = until(device, lambda status: status.action is SyncAction.RESHAPE)
        assert letters(seen) == "aaa"
        done = until(device, lambda status: status.in_sync)
        assert (done.kind, done.data_offset) == (RaidType.RAID5_N, ROOM)
        assert file.read(0, len(CONTENT)) == CONTENT
        quiet(device)
        device.send(Check())
        assert quiet(device).mismatches == 0
    with opened(lab, replace(changed, data_offset=None), 2 * USED) as (device, file):
        assert file.read(0, len(CONTENT)) == CONTENT


def test_another_device_with_the_data_intact(lab, parts, value):
    """It goes forwards, into room at the front: what was free at the end is put there first."""
    length = 3 * USED
    fourth = RaidDevice(parts.devices[6].ref, parts.devices[7].ref)
    grown = replace(value, devices=(*value.devices, fourth))
    _move_room_to_the_front(lab, parts, 3)
    with opened(lab, replace(grown, delta_disks=1, data_offset=ROOM), length) as (device, _):
        _slow(lab, parts)
        device.reload(Table.of(grown, length))
        until(device, lambda status: status.action is SyncAction.RESHAPE)
        until(device, lambda status: status.in_sync)
        device.reload(Table.of(grown, length))  # 6.1 lets the device grow now, and not before
        until(device, lambda status: status.in_sync)
    with opened(lab, grown, length) as (device, file):
        assert file.size == length * 512
        assert file.read(0, len(CONTENT)) == CONTENT
        file.write(len(CONTENT), CONTENT[: USED * 512])
        file.drop_caches()
        assert file.read(0, length * 512) == CONTENT + CONTENT[: USED * 512]
        quiet(device)
        device.send(Check())
        assert quiet(device).mismatches == 0
