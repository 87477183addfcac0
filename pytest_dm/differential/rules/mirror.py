"""mirror: legs that count as in sync from the start, and fail. What is copied, and logs on disks, have tests of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmcore.target import Leg
from dmcore.targets import Mirror
from dmcore.targets.mirror import CoreLog, Sync
from pytest_dm.differential.rule import Room, Rule
from pytest_dm.differential.steps import Discard, Fail, Heal, Read, Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hypothesis.strategies import DrawFn

    from dmcore.target import Target
    from pytest_dm.differential.steps import Step

__all__ = ["RULE"]

_KEEP_LOG = "mirror.keep_log"


class _Mirror(Rule):
    lengths = (2, 8, 64)  # one region: pieces of a request are under way at once, and fail in any order
    layer = False  # its thread and a layer that fails do not go together
    suspends = False  # a resume copies what failed: when that is given up, no status tells
    settles = True

    def draw(self, draw: DrawFn, room: Room) -> Mirror:
        """Draw legs and regions; a write never waits, since that is for ever."""
        from hypothesis import strategies as st

        keeps = _KEEP_LOG in room.features and draw(st.booleans())
        legs = [
            Leg(room.data(room.length + offset), offset)
            for offset in draw(st.lists(st.sampled_from([0, 8]), min_size=2, max_size=3))
        ]
        return Mirror(
            log=CoreLog(room.length, Sync.NOSYNC),
            legs=tuple(legs),
            handle_errors=keeps,
            keep_log=keeps,
        )

    def scenes(self, target: Target, length: int) -> Sequence[Sequence[Step]]:
        """Discard while the second leg fails; read while the first one does."""
        assert isinstance(target, Mirror)
        first, second, *_ = (leg.dev.name for leg in target.legs)
        whole = 0, 1 << 16
        return (
            (Fail(second, *whole), Discard(0, length), Heal(second)),
            (Fail(first, *whole), Read(0, length), Status(), Heal(first)),
        )

    def settled(self, text: str) -> bool:
        """Whether all regions are in sync, or a leg failed."""
        words = text.split()
        legs = int(words[0])
        synced, _, regions = words[legs + 1].partition("/")
        return synced == regions or set(words[legs + 3]) != {"A"}


RULE = _Mirror()
