"""What the commands of `stats` have in common: options, devices, and the time between reports."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from dmcore.cli._dmsetup import show
from dmcore.cli._dmsetup.failed import Failed
from dmcore.cli._dmsetup.options import number
from dmcore.cli._dmsetup.stats_regions import Regions
from dmcore.cli._dmsetup.stats_units import Units

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dmcore.cli._dmsetup.session import Session, Where

__all__ = ["Run"]

_PROGRAM = "dmstats"
_U64 = 1 << 64


class Run:
    """What a command is done with, for each device in turn, and as often as --count says.

    Args:
        session: The run of the verb.

    Attributes:
        session: The same.
        options: The command line.
        units: What sizes are shown in.

    Raises:
        Failed: --units says nothing that there is.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.options = session.options
        self.units = Units.parse(self.options.value("units") or "h")
        self._turn = 0
        self._stamp = 0
        self._interval = 0

    def has(self, name: str) -> bool:
        """Whether the option stands there."""
        return self.options.has(name)

    def number(self, name: str) -> int:
        """Return the number of a region or group, as C makes it unsigned."""
        return number(self.options.value(name) or "") % _U64

    @property
    def program(self) -> str:
        """Whose regions are meant, "" for everybody's."""
        if self.has("allprograms"):
            return ""
        asked = self.options.value("programid")
        return _PROGRAM if asked is None else asked

    def regions(self, where: Where, program: str = _PROGRAM) -> Regions:
        """Return a program's regions of a device; of those that others made, most commands know nothing."""
        return Regions(self.session, where, program)

    def interval(self) -> int:
        """Return the nanoseconds since the counts were read a turn ago; in the first turn, those of --interval."""
        if self._turn != self.session.turn:
            now = time.monotonic_ns()
            self._interval = now - self._stamp if self._turn else self.options.interval * 10**9
            self._turn, self._stamp = self.session.turn, now
        return self._interval

    def for_each(
        self, arguments: Sequence[str], act: Callable[[Where], None], *, careful: bool = True
    ) -> None:
        """Do something for the device that is meant; for all if none is, and --alldevices says so where that matters."""
        if arguments or self.has("uuid") or self.has("major"):
            act(self.session.where(arguments[0] if arguments else None))
        elif careful and not self.has("alldevices"):
            raise Failed("Please specify device(s) or use --alldevices.")
        else:
            show.each(self.session, act)
