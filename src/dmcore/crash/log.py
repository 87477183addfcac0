"""A recorded log together with what the device held before it: all that crash states are made of."""

from __future__ import annotations

import os
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dmcore.crash.sparse import extents
from dmcore.errors import SpecError
from dmcore.formats.log_index import LogIndex
from dmcore.formats.log_writes import BARRIER, END_MARK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Self

__all__ = ["DONE", "START", "CrashLog", "Mark"]

START = "start:"
"""What the mark of an operation's start begins with: the operation may be visible from here on."""
DONE = "done:"
"""What the mark of an operation's end begins with: the operation was acknowledged and must be visible from here on."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A mark of the program that was recorded.

    Attributes:
        position: Number of its entry: what stands before it was durable, or on its way, when it was made.
        text: As it stands in the log.
    """

    position: int
    text: str

    @property
    def name(self) -> str:
        """The operation: the text without `start:` or `done:`."""
        return (
            self.text.removeprefix(START).removeprefix(DONE)
            if not self.starts
            else self.text.removeprefix(START)
        )

    @property
    def starts(self) -> bool:
        """Whether it says that an operation begins; every other mark acknowledges."""
        return self.text.startswith(START)


class CrashLog:
    """A log, and the content of the device when the log began.

    Args:
        path: A log-writes log, whoever wrote it.
        base: An image of the device as it was before the log; None for one of zeros. It may be larger than what the log
            reaches, and is only read.
        size: Bytes of the device where there is no base; default is what the log reaches.
        nr_entries: How many entries there are, if better known than from the log's super block.
        salvage: Take what stands before a damaged entry, with a warning.
        progress: Called while the log is indexed with bytes done and of all.

    Attributes:
        index: The entries.
        base: The image before.
        size: Bytes of the device.
        marks: The program's marks, in order, without the target's own end mark and pytest-dm's barriers.
        warnings: What is odd about the log, one sentence each.

    Raises:
        FormatError: No log, or a damaged one; with its offset.
        OSError: The log or the base cannot be read.
        SpecError: The log writes behind the end of `base` or `size`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        base: str | os.PathLike[str] | None = None,
        size: int | None = None,
        nr_entries: int | None = None,
        salvage: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.index = LogIndex(path, nr_entries=nr_entries, salvage=salvage, progress=progress)
        self.base = None if base is None else Path(base)
        self._base_fd = -1
        try:
            self.size = self._device_size(size)
            if self.base is not None:
                self._base_fd = os.open(self.base, os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            self.close()
            raise
        self.marks = [
            Mark(at, text)
            for at, text in self.index.marks.items()
            if text != END_MARK and not text.startswith(BARRIER)
        ]
        self._mark_positions = [mark.position for mark in self.marks]
        self.warnings = list(self.index.warnings)
        if not self.index.extent:
            self.warnings.append("nothing is written in this log")

    def _device_size(self, size: int | None) -> int:
        extent = self.index.extent
        if self.base is not None:
            with self.base.open("rb") as file:
                have = file.seek(0, os.SEEK_END)
            if have < extent:
                raise SpecError("base", str(self.base), f"is of {have} bytes, the log writes up to {extent}")
            return have if size is None else max(size, have)
        if size is not None and size < extent:
            raise SpecError("size", size, f"the log writes up to byte {extent}")
        return extent if size is None else size

    def close(self) -> None:
        """Close the files."""
        self.index.close()
        if self._base_fd >= 0:
            os.close(self._base_fd)
            self._base_fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def path(self) -> str:
        """The log's path."""
        return self.index.path

    @property
    def sector_size(self) -> int:
        """Bytes of a log sector, the logical block size of the device."""
        return self.index.sector_size

    def read_base(self, offset: int, length: int) -> bytes:
        """Return bytes of the device as they were before the log."""
        data = os.pread(self._base_fd, length, offset) if self._base_fd >= 0 else b""
        return data if len(data) == length else data + bytes(length - len(data))

    def base_extents(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the parts of a range of the device before the log that may be other than zeros: first byte, and that behind."""
        if self._base_fd >= 0:
            size = os.fstat(self._base_fd).st_size
            yield from extents(self._base_fd, min(end, size), begin)

    def marks_before(self, position: int) -> int:
        """Return how many marks stand before entry `position`."""
        return bisect_left(self._mark_positions, position)

    def acknowledged(self, count: int) -> tuple[str, ...]:
        """Return the names that the first `count` marks acknowledge, in order, each once."""
        return tuple(dict.fromkeys(mark.name for mark in self.marks[:count] if not mark.starts))

    def started(self, count: int) -> tuple[str, ...]:
        """Return the names of operations that the first `count` marks start and do not end, in order."""
        open_: dict[str, None] = {}
        for mark in self.marks[:count]:
            if mark.starts:
                open_[mark.name] = None
            else:
                open_.pop(mark.name, None)
        return tuple(open_)
