"""Puts one crash state after the other before a checker."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from dmcore.crash.checkers import CrashState, Pipeline
from dmcore.crash.images import block_hash
from dmcore.crash.materialise import Image, Scratch, read_runs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

    from dmcore.crash.checkers import Checker, Masked, Problem
    from dmcore.crash.epochs import Timeline
    from dmcore.crash.log import CrashLog
    from dmcore.crash.states import State

__all__ = ["Tester"]

_BLOCK = 4096


class Tester:
    """Makes states and has them checked, in files of its own that it removes.

    Args:
        log: The log.
        timeline: Its epochs.
        checker: What judges.
        folder: Where its files go: one that holds what the device holds, two if the checker writes.
        torn_size: Bytes of a sector that torn states write whole or not.
        name: Begin of the files' names.
    """

    __test__ = False  # pytest need not look for tests in it

    def __init__(
        self,
        log: CrashLog,
        timeline: Timeline,
        checker: Checker,
        folder: str | os.PathLike[str],
        *,
        torn_size: int,
        name: str = "state",
    ) -> None:
        self._log = log
        self._timeline = timeline
        self._checker = checker
        self.image = Image(log, timeline, Path(folder) / f"{name}.img", torn_size)
        self._scratch: Scratch | None = None
        self._prints: _Fingerprints | None = None
        self._written = True
        self._idle = isinstance(checker, Pipeline) and not checker.writes
        try:
            if checker.writes:
                self._scratch = Scratch(self.image, Path(folder) / f"{name}-scratch.img")
        except BaseException:
            self.close()
            raise

    def test(self, state: State, marks: int | None = None) -> Problem | None:
        """Return what is wrong with a state, None for nothing.

        Args:
            state: The state.
            marks: How many of the log's marks had been made; default is those of its epoch.

        Raises:
            OracleFailed: It could not be judged.
            OSError: The image could not be made, as with ENOSPC.
        """
        self.image.show(state)
        self._written = True
        if self._idle:
            return None
        count = self._timeline.epochs[state.epoch].marks if marks is None else marks
        target = self.image.path if self._scratch is None else self._scratch.path
        try:
            return self._checker.check(
                CrashState(
                    id=str(state),
                    image=target,
                    acknowledged=self._log.acknowledged(count),
                    started=self._log.started(count),
                    torn=bool(state.torn),
                    fingerprint=self._fingerprint,
                    settled=self._settled,
                    untouched=self._untouched,
                )
            )
        finally:
            if self._scratch is not None:
                self._scratch.restore()

    def _settled(self) -> None:
        if self._scratch is not None:
            self._scratch.settled()

    def _untouched(self) -> None:
        self._written = False

    def _fingerprint(self, masked: Sequence[Masked], over: Sequence[tuple[int, bytes]]) -> int:
        if self._prints is None:
            self._prints = _Fingerprints(self._log, self.image, masked)
        if self._scratch is None:
            return self._prints.of(None, [], over)
        written, self._written = self._written, True
        if not written:
            self._scratch.untouched()
        return self._prints.of(self._scratch, self._scratch.changed() if written else [], over)

    def close(self) -> None:
        """Remove its files; a second call does nothing."""
        if self._scratch is not None:
            self._scratch.close()
        self.image.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Fingerprints:
    """Hashes of what differs from the device before the log, less the masked bytes."""

    def __init__(self, log: CrashLog, image: Image, masked: Sequence[Masked]) -> None:
        self._log = log
        self._image = image
        self._masks = _by_block(masked, log.size)
        self._hashes: dict[int, int] = {}
        self._as_before: dict[int, int] = {}
        self._value = 0
        self._over: Sequence[tuple[int, bytes]] = ()
        self._whole: dict[int, int] | None = {}

    def of(self, scratch: Scratch | None, changed: Sequence[int], over: Sequence[tuple[int, bytes]]) -> int:
        """Return the hash of the image, or of a copy in which some blocks are changed, with some data written over it."""
        fd = self._image.fileno()
        for block in self._image.take_dirty():
            new = self._hash(fd, block)
            self._value ^= new ^ self._known(block)
            self._hashes[block] = new
        value = self._value
        if scratch is not None:
            for offset, data in read_runs(scratch.fileno(), changed):
                for at in range(0, len(data), _BLOCK):
                    block = (offset + at) // _BLOCK
                    value ^= self._masked_hash(block, data[at : at + _BLOCK]) ^ self._known_of_image(
                        fd, block
                    )
        return value ^ self._difference(fd if scratch is None else scratch.fileno(), changed, over)

    def _difference(self, fd: int, changed: Sequence[int], over: Sequence[tuple[int, bytes]]) -> int:
        """Return by what writing some data changes the hash."""
        if over is not self._over:
            self._over, self._whole = over, self._new_hashes(over)
        blocks = self._written_over(fd, over) if self._whole is None else self._whole
        value = 0
        stale = set(changed)
        for block, new in blocks.items():
            value ^= new ^ (self._hash(fd, block) if block in stale else self._known_of_image(fd, block))
        return value

    def _new_hashes(self, over: Sequence[tuple[int, bytes]]) -> dict[int, int] | None:
        """Return the hashes of blocks that are written whole; None if some are written in part."""
        if any(offset % _BLOCK or len(data) != _BLOCK for offset, data in over):
            return None
        return {offset // _BLOCK: self._masked_hash(offset // _BLOCK, data) for offset, data in over}

    def _written_over(self, fd: int, over: Sequence[tuple[int, bytes]]) -> dict[int, int]:
        """Return the hashes of the blocks that are written in part, with the rest as it is."""
        blocks: dict[int, bytes] = {}
        for offset, data in over:
            for block in range(offset // _BLOCK, (offset + len(data) - 1) // _BLOCK + 1):
                begin = block * _BLOCK
                before = blocks.get(block) or os.pread(fd, _BLOCK, begin)
                start, stop = max(offset - begin, 0), min(offset + len(data) - begin, _BLOCK)
                blocks[block] = (
                    before[:start] + data[start + begin - offset : stop + begin - offset] + before[stop:]
                )
        return {block: self._masked_hash(block, content) for block, content in blocks.items()}

    def _known(self, block: int) -> int:
        value = self._hashes.get(block)
        return (
            self._masked_hash(block, self._log.read_base(block * _BLOCK, _BLOCK)) if value is None else value
        )

    def _known_of_image(self, fd: int, block: int) -> int:
        known = self._hashes if block in self._hashes else self._as_before
        if block not in known:
            known[block] = self._hash(fd, block)
        return known[block]

    def _hash(self, fd: int, block: int) -> int:
        return self._masked_hash(block, os.pread(fd, _BLOCK, block * _BLOCK))

    def _masked_hash(self, block: int, data: bytes) -> int:
        ranges = self._masks.get(block)
        if ranges:
            masked = bytearray(data)
            for start, end in ranges:
                masked[start:end] = bytes(end - start)
            data = bytes(masked)
        return block_hash(block, data)


def _by_block(masked: Sequence[Masked], size: int) -> dict[int, list[tuple[int, int]]]:
    ranges: dict[int, list[tuple[int, int]]] = {}
    for offset, length in masked:
        end = min(offset + length, size)
        for block in range(offset // _BLOCK, -(-end // _BLOCK)):
            start, stop = max(offset - block * _BLOCK, 0), min(end - block * _BLOCK, _BLOCK)
            if start < stop:
                ranges.setdefault(block, []).append((start, stop))
    return ranges
