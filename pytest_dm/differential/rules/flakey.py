"""flakey: always up or always down, since a script is over before a second is; chance only where it is certain."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dmcore.targets.flakey import Corrupt, Direction, Flakey
from pytest_dm.differential.rule import Room, Rule

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn

__all__ = ["RULE"]

_SECONDS = 1_000_000


class _Flakey(Rule):
    def draw(self, draw: DrawFn, room: Room) -> Flakey:
        """Draw any faults but random ones; bytes to corrupt lie in the first sectors of a request."""
        from hypothesis import assume
        from hypothesis import strategies as st

        drawn = draw(Flakey.strategy(room.space()))
        assert isinstance(drawn, Flakey)
        down = draw(st.sampled_from([True, True, False]))
        corrupt = drawn.corrupt
        if draw(
            st.booleans()
        ):  # alone, more often than by the strategy, which seldom draws what a request shows
            drawn = replace(drawn, drop_writes=False, error_writes=False, error_reads=False)
            corrupt = Corrupt(1, draw(st.sampled_from(Direction)), draw(st.integers(0, 255)), 0)
        if corrupt is not None:
            byte = st.integers(1, 2048) | st.sampled_from([1, 512, 513, 1024, 4096])
            flags = draw(st.sampled_from([0, 0, 1, 1 << 17, 1 << 11]))
            corrupt = Corrupt(draw(byte), corrupt.direction, corrupt.value, flags)
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


RULE = _Flakey()
