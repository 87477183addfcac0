"""Raid sets on kernels."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from raid_lab import PART, idle, letters, members, opened, quiet, state, until

from dmcore import targets
from dmcore.errors import IoctlError, TableRejected
from dmcore.kernel.loop import LoopDevice
from dmcore.table import Table
from dmcore.target import NO_FEATURES
from dmcore.targets.delay import Delayed
from dmcore.targets.raid import (
    Check,
    DeviceState,
    Frozen,
    Idle,
    JournalMode,
    Raid,
    Raid10Format,
    RaidDevice,
    RaidType,
    Recover,
    Repair,
    Resync,
    Sync,
    SyncAction,
)

SHAPES = [(kind, 2 if kind.level in {0, 1} else 4 if kind.level in {6, 10} else 3) for kind in RaidType]


@pytest.mark.dm
@pytest.mark.parametrize(("kind", "count"), SHAPES, ids=[kind.value for kind, _ in SHAPES])
def test_every_kind_keeps_data(lab, parts, kind, count):
    meta = kind.level in {1, 10}
    chunk = 0 if kind.level == 1 else 8
    value = Raid(kind=kind, chunk=chunk, devices=members(parts, count, meta=meta))
    copies = 2 if kind.level == 10 else 1
    length = PART if kind.level == 1 else (count - kind.parity) * (PART // 2) // copies
    content = bytes(range(256)) * 2 * length
    with opened(lab, value, length) as (device, file):
        assert device.table() == Table.of(value, length)
        file.write(0, content[: length * 512])
        file.flush()
        until(device, lambda status: status.in_sync) if kind.level else idle(device)
        file.drop_caches()
        assert file.read(0, length * 512) == content[: length * 512]
        assert state(device).kind.level == kind.level


@pytest.mark.dm
@pytest.mark.parametrize(
    ("kind", "count", "bad"),
    [(RaidType.RAID1, 2, 1), (RaidType.RAID5_LA, 3, 1), (RaidType.RAID6_NR, 4, 2), (RaidType.RAID10, 4, 1)],
    ids=str,
)
def test_devices_fail_and_are_made_anew(lab, parts, kind, count, bad):
    """Until they are, everything can be read; metadata tell the next table what is not in sync."""
    chunk = 0 if kind.level == 1 else 8
    value = Raid(kind=kind, chunk=chunk, devices=members(parts, count, meta=True))
    length = 1024 if kind.level == 10 else 512 * (1 if kind.level == 1 else count - kind.parity)
    content = b"degrade!" * 64 * length
    with opened(lab, value, length) as (device, file):
        file.write(0, content)
        until(device, lambda status: status.in_sync)
        events = device.info().event_nr
        for index in range(bad):
            parts.devices[index].reload(Table.of(targets.Error(), PART))
        file.write(0, content)
        failed = until(device, lambda status: letters(status).count("D") == bad)
        assert letters(failed) == "D" * bad + "A" * (count - bad)
        assert device.wait(events) > events
        file.drop_caches()
        assert file.read(0, len(content)) == content
    for index in range(bad):
        where = targets.Linear(dev=lab.refs[index % 2], offset=index // 2 * PART)
        parts.devices[index].reload(Table.of(where, PART))
        with lab.disk(index % 2) as disk:
            disk.write_zeroes(index // 2 * PART * 512, PART * 512)
    again = Raid(kind=kind, chunk=chunk, devices=value.devices, rebuild=tuple(range(bad)))
    with opened(lab, again, length) as (device, file):
        assert device.table() == Table.of(again, length)
        until(device, lambda status: status.in_sync)
        assert file.read(0, len(content)) == content
        quiet(device)
        device.send(Check())
        assert quiet(device).mismatches == 0


@pytest.mark.dm
def test_check_and_repair(lab, parts):
    value = Raid(kind=RaidType.RAID1, devices=members(parts, 2, meta=True))
    with opened(lab, value, PART) as (device, file):
        file.write(0, b"c" * PART * 512)
        until(device, lambda status: status.in_sync)
        with lab.disk(1) as disk:
            disk.write(4096, b"x" * 512)
        quiet(device)
        device.send(Check())
        assert until(device, lambda status: status.mismatches).mismatches % 8 == 0
        quiet(device)
        device.send(Repair())
        until(device, lambda status: status.action is SyncAction.IDLE and not status.mismatches)
        quiet(device)
        device.send(Check())
        assert quiet(device).mismatches == 0
        device.send(Resync())
        quiet(device)
        device.send(Recover())
        idle(device)
    with lab.disk(0) as first, lab.disk(1) as second:
        assert first.read(0, PART * 512) == second.read(0, PART * 512)


@pytest.mark.dm
def test_what_goes_on_can_be_stopped(lab, parts):
    """Kernels from 6.12 on answer EINVAL to what they have done."""
    slow = Raid(kind=RaidType.RAID1, devices=members(parts, 2, meta=False), max_recovery_rate=1)
    old = os.uname().release.startswith(
        "6.1."
    )  # what is stopped or begun at the wrong time takes that one down
    with lab.device(slow, PART) as device:
        if old:
            quiet(device)
        for message in (Idle(), Frozen()):
            with contextlib.suppress(IoctlError):
                device.send(message)
        assert state(device).action in set(SyncAction)
        with device.suspended():
            if not old:
                with pytest.raises(IoctlError) as caught:
                    device.send(Check())
                assert caught.value.errno == errno.EBUSY
        with contextlib.suppress(IoctlError):
            device.send(Frozen())
        until(device, lambda status: status.action in {SyncAction.FROZEN, SyncAction.IDLE})


@pytest.mark.dm
def test_level_0_takes_no_messages(lab, parts):
    value = Raid(kind=RaidType.RAID0, chunk=8, devices=members(parts, 2, meta=False))
    with opened(lab, value, PART) as (device, _):
        with pytest.raises(IoctlError) as caught:
            device.send(Check())
        assert caught.value.errno == errno.EINVAL
        with pytest.raises(IoctlError):
            device.message("nonsense")


@pytest.mark.dm
def test_the_kernel_prints_half_of_max_write_behind(lab, parts):
    value = Raid(
        kind=RaidType.RAID1, devices=members(parts, 2, meta=False), write_mostly=(1,), max_write_behind=9
    )
    with opened(lab, value, PART) as (device, _):
        assert device.table() == Table.of(value.readback(NO_FEATURES), PART)


@pytest.mark.dm
def test_a_missing_device(lab, parts):
    present = members(parts, 3, meta=False)
    value = Raid(kind=RaidType.RAID5_RS, chunk=8, devices=(*present[:2], RaidDevice(None)))
    with opened(lab, value, PART) as (device, file):
        until(device, lambda status: letters(status) == "AA-")
        file.write(0, b"3" * 8192)
        file.drop_caches()
        assert file.read(0, 8192) == b"3" * 8192
    with (
        pytest.raises(TableRejected),
        lab.device(
            Raid(kind=RaidType.RAID5_RS, chunk=8, devices=(present[0], RaidDevice(None), RaidDevice(None))),
            PART,
        ),
    ):
        pass


@pytest.mark.dm
def test_nosync_believes_what_is_there(lab, parts):
    value = Raid(kind=RaidType.RAID1, devices=members(parts, 2, meta=False), sync=Sync.NOSYNC)
    with lab.disk(0) as disk:
        disk.write(0, b"s" * 4096)
    with opened(lab, value, PART) as (device, _):
        until(device, lambda status: status.in_sync and status.done == PART)
    with lab.disk(1) as disk:
        assert disk.read(0, 4096) == bytes(4096)


JOURNAL = 8192
"""Sectors: the kernel wants 4 MiB."""


@contextlib.contextmanager
def _journal_disk(folder: Path) -> Iterator[LoopDevice]:
    with (folder / "journal").open("wb") as file:
        file.truncate(JOURNAL * 512)
    with LoopDevice.attach(folder / "journal") as disk:
        yield disk


@pytest.mark.dm
@pytest.mark.parametrize(
    ("mode", "told"),
    [
        (None, DeviceState.IN_SYNC),
        (JournalMode.WRITETHROUGH, DeviceState.IN_SYNC),
        (JournalMode.WRITEBACK, DeviceState.NOT_IN_SYNC),
    ],
)
def test_a_journal(lab, parts, tmp_path, mode, told):
    content = b"journal!" * 64 * PART
    with _journal_disk(tmp_path) as disk, lab.device(targets.Linear(dev=disk.ref), JOURNAL) as journal:
        value = Raid(
            kind=RaidType.RAID5_LS, chunk=8, devices=members(parts, 3, meta=True),
            journal_dev=journal.ref, journal_mode=mode,
        )  # fmt: skip
        with opened(lab, value, PART) as (device, file):
            assert device.table() == Table.of(value.readback(NO_FEATURES), PART)
            file.write(0, content)
            until(device, lambda status: status.in_sync)
            assert state(device).journal is told
            file.drop_caches()
            assert file.read(0, len(content)) == content


@pytest.mark.dm
def test_what_goes_on_is_told(lab, parts):
    value = Raid(kind=RaidType.RAID1, devices=members(parts, 2, meta=True))
    with opened(lab, value, PART) as (device, _):
        until(device, lambda status: status.in_sync)
    late = Delayed(lab.refs[1], 0, 100)
    parts.devices[1].reload(Table.of(targets.Delay(read=late, write=late), PART))
    with opened(lab, replace(value, rebuild=(1,)), PART) as (device, _):
        until(device, lambda status: status.action is SyncAction.RECOVER)
        for message, action in ((Check(), SyncAction.CHECK), (Repair(), SyncAction.REPAIR)):
            quiet(device)
            device.send(message)
            until(device, lambda status, action=action: status.action is action)
        quiet(device)


@pytest.mark.dm
@pytest.mark.parametrize("form", Raid10Format)
def test_a_format_of_raid10_is_told(lab, parts, form):
    value = Raid(kind=RaidType.RAID10, chunk=8, devices=members(parts, 4, meta=True), raid10_format=form)
    with opened(lab, value, 1024) as (device, _):
        assert state(device).kind in {RaidType.RAID10, RaidType(f"raid10_{form}")}
