"""ModelDevice: a dm device in userspace. Tables come and go under it; requests are cut as the kernel cuts them.

Sources: drivers/md/dm.c (dm_split_and_process_bio, __send_empty_flush, dm_suspend, dm_resume), drivers/md/dm-table.c
(dm_calculate_queue_limits, dm_table_supports_discards), drivers/md/dm-ioctl.c for the life of tables.
"""

from __future__ import annotations

import errno
from bisect import bisect_right
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

from dmcore.errors import DmError, SpecError
from dmcore.model.block import FUA, PREFLUSH, SYNC, BlockDevice, Suspended, fault, pieces
from dmcore.model.clock import Clock
from dmcore.model.registry import build
from dmcore.model.target import Context, ModelTarget
from dmcore.params import masked, split_words
from dmcore.table import Table
from dmcore.target import NO_FEATURES
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from dmcore.ref import Ref
    from dmcore.table import Line
    from dmcore.target import Features, Message, R, Status

__all__ = ["Live", "ModelDevice"]


@dataclass(slots=True)
class Live:
    """A loaded table: its lines and their models, in order."""

    table: Table
    targets: list[ModelTarget[Any]]
    starts: list[int]
    readonly: bool

    @property
    def discards(self) -> bool:
        """Whether every line takes discards."""
        return all(target.discards for target in self.targets)

    def close(self) -> None:
        """Destroy every line, newest first, also past failures."""
        failed: list[Exception] = []
        for target in reversed(self.targets):
            try:
                target.close()
            except (OSError, DmError) as error:
                failed.append(error)
        if failed:
            message = "destroying a table"
            raise ExceptionGroup(message, failed)


class ModelDevice(BlockDevice):
    """A dm device: created without a table, loaded, resumed, suspended, reloaded.

    Args:
        open: Gives the disk for a device that a table names; OSError or SpecError if there is none.
        clock: The time of the stack; by default one of its own.
        features: The kernel to behave as, where kernels differ.
        word: Its name in the tables above it.
        seed: For targets that act by chance.
        keys: Payloads of keys that tables name in a keyring; see `Context`.
        shared: What the devices of a stack have in common, see `Context`; by default this one stands alone.
    """

    advances = False

    def __init__(
        self,
        open: Callable[[Ref], BlockDevice],  # noqa: A002 - what it does
        *,
        clock: Clock | None = None,
        features: Features = NO_FEATURES,
        word: str = "",
        seed: int = 0,
        keys: Mapping[str, bytes] | None = None,
        shared: dict[BlockDevice, list[Any]] | None = None,
    ) -> None:
        self.word = word
        self.clock = clock or Clock()
        self.features = features
        self.sectors = 0
        self.suspended = False
        self.event_nr = 0
        self._open = open
        self._keys = keys or {}
        self._shared: dict[BlockDevice, list[Any]] = {} if shared is None else shared
        self._random = Random(seed)  # noqa: S311 - chance that repeats
        self._live: Live | None = None
        self._staged: Live | None = None

    # -- the life of tables ------------------------------------------------------------------------------------------

    def load(self, table: Table, *, readonly: bool = False) -> None:
        """Stage a table, in place of one staged before; nothing changes for I/O until `resume`.

        Raises:
            OSError, SpecError, FormatError: A line was refused; nothing is staged then, and nothing of it is left.
            Unsupported: A target without a model.
        """
        staged = self._build(table, readonly=readonly or table.readonly)
        if self._live is None:
            try:
                _check_areas(staged)
            except SpecError:
                staged.close()
                raise
        self.clear()
        self._staged = staged

    def _build(self, table: Table, *, readonly: bool) -> Live:
        below = [self._open(ref) for ref in table.refs()]
        block_size = max((device.block_size for device in below), default=SECTOR)
        made: list[ModelTarget[Any]] = []
        live = Live(table, made, [line.start for line in table.lines], readonly)
        try:
            for line in table.lines:
                context = self._context(line, block_size, readonly=readonly)
                made.append(build(line.target, context))
            _check_alignment(table, _block_size(live))
        except BaseException:
            with suppress(ExceptionGroup):
                live.close()
            raise
        return live

    def _context(self, line: Line, block_size: int, *, readonly: bool) -> Context:
        return Context(
            start=line.start,
            length=line.length,
            block_size=block_size,
            open=self._open,
            clock=self.clock,
            features=self.features,
            event=self._event,
            random=self._random,
            readonly=readonly,
            keys=self._keys,
            shared=self._shared,
        )

    def _event(self) -> None:
        self.event_nr += 1

    def clear(self) -> None:
        """Drop the staged table, if there is one."""
        staged, self._staged = self._staged, None
        if staged is not None:
            staged.close()

    def suspend(self) -> None:
        """Hold I/O back; a suspended device stays so."""
        if self.suspended:
            return
        self.suspended = True
        for target in self._targets:
            target.presuspend()
        for target in self._targets:
            target.postsuspend()

    def resume(self) -> None:
        """Make the staged table live, if there is one, and let I/O go on.

        Raises:
            OSError: EINVAL for a device without any table; what a target's preresume says. The device stays suspended.
            SpecError: A reloaded table does not fit on what is below (EINVAL in the kernel, at this late time as well):
                it is dropped, the device stays suspended with its old table.
        """
        old: Live | None = None
        if self._staged is not None:
            self.suspend()
            try:
                _check_areas(self._staged)
            except SpecError:
                self.clear()
                raise
            old, self._live, self._staged = self._live, self._staged, None
            self.sectors = self._live.table.length
            self.block_size = _block_size(self._live)
        elif not self.suspended:
            return
        if self._live is None:
            raise fault(errno.EINVAL)
        try:
            for target in self._live.targets:
                target.preresume()
            self.suspended = False
            for target in self._live.targets:
                target.resume()
        finally:
            if old is not None:
                old.close()

    @property
    def _targets(self) -> list[ModelTarget[Any]]:
        return self._live.targets if self._live else []

    @property
    def table(self) -> Table | None:
        """The live table as it was loaded."""
        return self._live.table if self._live else None

    @property
    def targets(self) -> tuple[ModelTarget[Any], ...]:
        """The models of the live table's lines."""
        return tuple(self._targets)

    @property
    def readonly(self) -> bool:
        """Whether the live table was loaded read-only: writes fail with EPERM."""
        return self._live is not None and self._live.readonly

    # -- what it says ------------------------------------------------------------------------------------------------

    def reported(self) -> Table:
        """Return the live table as a kernel reports it: keys, and what messages changed, as they are now.

        Raises:
            SpecError: There is no such table.
        """
        return Table.parse(self._text(lambda target: target.params()))

    def table_text(self) -> str:
        """Return the live table as `dmsetup table` prints it, without keys (`<64-byte-key>`); "" without one."""
        return self._text(lambda target: masked(target.target.kernel_type, target.params()))

    def status_text(self) -> str:
        """Return the status as `dmsetup status` prints it; "" without a table."""
        return self._text(lambda target: target.status())

    def _text(self, say: Callable[[ModelTarget[Any]], str]) -> str:
        lines = zip(self._live.table.lines if self._live else (), self._targets, strict=True)
        return "\n".join(
            f"{line.start} {line.length} {line.target.kernel_type} {say(target)}".rstrip()
            for line, target in lines
        )

    def status(self) -> list[Status]:
        """Return the typed status of every line."""
        return [target.target.parse_status(target.status()) for target in self._targets]

    def message(self, text: str, sector: int = 0) -> str:
        """Send a message to the line that serves `sector`; return the reply.

        Raises:
            OSError: EINVAL without a table, for a sector past the end, an empty message, or one the target refuses.
        """
        words = split_words(text)
        if self._live is None or not words or not 0 <= sector < self.sectors:
            raise fault(errno.EINVAL)
        if words[0] == "@cancel_deferred_remove":
            return ""
        return self._live.targets[self._index(sector)].message(words)

    def send(self, message: Message[R], sector: int = 0) -> R:
        """Send a typed message; return its typed reply."""
        return message.parse_reply(self.message(message.encode(), sector))

    def settle(self) -> None:
        """Finish the background work of every line."""
        for target in self._targets:
            target.settle()

    # -- requests ----------------------------------------------------------------------------------------------------

    def _ready(self) -> Live:
        if self.suspended:
            message = (
                f"{self.word or 'the device'} is suspended: the kernel would hold this request until a resume"
            )
            raise Suspended(message)
        if self._live is None:
            raise fault(errno.EIO)
        return self._live

    def _index(self, sector: int) -> int:
        live = self._live
        assert live is not None
        return bisect_right(live.starts, sector) - 1

    def _parts(self, sector: int, count: int) -> Iterator[tuple[ModelTarget[Any], int, int, int]]:
        """Yield `(target, sector in its line, sectors, sectors before)` for each line that a range touches."""
        live = self._ready()
        index, done = self._index(sector) if live.starts else 0, 0
        while done < count:
            line, target = live.table.lines[index], live.targets[index]
            first = sector + done
            step = min(count - done, line.end - first)
            yield target, first - line.start, step, done
            done += step
            index += 1

    def readinto(self, sector: int, buffer: memoryview, flags: int = SYNC) -> None:
        """Read; all pieces are tried, and the last failure is the request's."""
        self._split(sector, buffer, lambda target, first, part: target.readinto(first, part, flags))

    def write(self, sector: int, data: memoryview, flags: int = SYNC) -> None:
        """Write; all pieces are tried, and the last failure is the request's. PREFLUSH is a flush before it."""
        live = self._ready()
        if live.readonly:
            raise fault(errno.EPERM)
        if flags & (PREFLUSH | FUA):
            if flags & PREFLUSH:
                self.flush()
            flags &= ~PREFLUSH if self.write_cache else ~(PREFLUSH | FUA)
        self._split(sector, data, lambda target, first, part: target.write(first, part, flags))

    def _split(
        self, sector: int, data: memoryview, do: Callable[[ModelTarget[Any], int, memoryview], None]
    ) -> None:
        """Cut a request at lines and at `max_io_len`; its pieces are under way together, so it takes the longest's time."""
        live = self._ready()
        if len(live.targets) == 1:
            (target,) = live.targets
            most = target.max_io_len
            if not most or sector % most + len(data) // SECTOR <= most:
                do(target, sector, data)
                return
        self.clock.together(
            partial(do, target, piece.sector, data[before * SECTOR : (before + length) * SECTOR][piece.data])
            for target, first, length, before in self._parts(sector, len(data) // SECTOR)
            for piece in pieces(first, length, target.max_io_len)
        )

    @property
    def write_cache(self) -> bool:
        """Whether a line of the live table has use for flushes."""
        return any(target.write_cache for target in self._targets)

    @property
    def tag_size(self) -> int:
        """Bytes of the tags that all lines of the live table keep for the layer above; 0 if they differ or keep none."""
        return self._common_tag()[0]

    @property
    def tag_interval(self) -> int:
        """Bytes of data that each of them is for."""
        return self._common_tag()[1]

    def _common_tag(self) -> tuple[int, int]:
        kinds = {(target.tag_size, target.tag_interval) for target in self._targets}
        return kinds.pop() if len(kinds) == 1 else (0, 0)

    def readinto_tagged(self, sector: int, buffer: memoryview, tags: memoryview, flags: int = SYNC) -> None:
        """Read data with their tags; all pieces are tried, and the last failure is the request's."""
        parts = self._tagged(sector, buffer, tags)
        self.clock.together(
            partial(target.readinto_tagged, at, part, its, flags) for target, at, part, its in parts
        )

    def write_tagged(self, sector: int, data: memoryview, tags: memoryview, flags: int = SYNC) -> None:
        """Write data with their tags, as `write`."""
        if self._ready().readonly:
            raise fault(errno.EPERM)
        if flags & PREFLUSH:
            self.flush()
            flags &= ~PREFLUSH
        parts = self._tagged(sector, data, tags)
        self.clock.together(
            partial(target.write_tagged, at, part, its, flags) for target, at, part, its in parts
        )

    def _tagged(
        self, sector: int, data: memoryview, tags: memoryview
    ) -> Iterator[tuple[ModelTarget[Any], int, memoryview, memoryview]]:
        self._ready()
        size, interval = self._common_tag()
        if not size:
            raise fault(errno.EOPNOTSUPP)
        for target, first, length, before in self._parts(sector, len(data) // SECTOR):
            for piece in pieces(first, length, target.max_io_len):
                begin = (before + piece.sector - first) * SECTOR
                end = begin + piece.length * SECTOR
                its_tags = tags[begin // interval * size : end // interval * size]
                yield target, piece.sector, data[begin:end], its_tags

    def data_extents(self) -> Iterator[tuple[int, int]]:
        """Yield what any line may read as something else than zeros."""
        live = self._ready()
        for line, target in zip(live.table.lines, live.targets, strict=True):
            for sector, count in target.data_extents():
                yield line.start + sector, count

    def flush(self) -> None:
        """Flush every line; all are tried. Nothing is done where no line has use for it."""
        live = self._ready()
        if self.write_cache:
            self.clock.together(target.flush for target in live.targets)

    @property
    def discards(self) -> bool:
        """Whether every line of the live table takes discards."""
        return self._live is not None and self._live.discards and not self._live.readonly

    @property
    def discard_granularity(self) -> int:
        """The largest of all lines; 0 where a line takes no discards."""
        return max(target.discard_granularity for target in self._targets) if self.discards else 0

    def discard(self, sector: int, count: int) -> None:
        """Discard, cut at the lines' ends only; EOPNOTSUPP where a line takes none."""
        live = self._ready()
        if live.readonly:
            raise fault(errno.EPERM)
        if not live.discards:
            raise fault(errno.EOPNOTSUPP)
        self._each(sector, count, lambda target, first, length: target.discard(first, length))

    @property
    def zeroes_natively(self) -> bool:
        """Whether every line has write-zeroes as an operation."""
        return self._live is not None and all(target.zeroes_natively for target in self._live.targets)

    def write_zeroes(self, sector: int, count: int) -> None:
        """Zero a range: as an operation where every line has it, else as writes."""
        live = self._ready()
        if live.readonly:
            raise fault(errno.EPERM)
        if self.zeroes_natively:
            self._each(sector, count, lambda target, first, length: target.write_zeroes(first, length))
        else:
            super().write_zeroes(sector, count)

    def _each(self, sector: int, count: int, do: Callable[[ModelTarget[Any], int, int], None]) -> None:
        self.clock.together(partial(do, *part[:3]) for part in self._parts(sector, count))

    def close(self) -> None:
        """Remove the device: both tables are destroyed. What is below stays open, it belongs to who opened it."""
        try:
            if self._live is not None and not self.suspended:
                self.suspend()
        finally:
            live, self._live = self._live, None
            try:
                if live is not None:
                    live.close()
            finally:
                self.clear()


def _block_size(live: Live) -> int:
    """Return the largest logical block that a line needs."""
    return max((target.largest_block for target in live.targets), default=SECTOR)


def _check_areas(live: Live) -> None:
    """Refuse what does not lie on the devices below (device_area_is_invalid)."""
    for index, target in enumerate(live.targets):
        for device, start, length in target.areas:
            where = f"lines[{index}]"
            if device.sectors and start + length > device.sectors:
                reason = (
                    f"ends past the end of {device.word or 'the device'}, which has {device.sectors} sectors"
                )
                raise SpecError(f"{where}.length", length, f"from sector {start} on, it {reason}")
            for field, value in (("offset", start), ("length", length)):
                if value % (target.largest_block // SECTOR):
                    whose = f"{target.largest_block}-byte blocks of {device.word or 'the device'} and those beside it"
                    raise SpecError(f"{where}.{field}", value, f"not aligned to the {whose}")


def _check_alignment(table: Table, block_size: int) -> None:
    """Refuse lines that are no whole logical blocks, as the kernel does when it works out the limits."""
    unit = block_size // SECTOR
    for index, line in enumerate(table.lines):
        for field, value in (("start", line.start), ("length", line.length)):
            if value % unit:
                reason = f"not a multiple of the devices' logical block size, {block_size} bytes"
                raise SpecError(f"lines[{index}].{field}", value, reason)
