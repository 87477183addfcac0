from __future__ import annotations

import contextlib
import errno
import struct
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mirror_log_daemon import Daemon, Kind

from dmcore import targets
from dmcore.errors import ParseError, SpecError, TableRejected
from dmcore.kernel.block import BlockFile
from dmcore.kernel.device import Device
from dmcore.ref import Ref
from dmcore.table import Line, Table
from dmcore.target import NO_FEATURES, Leg, Target
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


# On a kernel. A region has 64 sectors, the mirror 16 of them; the log lies in the second disk's second half.

REGION, SECTORS = 64, 1024
SIZE = SECTORS * 512


def _state(device: Device) -> MirrorStatus:
    (status,) = device.status()
    assert isinstance(status, MirrorStatus)
    return status


def _until(device: Device, done) -> MirrorStatus:
    """Return the status as soon as it is what it should become, within 5 seconds."""
    deadline = time.monotonic() + 5
    while not done(status := _state(device)):
        assert time.monotonic() < deadline, f"still {status}"
        time.sleep(0.02)
    return status


def _letters(status: MirrorStatus) -> str:
    return "".join(leg.state.value for leg in status.legs)


def _fails(request) -> None:
    with pytest.raises(OSError) as caught:
        request()
    assert caught.value.errno == errno.EIO


class Below:
    """A device that is a part of a disk, until it is told to fail."""

    def __init__(self, lab, device: Device, dev: Ref, start: int) -> None:
        self.device = device
        self.dev = dev
        self.start = start

    @property
    def leg(self) -> Leg:
        return Leg(self.device.ref)

    def be(self, target: Target) -> None:
        self.device.reload(Table.of(target, SECTORS))

    def heal(self) -> None:
        self.be(targets.Linear(dev=self.dev, offset=self.start))

    def fail(self) -> None:
        self.be(targets.Error())

    def fail_writes(self) -> None:
        self.be(targets.Flakey(dev=self.dev, offset=self.start, up=0, down=1, error_writes=True))

    def fail_flushes(self) -> None:
        """Let flushes fail, and nothing else but writes to the last 8 sectors."""
        good = targets.Linear(dev=self.dev, offset=self.start)
        bad = targets.Flakey(dev=self.dev, offset=self.start + SECTORS - 8, up=0, down=1, error_writes=True)
        self.device.reload(Table((Line(0, SECTORS - 8, good), Line(SECTORS - 8, 8, bad))))


@pytest.fixture
def below(lab) -> Iterator[tuple[Below, Below, Below]]:
    """Two legs and a device for the log."""
    with contextlib.ExitStack() as stack:
        found = []
        for disk, start in ((0, 0), (1, 0), (1, 2048)):
            target = targets.Linear(dev=lab.refs[disk], offset=start)
            device = stack.enter_context(lab.device(target, SECTORS))
            found.append(Below(lab, device, lab.refs[disk], start))
        yield found[0], found[1], found[2]


def _mirror(below, log=None, **words: bool) -> Mirror:
    return Mirror(log=log or CoreLog(REGION, Sync.NOSYNC), legs=(below[0].leg, below[1].leg), **words)


@contextlib.contextmanager
def _open(lab, value: Mirror) -> Iterator[tuple[Device, BlockFile]]:
    with lab.open(value, SECTORS) as (device, file):
        assert device.table() == Table.of(value, SECTORS)
        yield device, file


@pytest.mark.dm
@pytest.mark.parametrize("sync", [None, Sync.SYNC])
def test_leg_0_is_copied_and_an_event_tells(lab, below, sync):
    with lab.disk(0) as first, lab.disk(1) as second:
        first.write(0, b"m" * SIZE)
        with _open(lab, _mirror(below, CoreLog(REGION, sync))) as (device, file):
            device.wait(0, timeout=5)
            assert _state(device) == MirrorStatus(
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
        with _open(lab, _mirror(below)) as (device, file):
            assert _state(device).in_sync
            assert file.read(0, SIZE) == b"m" * SIZE, "reads go to leg 0"
        assert second.read(0, SIZE) == bytes(SIZE)


@pytest.mark.dm
def test_nine_legs_and_a_short_last_region(lab):
    legs = tuple(Leg(lab.refs[number % 2], number * 100) for number in range(9))
    value = Mirror(log=CoreLog(32), legs=legs)
    with lab.disk(0) as disk:
        disk.write(0, b"n" * (100 * 512))
    with lab.open(value, 100) as (device, _):
        assert _until(device, lambda status: status.in_sync).regions == 4
    for number in range(9):
        with lab.disk(number % 2) as disk:
            assert disk.read(number * 100 * 512, 100 * 512) == b"n" * (100 * 512)


@pytest.mark.dm
def test_a_log_on_a_disk_remembers(lab, below):
    value = _mirror(below, DiskLog(below[2].device.ref, REGION))
    with lab.disk(0) as first, lab.disk(1) as second:
        with _open(lab, value) as (device, _):
            assert _until(device, lambda status: status.in_sync).log == LogStatus(
                "disk", below[2].device.ref, LogState.ALIVE
            )
        magic, version, regions = struct.unpack("<IIQ", second.read(2048 * 512, 512)[:16])
        assert (magic, version, regions) == (0x4D695272, 2, 16)
        assert second.read(2050 * 512, 512)[:4] == b"\xff\xff\x00\x00", "a bit for each clean region"
        first.write(0, b"x" * SIZE)
        with _open(lab, value) as (device, _):
            assert _state(device).in_sync
            assert second.read(0, SIZE) == bytes(SIZE), "nothing was copied"
        with _open(lab, _mirror(below, DiskLog(below[2].device.ref, REGION, Sync.SYNC))) as (device, _):
            _until(device, lambda status: status.in_sync)
            assert second.read(0, SIZE) == b"x" * SIZE


@pytest.mark.dm
def test_a_dirty_log_copies_the_dirty_regions_again(lab, below):
    value = _mirror(below, DiskLog(below[2].device.ref, REGION, Sync.NOSYNC))
    with _open(lab, value):
        pass
    with lab.disk(0) as first, lab.disk(1) as second:
        first.write(0, b"x" * SIZE)
        second.write(2050 * 512, b"\xfd\xff" + second.read(2050 * 512, 512)[2:])
        with _open(lab, _mirror(below, DiskLog(below[2].device.ref, REGION))) as (device, _):
            _until(device, lambda status: status.in_sync)
        piece = REGION * 512
        assert second.read(0, SIZE) == bytes(piece) + b"x" * piece + bytes(SIZE - 2 * piece)


@pytest.mark.dm
def test_a_log_that_does_not_fit_its_device_is_refused(lab, below):
    with lab.device(targets.Linear(dev=lab.refs[1]), 2) as small:
        value = _mirror(below, DiskLog(small.ref, REGION))
        with pytest.raises(TableRejected) as caught, lab.device(value, SECTORS):
            pass
        assert caught.value.errno == errno.EINVAL


@pytest.mark.dm
def test_a_failed_write_without_handling_succeeds_and_leaves_the_region_out_of_sync(lab, below):
    with _open(lab, _mirror(below)) as (device, file):
        below[1].fail_writes()
        file.write(0, b"w" * 512)
        status = _until(device, lambda status: status.synced == 15)
        assert _letters(status) == "AD"
        assert file.read(0, 512) == b"w" * 512


@pytest.mark.dm
def test_a_write_that_all_legs_fail_fails(lab, below):
    with _open(lab, _mirror(below)) as (device, file):
        below[0].fail_writes()
        below[1].fail_writes()
        _fails(lambda: file.write(0, b"w" * 512))
        assert _letters(_state(device)) == "DD"


@pytest.mark.dm
@pytest.mark.parametrize("handled", [False, True])
def test_a_failed_read_goes_to_the_other_leg(lab, below, handled):
    with _open(lab, _mirror(below, handle_errors=handled)) as (device, file):
        file.write(0, b"w" * 4096)
        event = device.info().event_nr
        below[0].fail()
        assert file.read(0, 4096) == b"w" * 4096
        assert _letters(_state(device)) == "RA"
        assert _state(device).in_sync
        if handled:
            assert device.wait(event, timeout=5) > event
        below[1].fail()
        _fails(lambda: file.read(0, 4096))
        assert _letters(_state(device)) == "RR"
        if not handled:
            assert device.info().event_nr == event


@pytest.mark.dm
def test_a_copy_that_fails(lab, below):
    below[1].fail_writes()
    value = _mirror(below, CoreLog(REGION), handle_errors=True)
    with _open(lab, value) as (device, file):
        device.wait(0, timeout=5)
        status = _until(device, lambda status: _letters(status) != "AA")
        assert _letters(status) == "AS"
        assert not status.in_sync
        assert file.read(0, 4096) == bytes(4096)


class Writer(threading.Thread):
    """A write that may wait, in a thread."""

    def __init__(self, file: BlockFile) -> None:
        super().__init__(daemon=True)
        self.file = file
        self.error: OSError | None = None

    def run(self) -> None:
        try:
            self.file.write(0, b"w" * 512)
        except OSError as error:
            self.error = error

    def finished(self, seconds: float) -> bool:
        self.join(seconds)
        return not self.is_alive()


@contextlib.contextmanager
def _held_write(lab, below) -> Iterator[tuple[Device, BlockFile, Writer]]:
    """Let a write wait for the handling of an error; at the end it is let go."""
    with _open(lab, _mirror(below, handle_errors=True)) as (device, file):
        below[1].fail_writes()
        writer = Writer(file)
        event = device.info().event_nr
        writer.start()
        try:
            assert device.wait(event, timeout=5) > event
            assert _letters(_until(device, lambda status: status.synced == 15)) == "AD"
            assert not writer.finished(0.2)
            yield device, file, writer
        finally:
            below[1].heal()
            if writer.is_alive():
                with device.suspended():
                    pass
            assert writer.finished(5)


@pytest.mark.dm
def test_a_held_write_fails_at_a_suspend(lab, below):
    with _held_write(lab, below) as (device, _, writer):
        device.suspend()
        assert writer.finished(5)
        assert writer.error is not None
        assert writer.error.errno == errno.EIO
        device.resume()


@pytest.mark.dm
def test_a_held_write_is_done_by_the_next_table_after_a_suspend_without_flush(lab, below):
    with _held_write(lab, below) as (device, file, writer):
        alone = Table.of(targets.Linear(dev=below[0].device.ref), SECTORS)
        device.reload(alone, noflush=True, lockfs=False)
        assert writer.finished(5)
        assert writer.error is None
        assert file.read(0, 512) == b"w" * 512
        assert device.table() == alone


@pytest.mark.dm
def test_with_keep_log_a_write_goes_on(lab, below):
    log = DiskLog(below[2].device.ref, REGION, Sync.NOSYNC)
    with _open(lab, _mirror(below, log, handle_errors=True, keep_log=True)) as (device, file):
        below[1].fail()
        file.write(0, b"w" * 512)
        assert _letters(_until(device, lambda status: status.synced == 15)) == "AD"
        below[2].fail_writes()
        _fails(lambda: file.write(8 * REGION * 512, b"w" * 512))
        log_now = _until(device, lambda status: status.log.state is not LogState.ALIVE).log
        assert log_now.dev == below[2].device.ref
        assert log_now.state in (LogState.FAILED, LogState.FLUSH_FAILED), (
            "what the log did last when it broke"
        )


@pytest.mark.dm
@pytest.mark.parametrize(
    ("fail", "state"),
    [(Below.fail_writes, LogState.FAILED), (Below.fail_flushes, LogState.FLUSH_FAILED)],
    ids=["write", "flush"],
)
def test_a_log_that_fails(lab, below, fail, state):
    value = _mirror(below, DiskLog(below[2].device.ref, REGION, Sync.NOSYNC))
    with _open(lab, value) as (device, file):
        event = device.info().event_nr
        fail(below[2])
        file.write(0, b"w" * 512)
        assert device.wait(event, timeout=5) > event
        assert _state(device).log == LogStatus("disk", below[2].device.ref, state)
        assert _letters(_state(device)) == "AA"


@pytest.mark.dm
def test_a_leg_that_cannot_flush(lab, below):
    value = _mirror(below, DiskLog(below[2].device.ref, REGION, Sync.NOSYNC))
    with _open(lab, value) as (device, file):
        below[1].fail_flushes()
        for region in range(
            SECTORS // REGION
        ):  # the log, and so the legs, are flushed when a clean region is written
            file.write(region * REGION * 512, b"w" * 512)
            time.sleep(0.1)
            if _letters(_state(device)) == "AF":
                break
        _until(device, lambda status: _letters(status) == "AF")


@pytest.mark.dm
def test_a_discard_goes_to_all_legs(lab, below):
    with lab.disk(0) as first, lab.disk(1) as second, _open(lab, _mirror(below)) as (device, file):
        file.write(0, b"w" * SIZE)
        file.discard(REGION * 512, REGION * 512)
        for disk in (first, second):
            piece = REGION * 512
            assert disk.read(0, SIZE) == b"w" * piece + bytes(piece) + b"w" * (SIZE - 2 * piece)
        assert _state(device).in_sync


@pytest.mark.dm
def test_a_userspace_log_without_a_daemon_is_refused(lab, below):
    value = _mirror(below, UserspaceLog("pytest-dm", CoreLog(REGION)))
    with pytest.raises(TableRejected) as caught, lab.device(value, SECTORS):
        pass
    assert caught.value.errno == errno.EINVAL


@pytest.mark.dm
def test_a_userspace_log_asks_its_daemon(lab, below):
    with Daemon() as daemon, lab.disk(0) as first, lab.disk(1) as second:
        first.write(0, b"m" * SIZE)
        with _open(lab, _mirror(below, UserspaceLog("pytest-dm", CoreLog(REGION)))) as (device, file):
            status = _until(device, lambda status: status.in_sync)
            assert status.log == LogStatus("clustered-core")
            assert (status.regions, _letters(status)) == (16, "AA")
            assert second.read(0, SIZE) == b"m" * SIZE
            file.write(0, b"w" * 512)
            assert second.read(0, 512) == b"w" * 512
            daemon.status_fails = True
            assert _state(device).log == LogStatus("userspace", None, LogState.UNREACHABLE)
    assert {Kind.CTR, Kind.RESYNC_WORK, Kind.SET_SYNC, Kind.MARK, Kind.FLUSH, Kind.DTR} <= set(daemon.asked)


@pytest.mark.dm
def test_a_userspace_log_on_a_disk_with_integrated_flush(lab, below):
    log = UserspaceLog("u" * 128, DiskLog(below[2].device.ref, REGION, Sync.NOSYNC), integrated_flush=True)
    with Daemon() as daemon, lab.disk(1) as second, _open(lab, _mirror(below, log)) as (device, file):
        assert _state(device).in_sync
        assert _state(device).log == LogStatus("clustered-disk", below[2].device.ref, LogState.ALIVE)
        file.write(0, b"w" * 512)
        assert second.read(0, 512) == b"w" * 512
        assert Kind.FLUSH in daemon.asked
        assert Kind.MARK not in daemon.asked, "marks go with the flush"


USERSPACE = st.builds(
    UserspaceLog,
    st.text(
        st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters="\\\xa0"), min_size=1
    ).filter(lambda text: len(text.encode()) <= 128 and b"\xa0" not in text.encode()),
    st.builds(CoreLog, st.sampled_from([2, 8, 64]), st.none() | st.sampled_from(Sync))
    | st.builds(DiskLog, st.just(LOG), st.sampled_from([2, 8]), st.none() | st.sampled_from(Sync)),
    st.booleans(),
)


@given(USERSPACE)
def test_text_of_userspace_logs_goes_both_ways(log):
    table = Table.of(Mirror(log=log, legs=LEGS), 64)
    assert Table.parse(str(table)) == table


@pytest.mark.dm
def test_the_kernel_prints_every_userspace_log_as_it_was(lab):
    disk_log = lab.refs[1]

    @settings(max_examples=40, deadline=None, database=None)
    @given(USERSPACE)
    def check(log: UserspaceLog) -> None:
        if isinstance(log.log, DiskLog):
            log = UserspaceLog(log.uuid, DiskLog(disk_log, log.region, log.log.sync), log.integrated_flush)
        table = Table.of(Mirror(log=log, legs=(Leg(lab.refs[0]), Leg(lab.refs[1], 64))), 64)
        with lab.empty() as dev:
            lab.control.load(dev, table.encode(str))
            assert Table.from_lines(lab.control.table(dev, inactive=True)) == table

    with Daemon():
        check()
