"""delay: by so little that a script does not wait for it; exact times are the model's own tests' affair."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmcore.targets.delay import Delay, Delayed
from pytest_dm.differential.rule import Room, Rule
from pytest_dm.differential.steps import Discard, Read, Write

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hypothesis.strategies import DrawFn

    from dmcore.target import Leg, Target
    from pytest_dm.differential.steps import Step

__all__ = ["RULE"]


class _Delay(Rule):
    def draw(self, draw: DrawFn, room: Room) -> Delay:
        """Draw every form, over two devices."""
        from hypothesis import strategies as st

        legs = room.space().legs()
        delayed = st.builds(_delayed, legs, st.sampled_from([0, 0, 1]))
        given = draw(st.integers(1, 3))
        return Delay(
            read=draw(delayed),
            write=draw(delayed) if given > 1 else None,
            flush=draw(delayed) if given > 2 else None,
        )

    def scenes(self, target: Target, length: int) -> Sequence[Sequence[Step]]:
        """Write and discard all of it."""
        del target
        read = Read(0, length)
        return ((Write(0, length, 3), read, Discard(0, length), read),)


def _delayed(leg: Leg, ms: int) -> Delayed:
    return Delayed(leg.dev, leg.offset, ms)


RULE = _Delay()
