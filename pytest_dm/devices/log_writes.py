"""LogWrites: a disk that logs every write to a second one."""

from __future__ import annotations

import itertools
import struct
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from dmcore import targets
from dmcore.errors import DmError, FormatError
from dmcore.formats.log_writes import BARRIER, MAGIC, VERSION, LogReader
from dmcore.table import Table
from dmcore.targets.log_writes import LogWritesStatus, Mark
from dmcore.units import SECTOR
from pytest_dm.devices.base import DmDevice

if TYPE_CHECKING:
    from collections.abc import Generator

    from dmcore.formats.log_writes import Entry
    from pytest_dm.devices.base import Disk
    from pytest_dm.factory import Dm
    from pytest_dm.runtime import OpenDisk

__all__ = ["LogWrites"]

_SETTLE = 5.0
_POLL = 0.005
_numbers = itertools.count(1)


def _numbered(entries: list[Entry]) -> list[Entry]:
    shown = (entry for entry in entries if not (entry.mark or "").startswith(BARRIER))
    return [replace(entry, index=index) for index, entry in enumerate(shown)]


class _Log:
    """The log as it is read while it grows: the kernel writes its super block only after the first mark or FUA write."""

    def __init__(self, file: OpenDisk, sector_size: int) -> None:
        self._file = file
        self._super = struct.pack("<QQQI", MAGIC, VERSION, 0, sector_size)
        self.size = file.size

    def read(self, offset: int, length: int, /) -> bytes:
        data = self._file.read(offset, length)
        if offset == 0 and not any(data):
            return self._super.ljust(length, b"\0")[:length]
        return data


class LogWrites(DmDevice):
    """A disk whose writes, discards and flushes are logged in the order in which they became durable.

    A write is in the log once a flush (fsync) that came after it is done, or at once if it was a FUA write; `mark` puts
    a name between them. What no flush covered comes when logging stops.

    Attributes:
        lower: The data disk.
        log: The disk that holds the log.
    """

    def __init__(self, maker: Dm, lower: Disk, log: Disk) -> None:
        self.log = log
        self._sector_size = lower.block_size
        self._length = lower.size // SECTOR
        self._stopped = False
        table = Table.of(targets.LogWrites(dev=lower.ref, log=log.ref), self._length)
        super().__init__(maker, table, label="log-writes", lower=lower)

    @property
    def logging(self) -> bool:
        """Whether writes are logged: not after `stop` or a power cut, nor once the log is full."""
        return not self._stopped and not self._live().disabled

    def _live(self) -> LogWritesStatus:
        (status,) = self.status()
        assert isinstance(status, LogWritesStatus), status
        return status

    def mark(self, name: str) -> None:
        """Put a name into the log, behind what is durable now.

        Raises:
            SpecError: The name is empty, with NUL, or too long for a sector of the log.
            DmError: Logging has stopped.
        """
        message = Mark(name, self._sector_size)
        if not self.logging:
            problem = f"{self.name} no longer logs" if self._stopped else f"the log of {self.name} is full"
            raise DmError(problem)
        self.device.send(message)

    def stop(self) -> None:
        """Stop logging: what no flush covered is logged now, then the mark "dm-log-writes-end". The disk goes on."""
        if not self._stopped:
            assert self.lower is not None
            with self._caught_up():
                self._fault(Table.of(targets.Linear(dev=self.lower.ref), self._length))
            self._stopped = True

    @contextmanager
    def _caught_up(self) -> Generator[None]:
        """Hold I/O back, with all on the log that is to be there: what is in its way when the target ends gets disordered.

        `log_writes_dtr` puts the writes that no flush covered before everything its thread has not written yet.
        """
        with self.device.suspended(lockfs=False):
            if not self._stopped:
                self._written()
            yield

    def entries(self) -> list[Entry]:
        """Return the log so far, oldest first; waits a bounded time for what is on its way into it.

        Writes that no flush followed are not in it yet: `flush` or `stop` first if they matter. To know when the log
        has caught up, this puts a mark of its own behind it, which no list shows; entries are numbered without them.

        Raises:
            FormatError: The log is damaged.
            DmError: It does not catch up.
        """
        return _numbered(self._written())

    def _written(self) -> list[Entry]:
        """Return the whole log, our own marks included, when it has caught up."""
        barrier = None if self._stopped or self._live().disabled else f"{BARRIER}{next(_numbers)}"
        if barrier is not None:
            self.device.send(Mark(barrier, self._sector_size))
        deadline = time.monotonic() + _SETTLE
        while True:
            try:
                with self._reader() as reader:
                    found = list(reader)
            except FormatError:  # the newest entries are counted before they are written
                if time.monotonic() > deadline:
                    raise
            else:
                if barrier is None or any(entry.mark == barrier for entry in found) or not self.logging:
                    return found
                if time.monotonic() > deadline:
                    message = f"the log of {self.name} has not caught up in {_SETTLE} s"
                    raise DmError(message)
            time.sleep(_POLL)

    @contextmanager
    def _reader(self) -> Generator[LogReader]:
        entries = None if self._stopped else self._live().entries
        with self.log.open(direct=False, readonly=True) as file:
            file.forget_cached()
            yield LogReader(_Log(file, self._sector_size), nr_entries=entries)

    def marks(self) -> list[str]:
        """Return the names in the log, oldest first."""
        return [entry.mark for entry in self.entries() if entry.mark is not None]

    def data(self, entry: Entry) -> bytes:
        """Return the data that an entry wrote; b"" for a flush, a mark or a discard."""
        with self._reader() as reader:
            return reader.read(entry)

    def cut_off(self, table: Table) -> None:
        """Stop logging with the power."""
        with self._caught_up():
            super().cut_off(table)
        self._stopped = True

    def bring_back(self) -> None:
        """Come back as a plain disk: a log-writes target that is loaded again would overwrite the log."""
        assert self.lower is not None
        self._loaded = Table.of(targets.Linear(dev=self.lower.ref), self._length)
        super().bring_back()
