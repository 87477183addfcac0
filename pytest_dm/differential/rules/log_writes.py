"""log-writes: a log that may be too small. A thread writes it; the end of one that is behind has the wrong order (see the
findings), so that scripts wait for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmcore.targets import LogWrites
from pytest_dm.differential.rule import Room, Rule
from pytest_dm.differential.steps import Message

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hypothesis.strategies import DrawFn, SearchStrategy

    from dmcore.target import Target
    from pytest_dm.differential.steps import Step

__all__ = ["RULE"]

_SMALL = 12
"""Sectors of the smallest log."""
_MOST_MARK = 512 - 32 - 1
"""Bytes of a mark that an entry of one sector has room for."""


class _LogWrites(Rule):
    def draw(self, draw: DrawFn, room: Room) -> LogWrites:
        """Draw the size of the log."""
        from hypothesis import strategies as st

        return LogWrites(
            dev=room.data(room.length), log=room.disk(draw(st.sampled_from([_SMALL, _SMALL, 40, 100, 2048])))
        )

    fails = False  # when the thread meets a failing sector is chance
    settles = follows = True
    layer = False  # its thread writes the log when it likes, also at the end of a layer below
    behind = True
    lengths = (24, 64, 96)

    def scenes(self, target: Target, length: int) -> Sequence[Sequence[Step]]:
        """Fill the smallest log to its last sector; each mark takes one."""
        del target, length
        return ((Message("mark a"),) * _SMALL,)

    def discard_unit(self, target: Target) -> int:
        """Return the granularity of the disks in sectors: one from between is two requests, logged in the order they are done."""
        del target
        return 8

    def messages(self, target: Target, length: int) -> SearchStrategy[str]:
        """Draw marks, and what is none."""
        from hypothesis import strategies as st

        del target, length
        plain = st.sampled_from(["mark a", "MARK a\\ b", "mark", "mark a b", "nonsense x"])
        return plain | st.sampled_from([200, _MOST_MARK, _MOST_MARK + 1, 600]).map(
            lambda size: "mark " + "x" * size
        )


RULE = _LogWrites()
