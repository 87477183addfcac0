"""dm_crash.record on real kernels: what is in the log, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from dmcore.crash.sparse import extents
from dmcore.errors import DmError, SpecError
from dmcore.formats.log_writes import BARRIER, END_MARK, LogFlag, LogReader
from pytest_dm.crash import order

BLOCK = 4096
SIZES = {"ext2": "16M", "ext4": "32M", "xfs": "320M", "btrfs": "128M", "f2fs": "64M"}


def marks(recording):
    with LogReader(recording.log) as log:
        return [entry.mark for entry in log if entry.mark and not entry.mark.startswith(BARRIER)]


def save(path, data):
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def content(path):
    """Return the blocks of a sparse file that are not zero, by number."""
    blocks = {}
    with path.open("rb", buffering=0) as file:
        for start, end in extents(file.fileno(), path.stat().st_size):
            for offset in range(start - start % BLOCK, end, BLOCK):
                data = os.pread(file.fileno(), BLOCK, offset)
                if any(data):
                    blocks[offset // BLOCK] = data
    return blocks


def replayed(recording, until=None):
    """Return what the base holds with the log's entries before number `until` on it, as `content` does."""
    blocks = content(recording.base)

    def write(offset, data):
        while data:
            block, at = divmod(offset, BLOCK)
            piece = data[: BLOCK - at]
            old = blocks.get(block, bytes(BLOCK))
            blocks[block] = old[:at] + piece + old[at + len(piece) :]
            offset, data = offset + len(piece), data[len(piece) :]

    with LogReader(recording.log) as log:
        for entry in log:
            if entry.index == until:
                break
            start, length = log.extent(entry)
            if entry.flags & LogFlag.DISCARD:
                write(start, bytes(length))
            elif entry.has_data:
                write(start, log.read(entry))
    return {block: data for block, data in blocks.items() if any(data)}


@pytest.mark.parametrize("filesystem", ["ext2", "ext4", "xfs", "btrfs", "f2fs"])
def test_a_file_system(dm_crash, dm_backend, filesystem):
    if filesystem == "f2fs" and dm_backend.machine == "uml":
        pytest.skip("user-mode Linux has no f2fs")
    with dm_crash.record(size=SIZES[filesystem], filesystem=filesystem) as disk:
        for number in range(3):
            with disk.operation(f"save-{number}"):
                save(disk.mountpoint / f"f{number}", b"%d" % number * 5000)
        subprocess.run(["cp", disk.mountpoint / "f0", disk.mountpoint / "copy"], check=True)
        disk.sync()
        disk.mark("synced")
        at_the_end = content(disk.device.lower.backing)
    expected = [f"{word}:save-{number}" for number in range(3) for word in ("start", "done")]
    assert marks(dm_crash.recording) == [*expected, "synced", END_MARK]
    assert content(dm_crash.recording.final) == at_the_end
    assert replayed(dm_crash.recording) == at_the_end
    assert (disk.mountpoint / "copy").read_bytes() == b"0" * 5000
    save(disk.mountpoint / "later", b"not in the log" * 1000)
    assert replayed(dm_crash.recording) == at_the_end


@pytest.mark.dm(needs="fsfreeze")
@pytest.mark.parametrize("filesystem", ["ext4", "xfs", "btrfs"])
def test_the_log_replays_to_the_disk_at_every_mark(dm_crash, filesystem):
    images = {}
    with dm_crash.record(size=SIZES[filesystem], filesystem=filesystem) as disk:
        for number in range(4):
            save(disk.mountpoint / f"f{number}", os.urandom(20_000))
            subprocess.run(["fsfreeze", "-f", disk.mountpoint], check=True)  # nothing is on its way now
            disk.device.flush()
            images[f"m{number}"] = content(disk.device.lower.backing)
            disk.mark(f"m{number}")
            subprocess.run(["fsfreeze", "-u", disk.mountpoint], check=True)
    recording = dm_crash.recording
    with LogReader(recording.log) as log:
        at = {entry.mark: entry.index for entry in log if entry.mark is not None}
    for name, image in images.items():
        assert replayed(recording, at[name]) == image, name


def test_a_bare_disk(dm_crash):
    with dm_crash.record(size="1M", filesystem=None) as disk:
        disk.write(0, b"a" * BLOCK)
        disk.write_fua(BLOCK, b"b" * BLOCK)
        disk.mark("fua")
        disk.flush()
        disk.discard(0, BLOCK)
        disk.write(2 * BLOCK, b"c" * BLOCK)
        with pytest.raises(DmError, match="bare disk"):
            _ = disk.mountpoint
        assert disk.read(BLOCK, 1024) == b"b" * 1024
    with LogReader(dm_crash.recording.log) as log:
        entries = [(entry.flags, entry.sector, entry.nr_sectors) for entry in log]
    assert entries == [
        (LogFlag.FUA, 8, 8), (0, 0, 8), (LogFlag.FLUSH, 0, 0), (LogFlag.MARK, 0, 0), (LogFlag.FLUSH, 0, 0),
        (LogFlag.MARK, 0, 0), (LogFlag.DISCARD, 0, 8), (0, 16, 8), (LogFlag.MARK, 0, 0),
    ]  # fmt: skip
    assert dm_crash.recording.base.read_bytes() == bytes(1 << 20)


@pytest.mark.dm(size="2M", block_size=4096)
def test_the_markers_size_and_block(dm_crash):
    with dm_crash.record() as disk:
        disk.mark("m" * (4096 - 33))
        with pytest.raises(SpecError):
            disk.mark("m" * (4096 - 32))
        assert (disk.size, disk.block_size) == (2 << 20, 4096)
    assert dm_crash.recording.block_size == 4096


def test_names_that_are_refused(dm_crash):
    with dm_crash.record(size="1M", filesystem=None) as disk:
        for name in ("", "two words", "tab\t", "new\nline", "x" * 480, "a\0b"):
            with pytest.raises(SpecError):
                disk.mark(name)
            with pytest.raises(SpecError), disk.operation(name):
                pytest.fail("the block ran")
        disk.mark("x" * 479)
    assert marks(dm_crash.recording) == ["x" * 479, END_MARK]


def test_an_operation_that_fails_is_not_acknowledged(dm_crash):
    with dm_crash.record(size="1M", filesystem=None) as disk:
        with pytest.raises(ZeroDivisionError), disk.operation("it"):
            _ = 1 / 0
        with disk.operation("other"):
            pass
    assert marks(dm_crash.recording) == ["start:it", "start:other", "done:other", END_MARK]


def test_a_body_that_fails_leaves_no_recording(dm_crash):
    with pytest.raises(ZeroDivisionError), dm_crash.record(size="1M", filesystem=None):
        _ = 1 / 0
    assert dm_crash.recording is None


def test_a_full_log_is_an_error(dm_crash):
    def overflow():
        with dm_crash.record(size="4M", filesystem=None, log_size="64K") as disk:
            disk.write(0, bytes(1 << 20))
            disk.flush()

    with pytest.raises(DmError, match="log_size"):
        overflow()
    assert dm_crash.recording is None


def test_a_log_that_fills_in_the_end_is_an_error(dm_crash):
    with (
        pytest.raises(DmError, match="log_size"),
        dm_crash.record(size="4M", filesystem=None, log_size="64K") as disk,
    ):
        disk.write(0, bytes(1 << 20))


@pytest.mark.parametrize("options", ["dax", "noatime,dax=always", "dax=inode"])
def test_dax_is_refused(dm_crash, options):
    with (
        pytest.raises(SpecError, match="DAX"),
        dm_crash.record(size="32M", filesystem="ext4", mount_options=options),
    ):
        pytest.fail("the block ran")


def test_options_of_a_file_system_for_a_bare_disk(dm_crash):
    with pytest.raises(SpecError, match="bare"), dm_crash.record(filesystem=None, mount_options="noatime"):
        pytest.fail("the block ran")


def test_options_reach_mkfs_and_mount(dm_crash):
    with dm_crash.record(
        size="16M",
        filesystem="ext4",
        mkfs_options=["-b", "1024", "-L", "shop"],
        mount_options="noatime,barrier=0",
    ) as disk:
        save(disk.mountpoint / "f", b"x")
    assert b"shop\0" in dm_crash.recording.base.read_bytes()[1024:2048]
    with LogReader(dm_crash.recording.log) as log:
        assert not [
            entry for entry in log if entry.flags & (LogFlag.FLUSH | LogFlag.FUA) and entry.nr_sectors == 0
        ]


WRITER = """
import os, sys
for number in range(3):
    with open(f"{sys.argv[1]}/f{number}", "wb") as file:
        file.write(b"child" * 100)
        file.flush()
        os.fsync(file.fileno())
    print(number, flush=True)
"""


def test_a_program_writes_and_acknowledges_through_a_pipe(dm_crash):
    with dm_crash.record(size="16M", filesystem="ext4") as disk:
        command = [sys.executable, "-c", WRITER, str(disk.mountpoint)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
            for line in program.stdout:
                disk.mark(f"saved-{line.strip()}")
        assert program.returncode == 0
    assert marks(dm_crash.recording) == ["saved-0", "saved-1", "saved-2", END_MARK]


def test_two_recordings_in_one_test(dm_crash):
    for name in ("one", "two"):
        with dm_crash.record(size="1M", filesystem=None) as disk:
            disk.mark(name)
        assert marks(dm_crash.recording) == [name, END_MARK]


@pytest.mark.parametrize("filesystem", ["ext4", "xfs", "btrfs"])
def test_times_of_every_entry(dm_crash, dm_backend, filesystem):
    """Where the kernel has block tracepoints, each entry's times are known, and tell what the log's order hides."""
    with dm_crash.record(size=SIZES[filesystem], filesystem=filesystem) as disk:

        def work(thread):
            for number in range(6):
                with disk.operation(f"{thread}-{number}"):
                    save(disk.mountpoint / f"{thread}-{number}", b"x" * 30_000)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    recording = dm_crash.recording
    if dm_backend.machine == "uml":
        assert recording.times is None
        assert "tracing" in recording.unordered
        return
    assert recording.unordered == ""
    lines = [line.split() for line in recording.times.read_text().splitlines()[1:]]
    assert [int(line[0]) for line in lines] == list(range(recording.entries))
    times = [(int(issued), int(completed)) for _, issued, completed in lines]
    assert all(issued <= completed for issued, completed in times)
    with LogReader(recording.log) as log:
        entries = list(log)
    flushes = [entry.index for entry in entries if entry.flags & LogFlag.FLUSH]
    for at in flushes:  # the kernel's own rule: a flush covers what had completed when it was issued
        for entry in entries[:at]:
            if entry.nr_sectors and not entry.flags & LogFlag.FUA:
                assert times[entry.index][1] < times[at][0], (entry, at)


TRACE = """
  a-1 [000] .....  10: block_bio_queue: 7,0 WS 8 + 8 [a]
  a-1 [000] .....  11: block_bio_queue: 254,0 R 8 + 8 [a]
  a-1 [000] .....  12: block_bio_queue: 7,0 R 8 + 8 [a]
  a-1 [000] .....  13: block_bio_complete: 254,0 R 8 + 8 [0]
  a-1 [000] .....  14: block_bio_queue: 7,0 WS 100 + 4 [a]
  a-1 [000] .....  15: block_bio_queue: 7,0 WS 104 + 4 [a]
  a-1 [000] .....  16: block_bio_complete: 254,0 WS 8 + 8 [0]
  a-1 [000] .....  17: block_bio_complete: 254,0 WS 100 + 8 [0]
  a-1 [000] .....  18: tracing_mark_write: pytest-dm-mark done:x
  a-1 [000] .....  20: block_bio_queue: 7,0 FWFSM 32 + 0 [a]
  a-1 [000] .....  22: block_bio_queue: 7,0 WFSM 32 + 2 [a]
  a-1 [000] .....  23: block_bio_complete: 254,0 WFSM 32 + 2 [0]
  a-1 [000] .....  24: block_bio_queue: 7,0 DS 64 + 8 [a]
  a-1 [000] .....  25: block_bio_complete: 254,0 DS 64 + 8 [0]
"""


def test_a_trace_is_read():
    found = order.parse(TRACE.splitlines(), os.makedev(7, 0), os.makedev(254, 0))
    shown = [
        (one.sector, one.count, one.discard, one.fua, one.issued / 2, one.completed / 2)
        for one in found.requests
    ]
    assert shown == [
        (8, 8, False, False, 10, 16),
        (100, 4, False, False, 14, 17),
        (104, 4, False, False, 15, 17),
        (32, 0, False, False, 20, 21.5),
        (32, 2, False, True, 22, 23),
        (64, 8, True, False, 24, 25),
    ]
    assert found.marks == [("done:x", 36)]
