from __future__ import annotations

import time

import pytest
from mirror_lab import REGION, SECTORS, SIZE, fails, letters, mirror, mirror_state, opened, until

from dmcore.errors import ParseError, SpecError
from dmcore.ref import Ref
from dmcore.table import Line, Table
from dmcore.target import NO_FEATURES, Leg
from dmcore.targets.mirror import (
    CoreLog,
    DiskLog,
    LegHealth,
    LegState,
    LogState,
    LogStatus,
    Mirror,
    MirrorStatus,
    Sync,
    UserspaceLog,
)

A, B, LOG = Ref("7:0"), Ref("7:1"), Ref("7:2")
LEGS = (Leg(A), Leg(B, 16))
CORE = Mirror(log=CoreLog(8), legs=LEGS)
CLUSTERED = UserspaceLog("LVM-1", DiskLog(LOG, 8, Sync.NOSYNC), integrated_flush=True)


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("core 1 8 2 7:0 0 7:1 16", CORE),
        ("core 4294967297 4294967304 4294967298 7:0 00 7:1 16 0", CORE),
        ("core 2 8 sync 2 7:0 0 7:1 16", Mirror(log=CoreLog(8, Sync.SYNC), legs=LEGS)),
        (
            "disk 3 7:2 8 nosync 2 7:0 0 7:1 16 1 handle_errors",
            Mirror(log=DiskLog(LOG, 8, Sync.NOSYNC), legs=LEGS, handle_errors=True),
        ),
        (
            "disk 2 7:2 8 2 7:0 0 7:1 16 3 keep_log handle_errors keep_log",
            Mirror(log=DiskLog(LOG, 8), legs=LEGS, handle_errors=True, keep_log=True),
        ),
        (
            "userspace 3 LVM-1 clustered-core 8 2 7:0 0 7:1 16",
            Mirror(log=UserspaceLog("LVM-1", CoreLog(8)), legs=LEGS),
        ),
        (
            "userspace 6 LVM-1 INTEGRATED_flush clustered-disk 7:2 8 nosync 2 7:0 0 7:1 16",
            Mirror(log=CLUSTERED, legs=LEGS),
        ),
    ],
)
def test_reads_what_the_kernel_reads(words, value):
    assert Table.parse(f"0 48 mirror {words}") == Table.of(value, 48)
    assert Table.parse(str(Table.of(value, 48))) == Table.of(value, 48)


@pytest.mark.parametrize(
    ("words", "index"),
    [
        ("", 3),
        ("Core 1 8 2 7:0 0 7:1 16", 3),
        ("core x 8 2 7:0 0 7:1 16", 4),
        ("core 9 8 2 7:0 0 7:1 16", 5),
        ("core 0 2 7:0 0 7:1 16", 5),
        ("core 3 8 sync sync 2 7:0 0 7:1 16", 5),
        ("core 2 8 SYNC 2 7:0 0 7:1 16", 6),
        ("core 1 +8 2 7:0 0 7:1 16", 5),
        ("disk 1 7:2 2 7:0 0 7:1 16", 5),
        ("core 1 8", 6),
        ("core 1 8 1 7:0 0", 6),
        ("core 1 8 10 7:0 0", 6),
        ("core 1 8 2 7:0 0 7:1", 10),
        ("core 1 8 2 7:0 0 7:1 x", 10),
        ("core 1 8 2 7:0 0 7:1 0 1", 12),
        ("core 1 8 2 7:0 0 7:1 0 0 handle_errors", 12),
        ("core 1 8 2 7:0 0 7:1 0 1 Handle_errors", 12),
        ("userspace 2 LVM-1 clustered-core 2 7:0 0 7:1 0", 7),
        ("userspace 3 LVM-1 core 8 2 7:0 0 7:1 0", 6),
    ],
)
def test_refuses_what_the_kernel_refuses_and_names_the_word(words, index):
    with pytest.raises(ParseError) as caught:
        Table.parse(f"0 48 mirror {words}")
    assert caught.value.index == index


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("region", lambda: CoreLog(0)),
        ("region", lambda: CoreLog(1)),
        ("region", lambda: CoreLog(24)),
        ("region", lambda: DiskLog(LOG, 2**32)),
        ("sync", lambda: CoreLog(8, "sync")),
        ("dev", lambda: DiskLog("7:2", 8)),
        ("uuid", lambda: UserspaceLog("", CoreLog(8))),
        ("uuid", lambda: UserspaceLog("a b", CoreLog(8))),
        ("uuid", lambda: UserspaceLog("voilà", CoreLog(8))),
        ("uuid", lambda: UserspaceLog("u\\", CoreLog(8))),
        ("uuid", lambda: UserspaceLog("u" * 129, CoreLog(8))),
        ("uuid", lambda: UserspaceLog(1, CoreLog(8))),
        ("log", lambda: UserspaceLog("u", CLUSTERED)),
        ("integrated_flush", lambda: UserspaceLog("u", CoreLog(8), None)),
        ("log", lambda: Mirror(log=8, legs=LEGS)),
        ("legs", lambda: Mirror(log=CoreLog(8), legs=LEGS[:1])),
        ("legs", lambda: Mirror(log=CoreLog(8), legs=LEGS * 5)),
        ("legs", lambda: Mirror(log=CoreLog(8), legs=list(LEGS))),
        ("legs[1]", lambda: Mirror(log=CoreLog(8), legs=(Leg(A), B))),
        ("handle_errors", lambda: Mirror(log=CoreLog(8), legs=LEGS, handle_errors=1)),
        ("keep_log", lambda: Mirror(log=CoreLog(8), legs=LEGS, keep_log=True)),
        ("log.region", lambda: Line(0, 7, CORE)),
        ("log.region", lambda: Line(0, 2**34, Mirror(log=CoreLog(2), legs=LEGS))),
    ],
)
def test_refuses_bad_values_and_names_the_field(field, make):
    with pytest.raises(SpecError) as caught:
        make()
    assert caught.value.field == field


def test_value():
    assert CORE.refs() == (A, B)
    assert Mirror(log=CLUSTERED, legs=LEGS).refs() == (LOG, A, B)
    assert CORE.readback(NO_FEATURES) == CORE
    assert CORE.needs().features == NO_FEATURES
    assert Mirror(log=CoreLog(8), legs=LEGS, handle_errors=True, keep_log=True).needs().features == {
        "mirror.keep_log"
    }
    assert Line(0, 8, CORE).end == 8


ALIVE = (LegHealth(A, LegState.ALIVE), LegHealth(B, LegState.ALIVE))


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("2 7:0 7:1 8/8 1 AA 1 core", MirrorStatus(ALIVE, 8, 8, LogStatus("core"))),
        (
            "2 7:0 7:1 0/8 1 DR 3 disk 7:2 F",
            MirrorStatus(
                (LegHealth(A, LegState.WRITE_FAILED), LegHealth(B, LegState.READ_FAILED)),
                0,
                8,
                LogStatus("disk", LOG, LogState.FLUSH_FAILED),
            ),
        ),
        (
            "3 7:0 7:1 7:1 1/8 1 FSU 3 clustered-disk 7:2 D",
            MirrorStatus(
                (
                    LegHealth(A, LegState.FLUSH_FAILED),
                    LegHealth(B, LegState.SYNC_FAILED),
                    LegHealth(B, LegState.UNKNOWN),
                ),
                1,
                8,
                LogStatus("clustered-disk", LOG, LogState.FAILED),
            ),
        ),
        ("2 7:0 7:1 8/8 1 AA 1 clustered-core", MirrorStatus(ALIVE, 8, 8, LogStatus("clustered-core"))),
        (
            "2 7:0 7:1 0/8 1 AA userspace 1 COM_FAILURE",
            MirrorStatus(ALIVE, 0, 8, LogStatus("userspace", None, LogState.UNREACHABLE)),
        ),
    ],
)
def test_status(text, status):
    assert CORE.parse_status(text) == status
    assert status.in_sync is (status.synced == 8)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2 7:0 7:1 8/8 1 AA",
        "2 7:0 7:1 8 8/8 1 AA 1 core",
        "2 7:0 7:1 8/8 1 A 1 core",
        "2 7:0 7:1 8/8 1 AX 1 core",
        "2 7:0 7:1 8/8 2 AA 1 core",
        "2 7:0 7:1 8/8 1 AA 1 core x",
        "2 7:0 7:1 8/8 1 AA 3 disk 7:2",
        "2 7:0 7:1 8/8 1 AA 3 disk 7:2 R",
        "2 7:0 7:1 8/8 1 AA userspace 1 fine",
        "1000000000 7:0",
    ],
)
def test_bad_status(text):
    with pytest.raises(ParseError):
        CORE.parse_status(text)


@pytest.mark.dm
@pytest.mark.parametrize("sync", [None, Sync.SYNC])
def test_leg_0_is_copied_and_an_event_tells(lab, below, sync):
    with lab.disk(0) as first, lab.disk(1) as second:
        first.write(0, b"m" * SIZE)
        with opened(lab, mirror(below, CoreLog(REGION, sync))) as (device, file):
            device.wait(0, timeout=5)
            assert mirror_state(device) == MirrorStatus(
                tuple(LegHealth(leg.device.ref, LegState.ALIVE) for leg in below[:2]),
                16,
                16,
                LogStatus("core"),
            )
            assert second.read(0, SIZE) == b"m" * SIZE
            file.write(512, b"w" * 512)
            for disk in (first, second):
                assert disk.read(0, 2048) == b"m" * 512 + b"w" * 512 + b"m" * 1024


@pytest.mark.dm
def test_nosync_copies_nothing(lab, below):
    with lab.disk(0) as first, lab.disk(1) as second:
        first.write(0, b"m" * SIZE)
        with opened(lab, mirror(below)) as (device, file):
            assert mirror_state(device).in_sync
            assert file.read(0, SIZE) == b"m" * SIZE, "reads go to leg 0"
        assert second.read(0, SIZE) == bytes(SIZE)


@pytest.mark.dm
def test_nine_legs_and_a_short_last_region(lab):
    legs = tuple(Leg(lab.refs[number % 2], number * 100) for number in range(9))
    value = Mirror(log=CoreLog(32), legs=legs)
    with lab.disk(0) as disk:
        disk.write(0, b"n" * (100 * 512))
    with lab.open(value, 100) as (device, _):
        assert until(device, lambda status: status.in_sync).regions == 4
    for number in range(9):
        with lab.disk(number % 2) as disk:
            assert disk.read(number * 100 * 512, 100 * 512) == b"n" * (100 * 512)


@pytest.mark.dm
def test_a_failed_write_without_handling_succeeds_and_leaves_the_region_out_of_sync(lab, below):
    with opened(lab, mirror(below)) as (device, file):
        below[1].fail_writes()
        file.write(0, b"w" * 512)
        status = until(device, lambda status: status.synced == 15)
        assert letters(status) == "AD"
        assert file.read(0, 512) == b"w" * 512


@pytest.mark.dm
def test_a_write_that_all_legs_fail_fails(lab, below):
    with opened(lab, mirror(below)) as (device, file):
        below[0].fail_writes()
        below[1].fail_writes()
        fails(lambda: file.write(0, b"w" * 512))
        assert letters(mirror_state(device)) == "DD"


@pytest.mark.dm
@pytest.mark.parametrize("handled", [False, True])
def test_a_failed_read_goes_to_the_other_leg(lab, below, handled):
    with opened(lab, mirror(below, handle_errors=handled)) as (device, file):
        file.write(0, b"w" * 4096)
        event = device.info().event_nr
        below[0].fail()
        assert file.read(0, 4096) == b"w" * 4096
        assert letters(mirror_state(device)) == "RA"
        assert mirror_state(device).in_sync
        if handled:
            assert device.wait(event, timeout=5) > event
        below[1].fail()
        fails(lambda: file.read(0, 4096))
        assert letters(mirror_state(device)) == "RR"
        if not handled:
            assert device.info().event_nr == event


@pytest.mark.dm
def test_a_copy_that_fails(lab, below):
    below[1].fail_writes()
    value = mirror(below, CoreLog(REGION), handle_errors=True)
    with opened(lab, value) as (device, file):
        device.wait(0, timeout=5)
        status = until(device, lambda status: letters(status) != "AA")
        assert letters(status) == "AS"
        assert not status.in_sync
        assert file.read(0, 4096) == bytes(4096)


@pytest.mark.dm
def test_a_leg_that_cannot_flush(lab, below):
    value = mirror(below, DiskLog(below[2].device.ref, REGION, Sync.NOSYNC))
    with opened(lab, value) as (device, file):
        below[1].fail_flushes()
        for region in range(
            SECTORS // REGION
        ):  # the log, and so the legs, are flushed when a clean region is written
            file.write(region * REGION * 512, b"w" * 512)
            time.sleep(0.1)
            if letters(mirror_state(device)) == "AF":
                break
        until(device, lambda status: letters(status) == "AF")


@pytest.mark.dm
def test_a_discard_goes_to_all_legs(lab, below):
    with lab.disk(0) as first, lab.disk(1) as second, opened(lab, mirror(below)) as (device, file):
        file.write(0, b"w" * SIZE)
        file.discard(REGION * 512, REGION * 512)
        for disk in (first, second):
            piece = REGION * 512
            assert disk.read(0, SIZE) == b"w" * piece + bytes(piece) + b"w" * (SIZE - 2 * piece)
        assert mirror_state(device).in_sync
