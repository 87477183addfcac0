"""Recording: a workload on a disk whose every write is logged, with marks for what it acknowledged."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dmcore.crash.sparse import extents
from dmcore.errors import DmError, FormatError, SpecError
from dmcore.formats.log_writes import END_MARK, LogReader
from dmcore.kernel.mount import mounts, sync_filesystem
from pytest_dm.crash import order

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path

    from pytest_dm.below import Size
    from pytest_dm.devices import LogWrites, Loop
    from pytest_dm.devices.mount import Mount
    from pytest_dm.factory import Dm
    from pytest_dm.runtime import OpenDisk

__all__ = ["DONE", "START", "CrashDisk", "Recording", "record", "record_mount"]

START = "start:"
DONE = "done:"
_BLOCK = 4096
_PIECE = 1 << 20
_LEAST_LOG = 64 << 20


@dataclass(frozen=True, slots=True)
class Recording:
    """What a workload wrote, ready to be explored. The files go with the test.

    Attributes:
        base: Image of the disk before the recording began: behind mkfs, before the first mount.
        log: The dm-log-writes log, complete.
        final: The disk itself as the recording left it (what the log replays to; later writes change it).
        size: Bytes of the disk.
        block_size: Its logical block size in bytes, which is the log's sector.
        filesystem: The file system on it, None for a bare disk.
        mount_options: How it was mounted.
        entries: Entries in the log, its end mark included.
        log_bytes: Length of the log.
        times: Side file with the times at which each entry was issued and completed; None where the kernel has none.
        unordered: Why there are no times.
    """

    base: Path
    log: Path
    final: Path
    size: int
    block_size: int
    filesystem: str | None
    mount_options: str
    entries: int
    log_bytes: int
    times: Path | None
    unordered: str


class CrashDisk:
    """The disk that a recorded workload runs on.

    Attributes:
        device: The log-writes device; for everything that has no shorter name here.
        filesystem: The file system on it, None for a bare disk.
        recording: The recording, once the `record` block has ended; None before, and if the block failed.
    """

    def __init__(self, device: LogWrites, filesystem: str | None, block_size: int) -> None:
        self.device = device
        self.trace: order.Trace | None = None
        self.times: Sequence[tuple[int, int]] | None = None
        self.unordered = ""
        self._marking = threading.Lock()
        self.filesystem = filesystem
        self.block_size = block_size
        self.recording: Recording | None = None

    @property
    def path(self) -> Path:
        """The block device node.

        Raises:
            Unsupported: The model backend has none.
        """
        return self.device.path

    @property
    def size(self) -> int:
        """Bytes."""
        return self.device.size

    @property
    def mountpoint(self) -> Path:
        """Where the file system is mounted.

        Raises:
            DmError: A bare disk has none.
        """
        if self.filesystem is None:
            message = (
                "record(filesystem=None) gives a bare disk: use disk.path, or disk.read, write and flush"
            )
            raise DmError(message)
        return self.device.mountpoint

    def mark(self, name: str) -> None:
        """Say that something is acknowledged: from here on, every state must have what was durable when it was.

        Args:
            name: 1 to `block_size - 33` bytes of UTF-8 without white space and NUL (479 for sectors of 512 bytes).

        Raises:
            SpecError: A name that would not arrive whole.
            DmError: The log is full or no longer written.
        """
        if any(character.isspace() for character in name):
            raise SpecError("mark", name, "a mark is one word; put '-' or '_' where the blanks are")
        with self._marking:
            self.device.mark(name)
            if self.trace is not None:
                self.trace.mark(name)

    @contextmanager
    def operation(self, name: str) -> Generator[None]:
        """Name an operation: it is started here, and acknowledged when the block ends without an exception.

        A state checked while it is under way has it in `state.started`, later ones in `state.acknowledged` too.
        Operations of several threads may overlap. The marks in the log are `start:NAME` and `done:NAME`.

        Raises:
            SpecError: The name is no mark, see `mark`; refused before the block runs.
        """
        longest = max(len(START), len(DONE))
        size = len(name.encode(errors="surrogateescape"))
        most = self.block_size - 33 - longest
        if not 1 <= size <= most:
            raise SpecError("operation", name, f"{size} bytes, must be 1..{most}")
        self.mark(START + name)
        yield
        self.mark(DONE + name)

    def sync(self) -> None:
        """Make everything written so far durable: syncfs(2) of the file system, or a flush of the bare disk."""
        if self.filesystem is None:
            self.device.flush()
        else:
            sync_filesystem(self.mountpoint)

    def open(self, *, direct: bool = True, readonly: bool = False) -> OpenDisk:
        """Open the bare disk for many small reads, writes, flushes and discards."""
        return self.device.open(direct=direct, readonly=readonly)

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the bare disk."""
        return self.device.read(offset, length)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write bytes to the bare disk; durable with the next `flush`."""
        self.device.write(offset, data)

    def write_fua(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write whole blocks to the bare disk, durable when this returns (O_DSYNC: a FUA write, then an empty flush)."""
        with self.device.open(synchronous=True) as file:
            file.write(offset, data)

    def flush(self) -> None:
        """Make completed writes to the bare disk durable."""
        self.device.flush()

    def discard(self, offset: int, length: int) -> None:
        """Discard a range of the bare disk."""
        self.device.discard(offset, length)

    def __repr__(self) -> str:
        return f"<CrashDisk {self.device.name} ({self.filesystem or 'bare'})>"


@contextmanager
def record(
    dm: Dm,
    *,
    size: Size,
    filesystem: str | None,
    mkfs_options: tuple[str, ...] = (),
    mount_options: str = "",
    block_size: int = 512,
    log_size: Size | None = None,
) -> Generator[CrashDisk]:
    """Give a disk whose writes are recorded until the end of the block.

    The base image is a copy of the disk behind mkfs: its used blocks only, which is smaller than mkfs in the log, and
    no state of it is worth checking. The mount is recorded. At the end the log-writes table is replaced by a linear one
    under the file system, which may stay mounted: what no flush covered comes last in the log, as in flight.

    Raises:
        SpecError: DAX mount options (such writes bypass the log), or what `Dm` refuses.
        DmError: The log filled up or stopped.
    """
    if any(option.split("=")[0] == "dax" and option != "dax=never" for option in mount_options.split(",")):
        raise SpecError("mount_options", mount_options, "writes through DAX never reach dm-log-writes")
    lower = dm.loop(size, block_size=block_size, label="crash-disk")
    if filesystem is not None:
        dm.mkfs(lower, filesystem, *mkfs_options)
    elif mkfs_options or mount_options:
        raise SpecError("filesystem", None, "a bare disk has no mkfs_options and no mount_options")
    with lower.open(direct=False) as file:
        file.drop_caches()
    base = dm.runtime.new_file(lower.size, "crash-base")
    copy_used(lower.backing, base)
    most = max(4 * lower.size, _LEAST_LOG) if log_size is None else log_size
    log = dm.loop(most, block_size=block_size, label="crash-log")
    disk = CrashDisk(dm.log_writes(lower, log), filesystem, block_size)
    _trace(disk, lower)
    try:
        if filesystem is not None:
            _refuse_dax(dm.mount(disk.device, fs=filesystem, options=mount_options))
        yield disk
        disk.recording = _close(disk, lower, log, base, mount_options)
    finally:
        if disk.trace is not None:
            disk.trace.close()


def _trace(disk: CrashDisk, lower: Loop) -> None:
    """Begin to take times, or say why there will be none."""
    disk.times = disk.device.runtime.times_of_log(disk.device)
    if disk.times is not None:
        return
    try:
        disk.trace = order.Trace(lower.path.stat().st_rdev, disk.path.stat().st_rdev)
    except order.Unordered as error:
        disk.unordered = str(error)


def record_mount(dm: Dm, image: Path, filesystem: str, mount_options: str, *, block_size: int) -> Path:
    """Record what a mount of an image and the unmount after it write; return the log, which goes with `dm`.

    Raises:
        IoctlError: It cannot be mounted.
        DmError: The log is not whole.
    """
    size = image.stat().st_size
    lower = dm.loop(size, block_size=block_size, label="crash-disk")
    copy_used(image, lower.backing)
    log = dm.loop(max(4 * size, _LEAST_LOG), block_size=block_size, label="crash-log")
    device = dm.log_writes(lower, log)
    # Xfs mounts no two of the same uuid, and the recorded one may still be mounted.
    options = ",".join(filter(None, (mount_options, "nouuid" if filesystem == "xfs" else "")))
    dm.mount(device, fs=filesystem, options=options).unmount()
    disk = CrashDisk(device, filesystem, block_size)
    return _close(disk, lower, log, image, mount_options).log


def _refuse_dax(mounted: Mount) -> None:
    for line in mounts():
        options = line.options.split(",")
        if line.target == mounted.mountpoint and ("dax" in options or "dax=always" in options):
            raise SpecError("mount_options", line.options, "writes through DAX never reach dm-log-writes")


def _close(disk: CrashDisk, lower: Loop, log: Loop, base: Path, mount_options: str) -> Recording:
    """Stop the log under the mounted file system, and see that it is whole."""
    full = (
        f"the log of {log.size} bytes is not whole: it filled up, or its disk or memory ran out; record less, or "
        "give record(log_size=...) more"
    )
    if not disk.device.logging:
        raise DmError(full)
    disk.device.stop()
    with log.open(direct=False) as file:
        file.drop_caches()
    try:
        with LogReader(log.backing) as reader:
            *_, last = reader
            end = last.data_offset
            entries = reader.nr_entries
    except FormatError as error:
        message = f"{full} ({error})"
        raise DmError(message) from error
    if last.mark != END_MARK:
        raise DmError(full)
    times = _times(disk, log, base.with_suffix(".times"))
    return Recording(
        base=base, log=log.backing, final=lower.backing, size=lower.size, block_size=disk.block_size,
        filesystem=disk.filesystem, mount_options=mount_options, entries=entries, log_bytes=end,
        times=times, unordered=disk.unordered,
    )  # fmt: skip


def _times(disk: CrashDisk, log: Loop, path: Path) -> Path | None:
    """Write the side file of times if they are all known."""
    if disk.trace is None and disk.times is None:
        return None
    try:
        times = disk.times if disk.trace is None else _traced(disk.trace, log)
    except order.Unordered as error:
        disk.unordered = str(error)
        return None
    assert times is not None
    lines = (f"{entry} {issued} {completed}\n" for entry, (issued, completed) in enumerate(times))
    path.write_text("# entry issued completed\n" + "".join(lines), encoding="ascii")
    return path


def _traced(trace: order.Trace, log: Loop) -> list[tuple[int, int]]:
    """Return the times that the trace tells.

    Raises:
        Unordered: It does not tell them all.
    """
    found = order.parse(trace.read().splitlines(), trace.below, trace.above)
    return order.match(log.backing, found)


def copy_used(source: Path, target: Path) -> None:
    """Copy what is not zero of a sparse file into another one of the same length, all zeros."""
    zeros = bytes(_BLOCK)
    with source.open("rb", buffering=0) as read, target.open("r+b", buffering=0) as written:
        for start, end in extents(read.fileno(), os.fstat(read.fileno()).st_size):
            for offset in range(start, end, _PIECE):
                data = os.pread(read.fileno(), min(_PIECE, end - offset), offset)
                for at in range(0, len(data), _BLOCK):
                    block = data[at : at + _BLOCK]
                    if block != zeros[: len(block)]:
                        os.pwrite(written.fileno(), block, offset + at)
