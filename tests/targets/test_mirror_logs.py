"""Mirrors' logs on a kernel: on a disk, failing, and in user space."""

from __future__ import annotations

import contextlib
import errno
import struct
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mirror_lab import REGION, SECTORS, SIZE, Below, fails, letters, mirror, mirror_state, opened, until
from mirror_log_daemon import Daemon, Kind

from dmcore import targets
from dmcore.errors import TableRejected
from dmcore.kernel.block import BlockFile
from dmcore.kernel.device import Device
from dmcore.ref import Ref
from dmcore.table import Table
from dmcore.target import Leg
from dmcore.targets.mirror import (
    CoreLog,
    DiskLog,
    LogState,
    LogStatus,
    Mirror,
    Sync,
    UserspaceLog,
)

LOG = Ref("7:2")
LEGS = (Leg(Ref("7:0")), Leg(Ref("7:1"), 16))


@pytest.mark.dm
def test_a_log_on_a_disk_remembers(lab, below):
    value = mirror(below, DiskLog(below[2].device.ref, REGION))
    with lab.disk(0) as first, lab.disk(1) as second:
        with opened(lab, value) as (device, _):
            assert until(device, lambda status: status.in_sync).log == LogStatus(
                "disk", below[2].device.ref, LogState.ALIVE
            )
        magic, version, regions = struct.unpack("<IIQ", second.read(2048 * 512, 512)[:16])
        assert (magic, version, regions) == (0x4D695272, 2, 16)
        assert second.read(2050 * 512, 512)[:4] == b"\xff\xff\x00\x00", "a bit for each clean region"
        first.write(0, b"x" * SIZE)
        with opened(lab, value) as (device, _):
            assert mirror_state(device).in_sync
            assert second.read(0, SIZE) == bytes(SIZE), "nothing was copied"
        with opened(lab, mirror(below, DiskLog(below[2].device.ref, REGION, Sync.SYNC))) as (device, _):
            until(device, lambda status: status.in_sync)
            assert second.read(0, SIZE) == b"x" * SIZE


@pytest.mark.dm
def test_a_dirty_log_copies_the_dirty_regions_again(lab, below):
    value = mirror(below, DiskLog(below[2].device.ref, REGION, Sync.NOSYNC))
    with opened(lab, value):
        pass
    with lab.disk(0) as first, lab.disk(1) as second:
        first.write(0, b"x" * SIZE)
        second.write(2050 * 512, b"\xfd\xff" + second.read(2050 * 512, 512)[2:])
        with opened(lab, mirror(below, DiskLog(below[2].device.ref, REGION))) as (device, _):
            until(device, lambda status: status.in_sync)
        piece = REGION * 512
        assert second.read(0, SIZE) == bytes(piece) + b"x" * piece + bytes(SIZE - 2 * piece)


@pytest.mark.dm
def test_a_log_that_does_not_fit_its_device_is_refused(lab, below):
    with lab.device(targets.Linear(dev=lab.refs[1]), 2) as small:
        value = mirror(below, DiskLog(small.ref, REGION))
        with pytest.raises(TableRejected) as caught, lab.device(value, SECTORS):
            pass
        assert caught.value.errno == errno.EINVAL


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
    with opened(lab, mirror(below, handle_errors=True)) as (device, file):
        below[1].fail_writes()
        writer = Writer(file)
        event = device.info().event_nr
        writer.start()
        try:
            assert device.wait(event, timeout=5) > event
            assert letters(until(device, lambda status: status.synced == 15)) == "AD"
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
    with opened(lab, mirror(below, log, handle_errors=True, keep_log=True)) as (device, file):
        below[1].fail()
        file.write(0, b"w" * 512)
        assert letters(until(device, lambda status: status.synced == 15)) == "AD"
        below[2].fail_writes()
        fails(lambda: file.write(8 * REGION * 512, b"w" * 512))
        log_now = until(device, lambda status: status.log.state is not LogState.ALIVE).log
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
    value = mirror(below, DiskLog(below[2].device.ref, REGION, Sync.NOSYNC))
    with opened(lab, value) as (device, file):
        event = device.info().event_nr
        fail(below[2])
        file.write(0, b"w" * 512)
        assert device.wait(event, timeout=5) > event
        assert mirror_state(device).log == LogStatus("disk", below[2].device.ref, state)
        assert letters(mirror_state(device)) == "AA"


@pytest.mark.dm
def test_a_userspace_log_without_a_daemon_is_refused(lab, below):
    value = mirror(below, UserspaceLog("pytest-dm", CoreLog(REGION)))
    with pytest.raises(TableRejected) as caught, lab.device(value, SECTORS):
        pass
    assert caught.value.errno == errno.EINVAL


@pytest.mark.dm
def test_a_userspace_log_asks_its_daemon(lab, below):
    with Daemon() as daemon, lab.disk(0) as first, lab.disk(1) as second:
        first.write(0, b"m" * SIZE)
        with opened(lab, mirror(below, UserspaceLog("pytest-dm", CoreLog(REGION)))) as (device, file):
            status = until(device, lambda status: status.in_sync)
            assert status.log == LogStatus("clustered-core")
            assert (status.regions, letters(status)) == (16, "AA")
            assert second.read(0, SIZE) == b"m" * SIZE
            file.write(0, b"w" * 512)
            assert second.read(0, 512) == b"w" * 512
            daemon.status_fails = True
            assert mirror_state(device).log == LogStatus("userspace", None, LogState.UNREACHABLE)
    assert {Kind.CTR, Kind.RESYNC_WORK, Kind.SET_SYNC, Kind.MARK, Kind.FLUSH, Kind.DTR} <= set(daemon.asked)


@pytest.mark.dm
def test_a_userspace_log_on_a_disk_with_integrated_flush(lab, below):
    log = UserspaceLog("u" * 128, DiskLog(below[2].device.ref, REGION, Sync.NOSYNC), integrated_flush=True)
    with Daemon() as daemon, lab.disk(1) as second, opened(lab, mirror(below, log)) as (device, file):
        assert mirror_state(device).in_sync
        assert mirror_state(device).log == LogStatus("clustered-disk", below[2].device.ref, LogState.ALIVE)
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
    assert Table.from_lines(table.encode(str)) == table
    if "#" not in log.uuid:  # begins a comment in the text of a table, as for dmsetup
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
