from __future__ import annotations

import pytest
from raid_lab import ground  # noqa: F401  # for test_conformance.py

from dmcore.errors import ParseError, SpecError
from dmcore.ref import Ref
from dmcore.table import Line, Table
from dmcore.target import NO_FEATURES
from dmcore.targets.raid import (
    DeviceState,
    JournalMode,
    Raid,
    Raid10Format,
    RaidDevice,
    RaidStatus,
    RaidType,
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
