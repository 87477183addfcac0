"""flakey: always up or always down, since a script is over before a second is; chance only where it is certain."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dmcore.targets.flakey import Corrupt, Direction, Flakey
from pytest_dm.differential.rule import Room, Rule
from pytest_dm.differential.steps import Read, Write

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hypothesis.strategies import DrawFn

    from dmcore.target import Target
    from pytest_dm.differential.steps import Step

__all__ = ["RULE"]

_SECONDS = 1_000_000
_SYNC, _FUA = 1 << 11, 1 << 17
_FLAGS = {Direction.READ: (0, 0, 1), Direction.WRITE: (0, _SYNC, _FUA, _FUA | 1)}
"""Bits that a request must have. Bit 0 is of writes alone; all writes of a script are synchronous, some are FUA."""


class _Flakey(Rule):
    def draw(self, draw: DrawFn, room: Room) -> Flakey:
        """Draw any faults but random ones; bytes to corrupt lie in the first sectors of a request."""
        from hypothesis import assume
        from hypothesis import strategies as st

        drawn = draw(Flakey.strategy(room.space()))
        assert isinstance(drawn, Flakey)
        down = draw(st.sampled_from([True, True, True, False]))
        corrupt = drawn.corrupt
        if draw(st.booleans()):  # alone, as the strategy seldom draws it
            drawn = replace(drawn, drop_writes=False, error_writes=False, error_reads=False)
            corrupt = Corrupt(1, draw(st.sampled_from(Direction)), draw(st.integers(0, 255)), 0)
        if corrupt is not None:
            byte = draw(st.sampled_from([1, 512, 512, 1024, 4096, 513]) | st.integers(1, 2048))
            flags = draw(st.sampled_from(_FLAGS[corrupt.direction]))
            corrupt = replace(corrupt, byte=byte, flags=flags)
        value = replace(
            drawn,
            up=0 if down else _SECONDS,
            down=_SECONDS if down else 0,
            corrupt=corrupt,
            random_read_corrupt=None,
            random_write_corrupt=None,
        )
        assume(value.needs().features <= room.features)
        return value

    def scenes(self, target: Target, length: int) -> Sequence[Sequence[Step]]:
        """Write, durably and not, and read requests of which the byte to corrupt is in the last sector."""
        assert isinstance(target, Flakey)
        count = min(-(-target.corrupt.byte // 512), length) if target.corrupt else 1
        read = Read(0, count)
        return ((Write(0, count, 9), read, Write(0, count, 10, fua=True), read),)


RULE = _Flakey()
