"""Images of crash states, made by changing as little as possible.

An `Image` is one file that holds a state of a log; going to the next state writes only what differs, and puts back what
the state before had. A `Scratch` is a second file for checkers that recover, mount or otherwise write: after each check
it is made equal to the image again, by what differs, whoever changed it.

Both files are sparse: they take the space of what the device holds, not of its size.
"""

from __future__ import annotations

import contextlib
import os
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dmcore.crash.sparse import copy_sparse, extents
from dmcore.crash.states import state_pieces
from dmcore.kernel.compare import Pair
from dmcore.kernel.files import write_all, write_zeros

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import TracebackType
    from typing import Self

    from dmcore.crash.epochs import Piece, Timeline
    from dmcore.crash.log import CrashLog
    from dmcore.crash.states import State

__all__ = ["Image", "Scratch", "read_runs", "write_image"]

_CHUNK = 1 << 20
_GRAIN = 4096
_COMPARE, _PART = 1 << 18, 1 << 15
_RUN = 256
"""Blocks that are read and written at once."""


class _Saved(NamedTuple):
    """What was somewhere: data, or None for a hole."""

    offset: int
    length: int
    data: bytes | None


class Image:
    """A file that holds one crash state after the other.

    Args:
        log: The log.
        timeline: Its epochs.
        path: File to make; it must not exist, and is removed by `close`.
        torn_size: Bytes of a sector that torn states write whole or not.
    """

    def __init__(
        self, log: CrashLog, timeline: Timeline, path: str | os.PathLike[str], torn_size: int
    ) -> None:
        self.path = Path(path)
        self._log = log
        self._epochs = timeline.epochs
        self._torn_size = torn_size
        self.size = log.size
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._mirror = -1
        self._dirty: set[int] = set()
        self._touched: set[int] = set()
        self._epoch = -1
        self._shown = 0
        self._undo: list[_Saved] = []
        self._below: dict[int, list[_Saved]] = {}
        self._groups: list[int] = []
        try:
            self._fill()
        except BaseException:
            self.close()
            raise

    def _fill(self) -> None:
        if self._log.base is not None:
            with self._log.base.open("rb") as base:
                end = min(base.seek(0, os.SEEK_END), self.size)
                copy_sparse(base.fileno(), self._fd, end)
        os.ftruncate(self._fd, self.size)

    def fileno(self) -> int:
        """Return the file's descriptor."""
        return self._fd

    def mirror(self, fd: int) -> None:
        """Write to `fd`, too, whatever is written from now on; -1 ends that."""
        self._mirror = fd

    def take_dirty(self) -> list[int]:
        """Return the numbers of the 4096-byte blocks written since the last call, ascending: all that differ from before the log."""
        dirty = sorted(self._dirty)
        self._dirty.clear()
        return dirty

    def _write(self, offset: int, length: int, data: bytes | None) -> None:
        """Write data, or zeros for None."""
        if data is None:
            for start, stop in list(extents(self._fd, offset + length, offset)):
                self._dirty.update(range(start // _GRAIN, (stop - 1) // _GRAIN + 1))
                for fd in (self._fd, self._mirror):
                    if fd >= 0:
                        write_zeros(fd, start, stop - start)
            return
        write_all(self._fd, data, offset)
        if self._mirror >= 0:
            write_all(self._mirror, data, offset)
        first, last = offset // _GRAIN, (offset + length - 1) // _GRAIN
        if first == last:
            self._dirty.add(first)
        else:
            self._dirty.update(range(first, last + 1))

    def _put(self, piece: Piece) -> None:
        """Write a piece, and take note of where."""
        offset, length, source = piece
        if source < 0:
            self._write(offset, length, None)
        else:
            for at in range(0, length, _CHUNK):
                part = min(_CHUNK, length - at)
                self._write(offset + at, part, self._log.index.read(source + at, part))

    def goto(self, epoch: int) -> None:
        """Make the image what is durable at an epoch; forward costs what became durable, back all that was touched."""
        self._clear()
        if epoch == self._epoch:
            return
        if epoch < self._epoch:
            self._rewind()
        settled, self._dirty = self._dirty, set()
        while self._epoch < epoch:
            self._epoch += 1
            for write in self._epochs[self._epoch].durable:
                for piece in write.pieces:
                    self._put(piece)
        self._touched |= self._dirty
        self._dirty |= settled
        self._below = {}
        self._groups = _groups([write.pieces for write in self._epochs[epoch].pending])

    def _rewind(self) -> None:
        """Put back what was there before the log."""
        for block in sorted(self._touched):
            start = block * _GRAIN
            data = self._log.read_base(start, min(_GRAIN, self.size - start))
            self._write(start, len(data), data if data.count(0) < len(data) else None)
        self._touched = set()
        self._epoch = -1

    def _clear(self) -> None:
        """Put back what is durable where the state differs from it."""
        for saved in reversed(self._undo):
            self._write(*saved)
        self._undo = []
        if self._shown:
            self._step(0)

    def show(self, state: State) -> None:
        """Make the image that of a state.

        Raises:
            FormatError: The log was cut since it was indexed.
            OSError: ENOSPC and the like; the image is then of no use.
        """
        if state.epoch != self._epoch:
            self.goto(state.epoch)
        elif self._undo:
            self._clear()
        if not state.torn:
            self._step(state.present)
            return
        self._clear()
        for _, pieces in state_pieces(self._epochs[state.epoch], state, self._torn_size):
            for piece in pieces:
                self._undo.extend(self._saved(piece))
                self._put(piece)

    def _saved(self, piece: Piece) -> Iterator[_Saved]:
        """Yield what is where a piece goes: data, and holes as None."""
        end = piece.offset + piece.length
        if piece.length <= _GRAIN:
            yield _Saved(piece.offset, piece.length, os.pread(self._fd, piece.length, piece.offset))
            return
        at = piece.offset
        for start, stop in extents(self._fd, end, piece.offset):
            if start > at:
                yield _Saved(at, start - at, None)
            yield _Saved(start, stop - start, os.pread(self._fd, stop - start, start))
            at = stop
        if end > at:
            yield _Saved(at, end - at, None)

    def _step(self, present: int) -> None:
        """Go from one set of whole writes to another: by the groups of overlapping writes that differ."""
        shown, self._shown = self._shown, present
        difference = shown ^ present
        while difference:
            number = (difference & -difference).bit_length() - 1
            group = self._groups[number]
            difference &= ~group
            if number not in self._below:
                self._save(group)
            for one in _numbers(shown & group):
                for saved in self._below[one]:
                    self._write(*saved)
            for one in _numbers(present & group):
                for piece in self._epochs[self._epoch].pending[one].pieces:
                    self._put(piece)

    def _save(self, group: int) -> None:
        """Keep what is durable where a group of writes goes; none of them is there now."""
        for number in _numbers(group):
            pieces = self._epochs[self._epoch].pending[number].pieces
            self._below[number] = [saved for piece in pieces for saved in self._saved(piece)]

    def keep(self) -> None:
        """Close, and leave the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def close(self) -> None:
        """Remove the file; a second call does nothing."""
        if self._fd >= 0:
            self.keep()
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _numbers(mask: int) -> Iterator[int]:
    """Yield the numbers of the bits that are set, ascending."""
    while mask:
        bit = mask & -mask
        yield bit.bit_length() - 1
        mask ^= bit


def _groups(pending: Sequence[Sequence[Piece]]) -> list[int]:
    """Return of each write the set of writes, as bits, that it overlaps with, or that those do, and so on."""
    spans = sorted(
        (piece.offset, piece.offset + piece.length, number)
        for number, pieces in enumerate(pending)
        for piece in pieces
    )
    parent = list(range(len(pending)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    reach, owner = -1, -1
    for start, end, number in spans:
        if start < reach:
            parent[root(number)] = root(owner)
        if end > reach:
            reach, owner = end, number
    sets: dict[int, int] = {}
    for number in range(len(pending)):
        sets[root(number)] = sets.get(root(number), 0) | 1 << number
    return [sets[root(number)] for number in range(len(pending))]


class Scratch:
    """A copy of an image that a checker may write to.

    `restore` makes it equal to the image again, whatever was done to it: written, cut, enlarged, removed, replaced.

    Args:
        image: The image.
        path: File to make; it must not exist, and is removed by `close`.
    """

    def __init__(self, image: Image, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._image = image
        self._fd = -1
        self._changed: list[int] = []
        self._known: list[int] | None = None
        self._pair: Pair | None = None
        self._make()

    def _make(self) -> None:
        if self._pair is not None:
            self._pair.close()
            self._pair = None
        if self._fd >= 0:
            os.close(self._fd)
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        copy_sparse(self._image.fileno(), self._fd, self._image.size)
        self._image.mirror(self._fd)

    def fileno(self) -> int:
        """Return the file's descriptor."""
        return self._fd

    def changed(self) -> list[int]:
        """Return the numbers of the 4096-byte blocks that differ from the image, ascending, and remember them for `restore`."""
        self._changed = list(self._compare())
        return self._changed

    def _compare(self) -> Iterator[int]:
        size = self._image.size
        if os.fstat(self._fd).st_size != size:
            os.ftruncate(self._fd, size)
        if self._pair is None:
            self._pair = Pair(self._fd, self._image.fileno(), size)
        same = self._pair.same
        for start, end in _union(extents(self._fd, size), extents(self._image.fileno(), size)):
            for at in range(start, end, _COMPARE):
                stop = min(at + _COMPARE, end)
                if same(at, stop - at):
                    continue
                for part in range(at, stop, _PART):
                    end_of_part = min(part + _PART, stop)
                    if same(part, end_of_part - part):
                        continue
                    for block in range(part, end_of_part, _GRAIN):
                        if not same(block, min(_GRAIN, end_of_part - block)):
                            yield block // _GRAIN

    def untouched(self) -> None:
        """Say that nobody has written since the last `restore`."""
        self._changed = []

    def settled(self) -> None:
        """Say that nobody has written since `changed`: `restore` need not look again."""
        self._known = self._changed

    def restore(self) -> None:
        """Make it equal to the image again."""
        known, self._known = self._known, None
        try:
            here, mine = self.path.stat(), os.fstat(self._fd)
        except FileNotFoundError:
            self._make()
            return
        if (here.st_dev, here.st_ino) != (mine.st_dev, mine.st_ino):
            self._make()
            return
        if mine.st_size != self._image.size:
            os.ftruncate(self._fd, self._image.size)
            known = None
        for offset, data in read_runs(self._image.fileno(), self._compare() if known is None else known):
            for start, stop, zero in _zero_or_not(data):
                if zero:
                    write_zeros(self._fd, offset + start, stop - start)
                else:
                    write_all(self._fd, data[start:stop], offset + start)

    def close(self) -> None:
        """Remove the file; a second call does nothing."""
        if self._fd >= 0:
            self._image.mirror(-1)
            if self._pair is not None:
                self._pair.close()
            os.close(self._fd)
            self._fd = -1
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()


def read_runs(fd: int, blocks: Iterable[int]) -> Iterator[tuple[int, bytes]]:
    """Yield first byte and content of ascending 4096-byte blocks, neighbours together: a call of the kernel costs more than a block."""
    first = stop = -1
    for block in blocks:
        if block == stop < first + _RUN:
            stop += 1
            continue
        if stop > first:
            yield first * _GRAIN, os.pread(fd, (stop - first) * _GRAIN, first * _GRAIN)
        first, stop = block, block + 1
    if stop > first:
        yield first * _GRAIN, os.pread(fd, (stop - first) * _GRAIN, first * _GRAIN)


def _zero_or_not(data: bytes) -> Iterator[tuple[int, int, bool]]:
    """Yield the parts of whole blocks that are all zeros, and those that are not: begin, end, and which."""
    zeros = bytes(_GRAIN)
    starts = range(0, len(data), _GRAIN)
    for zero, group in groupby(starts, lambda at: data[at : at + _GRAIN] == zeros[: len(data) - at]):
        parts = list(group)
        yield parts[0], min(parts[-1] + _GRAIN, len(data)), zero


def _union(one: Iterator[tuple[int, int]], other: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield the union of two ascending lists of extents, at multiples of the compared size."""
    end = 0
    start = None
    for first, stop in sorted([*one, *other]):
        begin = first - first % _GRAIN
        if start is not None and begin <= end:
            end = max(end, stop)
            continue
        if start is not None:
            yield start, end
        start, end = begin, stop
    if start is not None:
        yield start, end


def write_image(
    log: CrashLog, timeline: Timeline, state: State, path: str | os.PathLike[str], torn_size: int
) -> None:
    """Write the image of one state to a new file.

    Raises:
        FileExistsError: There is such a file; it is left as it is.
    """
    image = Image(log, timeline, path, torn_size)
    try:
        image.show(state)
    except BaseException:
        image.close()
        raise
    image.keep()
