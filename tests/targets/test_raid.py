from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import ground as grounds
import pytest

from dmcore import targets
from dmcore.errors import IoctlError, ParseError, SpecError, TableRejected
from dmcore.kernel.device import Device
from dmcore.kernel.loop import LoopDevice
from dmcore.ref import Ref
from dmcore.table import Line, Table
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
    RaidStatus,
    RaidType,
    Recover,
    Repair,
    Resync,
    Sync,
    SyncAction,
)

A, B, C, D, J = (Ref(f"7:{number}") for number in range(5))
PAIR = (RaidDevice(A), RaidDevice(B))
THREE = (*PAIR, RaidDevice(C))
MIRROR = Raid(kind=RaidType.RAID1, devices=PAIR)


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("raid1 1 0 2 - 7:0 - 7:1", MIRROR),
        ("RAID1 1 -8 2 - 7:0 - 7:1 ignored", MIRROR),
        (
            (
                "raid1 14 0 nosync daemon_sleep +5 min_recovery_rate 1 max_recovery_rate 0 WRITE_MOSTLY 1"
                " max_write_behind 9 region_size 1024 2 7:2 7:0 - 7:1"
            ),
            Raid(
                kind=RaidType.RAID1,
                devices=(RaidDevice(A, C), RaidDevice(B)),
                sync=Sync.NOSYNC,
                daemon_sleep=5,
                min_recovery_rate=1,
                max_recovery_rate=0,
                write_mostly=(1,),
                max_write_behind=9,
                region_size=1024,
            ),
        ),
        ("raid0 1 8 2 - 7:0 - 7:1", Raid(kind=RaidType.RAID0, chunk=8, devices=PAIR)),
        (
            (
                "raid5_ls 11 64 rebuild 2 stripe_cache 17 journal_dev 7:4 journal_mode WriteBack delta_disks -1"
                " 3 - 7:0 - 7:1 - 7:2"
            ),
            Raid(
                kind=RaidType.RAID5_LS,
                chunk=64,
                devices=THREE,
                rebuild=(2,),
                stripe_cache=17,
                journal_dev=J,
                journal_mode=JournalMode.WRITEBACK,
                delta_disks=-1,
            ),
        ),
        (
            "raid6_zr 4 8 sync data_offset 32 4 - 7:0 - 7:1 - 7:2 - -",
            Raid(
                kind=RaidType.RAID6_ZR,
                chunk=8,
                devices=(*THREE, RaidDevice(None)),
                sync=Sync.SYNC,
                data_offset=32,
            ),
        ),
        (
            "raid10 6 8 raid10_format FAR raid10_copies 2 raid10_use_near_sets 2 7:2 7:0 7:3 7:1",
            Raid(
                kind=RaidType.RAID10,
                chunk=8,
                devices=(RaidDevice(A, C), RaidDevice(B, D)),
                raid10_format=Raid10Format.FAR,
                raid10_copies=2,
                raid10_use_near_sets=True,
            ),
        ),
    ],
)
def test_reads_what_the_kernel_reads(words, value):
    assert Table.parse(f"0 2048 raid {words}") == Table.of(value, 2048)
    assert Table.parse(str(Table.of(value, 2048))) == Table.of(value, 2048)


@pytest.mark.parametrize(
    ("words", "index"),
    [
        ("", 3),
        ("raid5 1 8 3 - 7:0 - 7:1 - 7:2", 3),
        ("raid1 0 2 - 7:0 - 7:1", 5),
        ("raid1 9 0 2 - 7:0", 4),
        ("raid1 1 x 2 - 7:0 - 7:1", 5),
        ("raid1 2 0 synch 2 - 7:0 - 7:1", 6),
        ("raid1 3 0 sync sync 2 - 7:0 - 7:1", 7),
        ("raid1 3 0 sync nosync 2 - 7:0 - 7:1", 7),
        ("raid1 2 0 rebuild 2 - 7:0 - 7:1", 6),
        ("raid1 3 0 rebuild -1 2 - 7:0 - 7:1", 7),
        ("raid1 3 0 daemon_sleep 2147483648 2 - 7:0 - 7:1", 7),
        ("raid1 5 0 write_mostly 1 write_mostly 1 2 - 7:0 - 7:1", 10),
        ("raid5_ls 3 8 journal_mode writeback 3 - 7:0 - 7:1 - 7:2", 6),
        ("raid10 3 8 raid10_format close 2 - 7:0 - 7:1", 7),
        ("raid1 1 0 0", 6),
        ("raid1 1 0 2 - 7:0 -", 7),
        ("raid1 1 0 2 7:0 - - 7:1", 8),
    ],
)
def test_refuses_what_the_kernel_refuses_and_names_the_word(words, index):
    with pytest.raises(ParseError) as caught:
        Table.parse(f"0 2048 raid {words}")
    assert caught.value.index == index


def _raid(kind=RaidType.RAID5_LS, chunk=8, devices=THREE, **words) -> Raid:
    return Raid(kind=kind, chunk=chunk, devices=devices, **words)


def _mirror(**words) -> Raid:
    return Raid(kind=RaidType.RAID1, devices=PAIR, **words)


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("kind", lambda: _raid(kind="raid1")),
        ("chunk", lambda: _mirror(chunk=8)),
        ("chunk", lambda: _raid(chunk=4)),
        ("chunk", lambda: _raid(chunk=24)),
        ("devices", lambda: _raid(devices=PAIR[:1])),
        ("devices", lambda: _raid(kind=RaidType.RAID6_ZR, devices=PAIR)),
        ("devices", lambda: _raid(kind=RaidType.RAID10, devices=PAIR[:1])),
        ("devices", lambda: Raid(kind=RaidType.RAID1, devices=(RaidDevice(None), RaidDevice(None)))),
        ("devices[1]", lambda: _raid(devices=(RaidDevice(A), B))),
        ("devices", lambda: Line(0, 2047, _raid())),
        ("meta", lambda: RaidDevice(None, A)),
        ("data", lambda: RaidDevice("7:0")),
        ("sync", lambda: _raid(kind=RaidType.RAID0, sync=Sync.SYNC)),
        ("sync", lambda: _raid(kind=RaidType.RAID6_NC, sync=Sync.NOSYNC)),
        ("sync", lambda: _raid(sync="sync")),
        ("rebuild", lambda: _raid(rebuild=(1,), sync=Sync.SYNC)),
        ("rebuild", lambda: _raid(rebuild=(1, 1))),
        ("rebuild", lambda: _raid(devices=(*PAIR, RaidDevice(None)), rebuild=(2,))),
        ("rebuild[0]", lambda: _raid(rebuild=(3,))),
        ("rebuild", lambda: _raid(kind=RaidType.RAID0, rebuild=(1,))),
        ("daemon_sleep", lambda: _raid(daemon_sleep=-1)),
        ("min_recovery_rate", lambda: _raid(min_recovery_rate=3, max_recovery_rate=2)),
        ("write_mostly", lambda: _mirror(write_mostly=(0, 1))),
        ("write_mostly", lambda: _raid(write_mostly=(0,))),
        ("max_write_behind", lambda: _raid(max_write_behind=2)),
        ("stripe_cache", lambda: _raid(stripe_cache=16)),
        ("stripe_cache", lambda: _mirror(stripe_cache=100)),
        ("region_size", lambda: _raid(region_size=0)),
        ("region_size", lambda: _raid(region_size=3)),
        ("region_size", lambda: _raid(chunk=64, region_size=32)),
        ("region_size", lambda: Line(0, 512, _mirror(region_size=1024))),
        ("region_size", lambda: Line(0, 2**24, _mirror(region_size=4))),
        ("raid10_copies", lambda: _raid(kind=RaidType.RAID10, raid10_copies=4)),
        ("raid10_copies", lambda: _raid(raid10_copies=2)),
        ("raid10_format", lambda: _raid(kind=RaidType.RAID10, raid10_format="far")),
        ("raid10_use_near_sets", lambda: _raid(kind=RaidType.RAID10, raid10_use_near_sets=True)),
        ("delta_disks", lambda: _raid(delta_disks=0)),
        ("data_offset", lambda: _raid(data_offset=31)),
        ("journal_dev", lambda: _mirror(journal_dev=J)),
        ("journal_mode", lambda: _raid(journal_mode=JournalMode.WRITEBACK)),
    ],
)
def test_refuses_bad_values_and_names_the_field(field, make):
    with pytest.raises(SpecError) as caught:
        make()
    assert caught.value.field == field


def test_readback():
    value = _mirror(max_write_behind=9, write_mostly=(1,)).readback(NO_FEATURES)
    assert value.max_write_behind == 4
    assert _raid(chunk=128, stripe_cache=20).readback(NO_FEATURES).stripe_cache == 64
    assert _raid(journal_dev=J).refs() == (J, A, B, C)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (
            "raid1 2 Aa 64/2048 recover 0 0 -",
            RaidStatus(
                RaidType.RAID1,
                (DeviceState.IN_SYNC, DeviceState.NOT_IN_SYNC),
                64,
                2048,
                SyncAction.RECOVER,
                0,
                0,
                None,
            ),
        ),
        (
            "raid10_far 3 A-D 2048/2048 idle 128 32 a",
            RaidStatus(
                RaidType.RAID10_FAR,
                (DeviceState.IN_SYNC, DeviceState.MISSING, DeviceState.FAILED),
                2048,
                2048,
                SyncAction.IDLE,
                128,
                32,
                DeviceState.NOT_IN_SYNC,
            ),
        ),
    ],
)
def test_status(text, status):
    assert MIRROR.parse_status(text) == status
    assert not status.in_sync
    assert MIRROR.parse_status("raid1 2 AA 8/8 idle 0 0 -").in_sync
    assert not MIRROR.parse_status("raid1 2 AA 8/8 check 0 0 -").in_sync


@pytest.mark.parametrize(
    "text",
    [
        "",
        "raid7 2 AA 8/8 idle 0 0 -",
        "raid1 3 AA 8/8 idle 0 0 -",
        "raid1 2 AX 8/8 idle 0 0 -",
        "raid1 2 AA 8 idle 0 0 -",
        "raid1 2 AA 8/8 sleeping 0 0 -",
        "raid1 2 AA 8/8 idle 0 0",
        "raid1 2 AA 8/8 idle 0 0 X",
        "raid1 2 AA 8/8 idle 0 0 - 1",
    ],
)
def test_bad_status(text):
    with pytest.raises(ParseError):
        MIRROR.parse_status(text)


# On a kernel. Each device of a set is a part of 1024 sectors of a disk.

PART = 1024


class Parts(grounds.Ground):
    """Eight parts of the disks, blank before every load: superblocks count."""

    fresh = True

    def __init__(self, lab, devices: list[Device]) -> None:
        super().__init__(lab)
        self.devices = devices
        self.refs = {device.ref: PART for device in devices}

    def prepare(self, line) -> None:
        self.lab.wipe()

    def fits(self, target: Raid, length: int) -> bool:
        """Whether a new set can be run of it, as far as that depends on what is on the devices."""
        refs = target.refs()
        count = len(target.devices)
        copies = (target.raid10_copies or 2) if target.kind.level == 10 else 1
        shared = 1 if target.kind.level == 1 else count - target.kind.parity
        missing = sum(device.data is None for device in target.devices)
        conversion = target.rebuild or target.journal_dev or target.data_offset or target.delta_disks
        return (
            len(set(refs)) == len(refs)
            and not conversion
            and missing <= {0: 0, 1: count - 1, 10: 0}.get(target.kind.level, target.kind.parity)
            and length * copies // shared <= PART
        )


@contextlib.contextmanager
def ground(lab) -> Iterator[Parts]:
    with contextlib.ExitStack() as stack:
        devices = [
            stack.enter_context(lab.device(targets.Linear(dev=dev, offset=start), PART))
            for start in range(0, 4 * PART, PART)
            for dev in lab.refs
        ]
        yield Parts(lab, devices)


@pytest.fixture
def parts(lab) -> Iterator[Parts]:
    with ground(lab) as below:
        yield below


def _state(device: Device) -> RaidStatus:
    (status,) = device.status()
    assert isinstance(status, RaidStatus)
    return status


def _until(device: Device, done) -> RaidStatus:
    """Return the status as soon as it is what it should become, within 30 seconds."""
    deadline = time.monotonic() + 30
    while not done(status := _state(device)):
        assert time.monotonic() < deadline, f"still {status}"
        time.sleep(0.02)
    return status


def _idle(device: Device) -> RaidStatus:
    return _until(device, lambda status: status.action is SyncAction.IDLE)


def _quiet(device: Device) -> RaidStatus:
    """Return the status once nothing goes on and the last action is put away: md loses what it is told just before."""
    while True:
        seen = device.info().event_nr
        status = _idle(device)
        with contextlib.suppress(IoctlError):
            device.wait(seen, timeout=0.1)
            continue
        return status


def _letters(status: RaidStatus) -> str:
    return "".join(status.devices)


def _devices(parts: Parts, count: int, *, meta: bool) -> tuple[RaidDevice, ...]:
    refs = [device.ref for device in parts.devices]
    return tuple(RaidDevice(refs[index], refs[count + index] if meta else None) for index in range(count))


SHAPES = [(kind, 2 if kind.level in {0, 1} else 4 if kind.level in {6, 10} else 3) for kind in RaidType]


@pytest.mark.dm
@pytest.mark.parametrize(("kind", "count"), SHAPES, ids=[kind.value for kind, _ in SHAPES])
def test_every_kind_keeps_data(lab, parts, kind, count):
    meta = kind.level in {1, 10}
    chunk = 0 if kind.level == 1 else 8
    value = Raid(kind=kind, chunk=chunk, devices=_devices(parts, count, meta=meta))
    copies = 2 if kind.level == 10 else 1
    length = PART if kind.level == 1 else (count - kind.parity) * (PART // 2) // copies
    content = bytes(range(256)) * 2 * length
    with lab.open(value, length) as (device, file):
        assert device.table() == Table.of(value, length)
        file.write(0, content[: length * 512])
        file.flush()
        _until(device, lambda status: status.in_sync) if kind.level else _idle(device)
        file.drop_caches()
        assert file.read(0, length * 512) == content[: length * 512]
        assert _state(device).kind.level == kind.level


@pytest.mark.dm
@pytest.mark.parametrize(
    ("kind", "count", "bad"),
    [(RaidType.RAID1, 2, 1), (RaidType.RAID5_LA, 3, 1), (RaidType.RAID6_NR, 4, 2), (RaidType.RAID10, 4, 1)],
    ids=str,
)
def test_devices_fail_and_are_made_anew(lab, parts, kind, count, bad):
    """Until they are, everything can be read; metadata tell the next table what is not in sync."""
    chunk = 0 if kind.level == 1 else 8
    value = Raid(kind=kind, chunk=chunk, devices=_devices(parts, count, meta=True))
    length = 1024 if kind.level == 10 else 512 * (1 if kind.level == 1 else count - kind.parity)
    content = b"degrade!" * 64 * length
    with lab.open(value, length) as (device, file):
        file.write(0, content)
        _until(device, lambda status: status.in_sync)
        events = device.info().event_nr
        for index in range(bad):
            parts.devices[index].reload(Table.of(targets.Error(), PART))
        file.write(0, content)
        failed = _until(device, lambda status: _letters(status).count("D") == bad)
        assert _letters(failed) == "D" * bad + "A" * (count - bad)
        assert device.wait(events) > events
        file.drop_caches()
        assert file.read(0, len(content)) == content
    for index in range(bad):
        where = targets.Linear(dev=lab.refs[index % 2], offset=index // 2 * PART)
        parts.devices[index].reload(Table.of(where, PART))
        with lab.disk(index % 2) as disk:
            disk.write_zeroes(index // 2 * PART * 512, PART * 512)
    again = Raid(kind=kind, chunk=chunk, devices=value.devices, rebuild=tuple(range(bad)))
    with lab.open(again, length) as (device, file):
        assert device.table() == Table.of(again, length)
        _until(device, lambda status: status.in_sync)
        assert file.read(0, len(content)) == content
        _quiet(device)
        device.send(Check())
        assert _quiet(device).mismatches == 0


@pytest.mark.dm
def test_check_and_repair(lab, parts):
    value = Raid(kind=RaidType.RAID1, devices=_devices(parts, 2, meta=True))
    with lab.open(value, PART) as (device, file):
        file.write(0, b"c" * PART * 512)
        _until(device, lambda status: status.in_sync)
        with lab.disk(1) as disk:
            disk.write(4096, b"x" * 512)
        _quiet(device)
        device.send(Check())
        assert _until(device, lambda status: status.mismatches).mismatches % 8 == 0
        _quiet(device)
        device.send(Repair())
        _until(device, lambda status: status.action is SyncAction.IDLE and not status.mismatches)
        _quiet(device)
        device.send(Check())
        assert _quiet(device).mismatches == 0
        device.send(Resync())
        _quiet(device)
        device.send(Recover())
        _idle(device)
    with lab.disk(0) as first, lab.disk(1) as second:
        assert first.read(0, PART * 512) == second.read(0, PART * 512)


@pytest.mark.dm
def test_what_goes_on_can_be_stopped(lab, parts):
    """Kernels from 6.12 on answer EINVAL to what they have done."""
    slow = Raid(kind=RaidType.RAID1, devices=_devices(parts, 2, meta=False), max_recovery_rate=1)
    with lab.device(slow, PART) as device:
        old = os.uname().release.startswith(
            "6.1."
        )  # what is stopped or begun at the wrong time takes that one down
        if old:
            _quiet(device)
        for message in (Idle(), Frozen()):
            with contextlib.suppress(IoctlError):
                device.send(message)
        assert _state(device).action in set(SyncAction)
        with device.suspended():
            if not old:
                with pytest.raises(IoctlError) as caught:
                    device.send(Check())
                assert caught.value.errno == errno.EBUSY


@pytest.mark.dm
def test_level_0_takes_no_messages(lab, parts):
    value = Raid(kind=RaidType.RAID0, chunk=8, devices=_devices(parts, 2, meta=False))
    with lab.device(value, PART) as device:
        with pytest.raises(IoctlError) as caught:
            device.send(Check())
        assert caught.value.errno == errno.EINVAL
        with pytest.raises(IoctlError):
            device.message("nonsense")


@pytest.mark.dm
def test_the_kernel_prints_half_of_max_write_behind(lab, parts):
    value = Raid(
        kind=RaidType.RAID1, devices=_devices(parts, 2, meta=False), write_mostly=(1,), max_write_behind=9
    )
    with lab.device(value, PART) as device:
        assert device.table() == Table.of(value.readback(NO_FEATURES), PART)


@pytest.mark.dm
def test_a_missing_device(lab, parts):
    present = _devices(parts, 3, meta=False)
    value = Raid(kind=RaidType.RAID5_RS, chunk=8, devices=(*present[:2], RaidDevice(None)))
    with lab.open(value, PART) as (device, file):
        _until(device, lambda status: _letters(status) == "AA-")
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
    value = Raid(kind=RaidType.RAID1, devices=_devices(parts, 2, meta=False), sync=Sync.NOSYNC)
    with lab.disk(0) as disk:
        disk.write(0, b"s" * 4096)
    with lab.device(value, PART) as device:
        _until(device, lambda status: status.in_sync and status.done == PART)
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
    ("mode", "state"),
    [
        (None, DeviceState.IN_SYNC),
        (JournalMode.WRITETHROUGH, DeviceState.IN_SYNC),
        (JournalMode.WRITEBACK, DeviceState.NOT_IN_SYNC),
    ],
)
def test_a_journal(lab, parts, tmp_path, mode, state):
    content = b"journal!" * 64 * PART
    with _journal_disk(tmp_path) as disk, lab.device(targets.Linear(dev=disk.ref), JOURNAL) as journal:
        value = Raid(
            kind=RaidType.RAID5_LS, chunk=8, devices=_devices(parts, 3, meta=True),
            journal_dev=journal.ref, journal_mode=mode,
        )  # fmt: skip
        with lab.open(value, PART) as (device, file):
            assert device.table() == Table.of(value.readback(NO_FEATURES), PART)
            file.write(0, content)
            _until(device, lambda status: status.in_sync)
            assert _state(device).journal is state
            file.drop_caches()
            assert file.read(0, len(content)) == content


@pytest.mark.dm
def test_a_reshape_begins(lab, parts):
    """First free space is set aside at the end of each device, then parity is to go elsewhere."""
    room = 64
    used = (PART - room) // 8 * 8
    value = Raid(kind=RaidType.RAID5_LS, chunk=8, devices=_devices(parts, 3, meta=True))
    with lab.device(value, 2 * used) as device:
        _until(device, lambda status: status.in_sync)
    with lab.device(replace(value, data_offset=room), 2 * used) as device:
        _until(device, lambda status: status.in_sync)
    changed = replace(value, kind=RaidType.RAID5_N, data_offset=room)
    with lab.device(changed, 2 * used) as device:
        status = _until(device, lambda status: status.action is SyncAction.RESHAPE)
        assert status.kind is RaidType.RAID5_N
        assert set(status.devices) == {DeviceState.NOT_IN_SYNC}
        assert device.table().lines[0].target.kind is RaidType.RAID5_N


@pytest.mark.dm
def test_what_goes_on_is_told(lab, parts):
    value = Raid(kind=RaidType.RAID1, devices=_devices(parts, 2, meta=True))
    with lab.device(value, PART) as device:
        _until(device, lambda status: status.in_sync)
    late = Delayed(lab.refs[1], 0, 100)
    parts.devices[1].reload(Table.of(targets.Delay(read=late, write=late), PART))
    with lab.device(replace(value, rebuild=(1,)), PART) as device:
        _until(device, lambda status: status.action is SyncAction.RECOVER)
        for message, action in ((Check(), SyncAction.CHECK), (Repair(), SyncAction.REPAIR)):
            _quiet(device)
            device.send(message)
            _until(device, lambda status, action=action: status.action is action)
        _quiet(device)


@pytest.mark.dm
@pytest.mark.parametrize("form", Raid10Format)
def test_a_format_of_raid10_is_told(lab, parts, form):
    value = Raid(kind=RaidType.RAID10, chunk=8, devices=_devices(parts, 4, meta=True), raid10_format=form)
    with lab.device(value, 1024) as device:
        assert _state(device).kind in {RaidType.RAID10, RaidType(f"raid10_{form}")}
