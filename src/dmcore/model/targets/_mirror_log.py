"""The logs of the model of mirror: which regions are in sync, which are clean, and what is written down of it.

Sources: drivers/md/dm-log.c (create_log_context, core_*, disk_resume, disk_flush, read_header).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmcore.errors import FormatError, SpecError
from dmcore.formats import mirror_log
from dmcore.targets.mirror import CoreLog, DiskLog, LogState, Sync
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Callable

    from dmcore.model.block import BlockDevice

__all__ = ["DiskRegions", "Regions"]

_ALL_SET = 0xFF
_U32 = 0xFFFFFFFF


def _get(bits: bytearray, index: int) -> bool:
    return bool(bits[index >> 3] >> (index & 7) & 1)


def _put(bits: bytearray, index: int, *, value: bool) -> None:
    if value:
        bits[index >> 3] |= 1 << (index & 7)
    else:
        bits[index >> 3] &= ~(1 << (index & 7))


def _fill(bits: bytearray, start: int, end: int, *, value: bool) -> None:
    first, last = min(-(-start // 8) * 8, end), max(end // 8 * 8, start)
    if first < last:
        bits[first >> 3 : last >> 3] = (b"\xff" if value else b"\0") * ((last - first) >> 3)
    for index in (*range(start, first), *range(max(last, first), end)):
        _put(bits, index, value=value)


class Regions:
    """The log in memory.

    Attributes:
        count: Regions of the mirror.
        synced: How many of them are in sync.
    """

    def __init__(self, log: CoreLog | DiskLog, length: int) -> None:
        self.count = -(-length // log.region)
        self._believe = log.sync
        size = mirror_log.bitmap_bytes(self.count)
        self._clean = bytearray(b"\xff" * size)
        self._sync = bytearray(b"\xff" * size if log.sync is Sync.NOSYNC else size)
        self.synced = self.count if log.sync is Sync.NOSYNC else 0
        self._search = 0

    def resume(self) -> None:
        """Look for regions that are not in sync from the first one on again."""
        self._search = 0

    def in_sync(self, region: int) -> bool:
        """Whether all legs are the same there."""
        return _get(self._sync, region)

    def set_sync(self, region: int, *, value: bool) -> None:
        """Note whether they are."""
        if value:
            self.synced += 1
        elif self.in_sync(region):
            self.synced -= 1
        _put(self._sync, region, value=value)

    def mark(self, region: int) -> None:
        """Note that it is about to be written."""
        _put(self._clean, region, value=False)

    def clear(self, region: int) -> None:
        """Note that what was written is on all legs."""
        _put(self._clean, region, value=True)

    def next_resync(self) -> int | None:
        """Return the next region that is not in sync; each comes up once after a resume."""
        while self._search < self.count:
            region, left = self._search, self._search & 7
            if not left and self._sync[region >> 3] == _ALL_SET:
                self._search += 8
                continue
            self._search += 1
            if not self.in_sync(region):
                return region
        return None

    def flush(self) -> bool:
        """Write down what changed; return whether that worked."""
        return True

    def status(self) -> str:
        """Return the log's part of the status."""
        return "1 core"


class DiskRegions(Regions):
    """The log on a device.

    Args:
        log: Its words.
        length: Sectors of the mirror.
        device: Where it lies.
        flush_legs: Flushes the mirror's legs; returns whether that worked.
        event: Raises an event.

    Raises:
        SpecError: The device is too small (EINVAL).
    """

    def __init__(
        self,
        log: DiskLog,
        length: int,
        device: BlockDevice,
        flush_legs: Callable[[], bool],
        event: Callable[[], None],
    ) -> None:
        regions = -(-length // log.region)
        size = mirror_log.log_bytes(regions, device.block_size)
        if size > device.sectors * SECTOR:
            reason = f"too small for {regions} regions: {size} bytes are needed"
            raise SpecError("log.dev", device.word or log.dev.name, reason)
        super().__init__(log, length)
        self._device = device
        self._flush_legs = flush_legs
        self._event = event
        self._buffer = bytearray(size)
        self._version = mirror_log.VERSION
        self._dirtied = self._cleaned = False
        self._failed = self._flush_failed = False
        self._distrusted = False

    def set_sync(self, region: int, *, value: bool) -> None:
        """Note it; a log that changed is written again at the next chance, though this is not part of it."""
        self._dirtied = True
        self._cleaned |= value
        super().set_sync(region, value=value)

    def mark(self, region: int) -> None:
        """Note it."""
        self._dirtied = True
        super().mark(region)

    def clear(self, region: int) -> None:
        """Note it, unless the legs could not be flushed once."""
        if not self._distrusted:
            self._cleaned = True
            super().clear(region)

    def next_resync(self) -> int | None:
        """Return the next one."""
        region = super().next_resync()
        self._cleaned |= region is not None
        return region

    def resume(self) -> None:
        """Read the log, or make a new one, and write it."""
        known = min(self._read() & _U32, self.count)
        fresh = self._believe is Sync.NOSYNC
        _fill(self._clean, known, self.count, value=fresh)
        _fill(self._clean, self.count, len(self._clean) * 8, value=False)
        self._cleaned |= fresh and known < self.count
        self._dirtied |= (not fresh and known < self.count) or self.count < len(self._clean) * 8
        self._sync[:] = self._clean
        self.synced = int.from_bytes(self._clean, "little").bit_count()
        self._search = 0
        if not (self._write() and self._flush()):
            self._fail()

    def _read(self) -> int:
        """Read header and bits; return how many regions' bits count."""
        data = bytearray(len(self._buffer))
        try:
            self._device.readinto(0, memoryview(data), 0)
        except OSError:
            self._fail()
            return 0
        self._buffer[:] = data
        self._clean[:] = data[mirror_log.BITS_AT : mirror_log.BITS_AT + len(self._clean)]
        self._version = mirror_log.VERSION
        if self._believe is not None:
            return 0
        try:
            header = mirror_log.Header.decode(data)
        except FormatError:
            self._version = int.from_bytes(data[4:8], "little")
            self._fail()
            return 0
        return header.regions if header else 0

    def _write(self) -> bool:
        header = mirror_log.Header(self.count, self._version).encode()
        self._buffer[: len(header)] = header
        self._buffer[mirror_log.BITS_AT : mirror_log.BITS_AT + len(self._clean)] = self._clean
        try:
            self._device.write(0, memoryview(bytes(self._buffer)), 0)
        except OSError:
            return False
        return True

    def _flush(self) -> bool:
        try:
            self._device.flush()
        except OSError:
            self._flush_failed = True
            return False
        return True

    def _fail(self) -> None:
        if not self._failed:
            self._failed = True
            self._event()

    def flush(self) -> bool:
        """Write the log if it changed: after a flush of the legs where regions became clean."""
        if not self._cleaned and not self._dirtied:
            return True
        if self._cleaned and not self._flush_legs():
            self._distrusted = True
            _fill(self._clean, 0, self.count, value=False)
            self._dirtied = True
        good = self._write()
        if not good:
            self._fail()
            return False
        if self._dirtied:
            good = self._flush()
            if good:
                self._dirtied = False
            else:
                self._fail()
        self._cleaned = False
        return good

    def status(self) -> str:
        """Return the log's part of the status."""
        state = (
            LogState.FLUSH_FAILED
            if self._flush_failed
            else LogState.FAILED
            if self._failed
            else LogState.ALIVE
        )
        return f"3 disk {self._device.word} {state}"
