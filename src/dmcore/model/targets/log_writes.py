"""log-writes: what becomes durable is logged. Sources: drivers/md/dm-log-writes.c (log_writes_map, normal_end_io,
log_writes_kthread, log_one_block, log_mark, log_writes_dtr).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, NamedTuple

from dmcore.formats.log_writes import END_MARK, LogFlag, SuperBlock, pack_entry
from dmcore.model.block import FUA, META, fault
from dmcore.model.target import Area, ModelTarget
from dmcore.targets.log_writes import LogWrites
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dmcore.model.block import BlockDevice
    from dmcore.model.target import Context

__all__ = ["MODEL"]

_HEADER = 32


class _Block(NamedTuple):
    """What is to be logged; sectors of 512 bytes; `issued` and `completed` count what was done on the device."""

    sector: int
    length: int
    flags: int
    data: bytes = b""
    issued: int = 0
    completed: int = 0


class _LogWrites(ModelTarget[LogWrites]):
    """One line. The log is written at once, where the kernel has a thread for it.

    What failed below is logged like all else, as in the kernel.

    Attributes:
        times: When each entry of the log was issued and completed, by a count of what was done here.
    """

    def __init__(self, target: LogWrites, context: Context) -> None:
        super().__init__(target, context)
        self._dev, self._log = self.lower
        self._sector_size = self._dev.block_size
        self._next = self._sector_size // SECTOR
        self._entries = 0
        self._enabled = True
        self._unflushed: list[_Block] = []
        self._ticks = 0
        self.times: list[tuple[int, int]] = []

    def _tick(self) -> int:
        self._ticks += 1
        return self._ticks

    @property
    def areas(self) -> Iterable[Area]:
        """As many sectors of the data device, from its first."""
        return (Area(self._dev, 0, self.context.length),)

    @property
    def flushed(self) -> Iterable[BlockDevice]:
        """The data device."""
        return (self._dev,)

    @property
    def write_cache(self) -> bool:
        """Always: flushes are logged, whether the data device needs them or not."""
        return True

    @property
    def discards(self) -> bool:
        """Always: they are logged, and sent on where the data device takes them."""
        return True

    @property
    def discard_granularity(self) -> int:
        """The data device's, a sector of the log where that takes no discards."""
        return self._dev.discard_granularity or self._sector_size

    def _at(self, sector: int, count: int) -> int:
        """Return where a request goes: to the sector it has on the whole device."""
        at = self.context.start + sector
        if at + count > self._dev.sectors:
            raise fault(errno.EIO)
        return at

    def readinto(self, sector: int, buffer: memoryview, flags: int) -> None:
        """Read below."""
        self._dev.readinto(self._at(sector, len(buffer) // SECTOR), buffer, flags)

    def write(self, sector: int, data: memoryview, flags: int) -> None:
        """Write below; logged at once with FUA, else by the next flush."""
        count = len(data) // SECTOR
        kind = (LogFlag.FUA if flags & FUA else 0) | (LogFlag.METADATA if flags & META else 0)
        copy = bytes(data) if self._enabled else b""
        self._logged(
            _Block(self.context.start + sector, count, kind, copy),
            lambda: self._dev.write(self._at(sector, count), data, flags),
        )

    def discard(self, sector: int, count: int) -> None:
        """Discard below, if that takes it; logged by the next flush."""
        block = _Block(self.context.start + sector, count, LogFlag.DISCARD)
        self._logged(block, lambda: self._discard(sector, count))

    def _discard(self, sector: int, count: int) -> None:
        if self._dev.discards:
            self._dev.discard(self._at(sector, count), count)

    def flush(self) -> None:
        """Flush below, then log what had been written before, and the flush."""
        if not self._enabled:
            super().flush()
            return
        before, self._unflushed = self._unflushed, []
        issued = self._tick()
        try:
            super().flush()
        finally:
            flush = _Block(0, 0, LogFlag.FLUSH, issued=issued, completed=self._tick())
            self._append(*before, flush)

    def _logged(self, block: _Block, request: Callable[[], None]) -> None:
        """Do a request that is logged when it is done, failed or not."""
        enabled = self._enabled
        issued = self._tick()
        try:
            request()
        finally:
            block = block._replace(issued=issued, completed=self._tick())
            if enabled and block.flags & LogFlag.FUA:
                self._append(block)
            elif enabled:
                self._unflushed.append(block)

    def _append(self, *blocks: _Block) -> None:
        """Put entries on the log, until it is full; the first one that does not fit takes its room all the same."""
        for block in blocks:
            if not self._enabled:
                return
            at = self._next
            self._next += self._sector_size // SECTOR
            if not block.flags & LogFlag.DISCARD:
                self._next += block.length
            if self._log.sectors and self._next >= self._log.sectors:
                self._enabled = False
                return
            self._entries += 1
            self.times.append((block.issued, block.completed))
            self._write_entry(at, block)
            if block.flags & (LogFlag.FUA | LogFlag.MARK):
                super_block = SuperBlock(1, self._entries, self._sector_size)
                self._write_log(0, super_block.pack())

    def _write_entry(self, at: int, block: _Block) -> None:
        unit = self._sector_size // SECTOR
        text = block.data if block.flags & LogFlag.MARK else b""
        header = pack_entry(block.sector // unit, block.length // unit, block.flags, text, self._sector_size)
        self._write_log(at, header)
        if block.length and block.data:
            self._write_log(at + unit, block.data)

    def _write_log(self, sector: int, data: bytes) -> None:
        """Write to the log device; a failure ends the logging, and nobody is told."""
        try:
            self._log.write(sector, memoryview(data), 0)
        except OSError:
            self._enabled = False

    def _mark(self, text: bytes) -> None:
        cut = text.split(b"\0")[0][: self._sector_size - _HEADER - 1]
        now = self._tick()
        self._append(_Block(0, 0, LogFlag.MARK, cut, now, now))

    def message(self, words: list[str]) -> str:
        """Take `mark <text>`."""
        if len(words) != 2 or words[0].lower() != "mark":
            raise fault(errno.EINVAL)
        self._mark(words[1].encode("utf-8", "surrogateescape"))
        return ""

    def status(self) -> str:
        """Return the number of entries, the log's last used sector, and whether logging has stopped."""
        stopped = "" if self._enabled else " logging_disabled"
        return f"{self._entries} {self._next - 1}{stopped}"

    def close(self) -> None:
        """Log what no flush covered, and the mark of the end."""
        left, self._unflushed = self._unflushed, []
        self._append(*left)
        self._mark(END_MARK.encode())


MODEL = _LogWrites
