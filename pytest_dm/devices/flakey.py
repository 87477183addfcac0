"""Flakey: a disk that fails, drops or corrupts requests from one moment to the other."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dmcore import targets
from dmcore.errors import SpecError, Unsupported
from dmcore.table import Table
from dmcore.targets.delay import Delay, Delayed
from dmcore.targets.flakey import Corrupt, Direction
from pytest_dm.devices.fault import Fault
from pytest_dm.devices.over_one import OverOne

if TYPE_CHECKING:
    from pytest_dm.devices.base import Disk
    from pytest_dm.factory import Dm

__all__ = ["Flakey"]

_DIRECTIONS = {"read": Direction.READ, "write": Direction.WRITE}


@dataclass(frozen=True, slots=True)
class _Mode:
    """What is wrong with the disk; nothing at first."""

    reads_fail: bool = False
    writes: Literal["pass", "fail", "drop"] = "pass"
    corrupt: Corrupt | None = None


_HEALTHY = _Mode()


class Flakey(OverOne):
    """A disk with faults on command. Each verb takes effect at once, for whatever runs above, and replaces the last one.

    The table is swapped without a word to the file system above: requests in flight are served, then the fault is there;
    what is still in a page cache meets it when it is written back. The verbs return a `with` block at whose end the
    state before is back.
    """

    def __init__(self, maker: Dm, lower: Disk) -> None:
        self._mode = _HEALTHY
        super().__init__(maker, lower, label="flakey")

    def fail(self, *, reads: bool | None = None, writes: bool | None = None) -> Fault:
        """Let requests fail with EIO.

        Args:
            reads: Reads fail.
            writes: Writes, flushes and discards fail, and change nothing. A buffered write fails at fsync.

        Without arguments both fail. Where only `reads` fail, all else passes. A kernel whose flakey target cannot fail
        reads alone (6.1) gets a delay target with a second, failing way for reads: `table()` shows it, I/O does not.

        Raises:
            SpecError: Nothing to fail.
        """
        if reads is None and writes is None:
            reads = writes = True
        if not reads and not writes:
            raise SpecError("writes", writes, "nothing would fail; heal() ends a fault")
        return self._switch(_Mode(bool(reads), "fail" if writes else "pass"))

    def drop_writes(self) -> Fault:
        """Let writes, flushes and discards succeed without doing them; reads show what was there before."""
        return self._switch(_Mode(writes="drop"))

    def corrupt(
        self, *, byte: int, value: int, direction: Literal["read", "write"] = "write", flags: int = 0
    ) -> Fault:
        """Change one byte of the data of each request (of each piece of it, where the kernel splits it).

        Args:
            byte: Which byte, counted from 1; shorter requests are left alone.
            value: What it becomes, 0..255.
            direction: "write" changes what arrives on the disk, "read" what is answered. Kernels up to 6.1 change the
                pages that were submitted: a page cache then holds the changed byte too.
            flags: Only requests with all these REQ_* bits of the kernel; 0 for all.

        Raises:
            Unsupported: The kernel takes the table but does not corrupt reads (6.1).
            SpecError: A value out of range.
        """
        if direction not in _DIRECTIONS:
            raise SpecError("direction", direction, "'read' or 'write'")
        change = Corrupt(byte, _DIRECTIONS[direction], value, flags)
        if direction == "read" and not self._maker.runtime.corrupts_reads(self._corrupts_reads):
            have = f"flakey of kernel {os.uname().release} accepts it and does nothing"
            raise Unsupported("flakey with corrupted reads", have, "pytest --dm-kernel=uml-6.12")
        return self._switch(_Mode(corrupt=change))

    def heal(self) -> None:
        """End every fault. What failed or was dropped stays lost; what is still cached can be written again."""
        self._switch(_HEALTHY)

    @property
    def healthy(self) -> bool:
        """Whether nothing was told to go wrong."""
        return self._mode == _HEALTHY

    def _switch(self, mode: _Mode) -> Fault:
        before = self._mode
        self._fault(self._table(mode))
        self._mode = mode
        if mode.reads_fail or mode.corrupt is not None:
            self.forget_cached()
        return Fault(lambda: self._switch(before))

    def _errors_reads(self) -> bool:
        return "flakey.error_reads" in self._maker.runtime.features(targets.Flakey)

    def _corrupts_reads(self) -> bool:
        """Find out on a disk of its own: the kernel that does nothing takes the same table (6.1)."""
        with self._maker.scope() as scope:
            probe = scope.flakey(size="64K")
            corrupted = targets.Flakey(
                dev=probe.lower.ref, up=0, down=1, corrupt=Corrupt(1, Direction.READ, 0xA5)
            )
            probe.swap(corrupted)
            return probe.read(0, 4096)[0] == 0xA5

    def _table_now(self) -> Table:
        return self._table(self._mode)

    def _table(self, mode: _Mode) -> Table:
        ref = self._lower_ref
        if mode == _HEALTHY:
            return Table.of(targets.Flakey(dev=ref, up=1, down=0), self._length)
        if mode.reads_fail and mode.writes == "pass" and not self._errors_reads():
            return self._table_with_bad_reads()
        both = mode.reads_fail and mode.writes == "fail"
        flakey = targets.Flakey(
            dev=ref, up=0, down=1, corrupt=mode.corrupt, drop_writes=mode.writes == "drop",
            error_writes=mode.writes == "fail" and not both, error_reads=mode.reads_fail and not both,
        )  # fmt: skip
        return Table.of(flakey, self._length)

    def _table_with_bad_reads(self) -> Table:
        """Return a table that sends reads to a device of their own, where all fails, and the rest to the disk."""
        delay = Delay(read=Delayed(self._all_fails()), write=Delayed(self._lower_ref))
        return Table.of(delay, self._length)
