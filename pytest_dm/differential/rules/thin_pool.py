"""thin-pool: its messages, over metadata that the kernel formats or the model has made; its own device is its data device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_dm.differential.rules._pools import BLOCK, PoolRule, draw_pool
from pytest_dm.differential.steps import Message

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hypothesis.strategies import DrawFn

    from dmcore.target import Target
    from dmcore.targets import ThinPool
    from pytest_dm.differential.rule import Room
    from pytest_dm.differential.steps import Step

__all__ = ["RULE"]


class _ThinPool(PoolRule):
    lengths = (BLOCK, 4 * BLOCK)

    def draw(self, draw: DrawFn, room: Room) -> ThinPool:
        """Draw one with or without a device."""
        return draw_pool(draw, room, room.length // BLOCK, 1)

    def prelude(self, target: Target, length: int) -> Sequence[Step]:
        """Make a device, if there is none, shoot it, and hold the metadata."""
        del target, length
        return Message("create_thin 0"), Message("create_snap 1 0"), Message("reserve_metadata_snap")

    def scenes(self, target: Target, length: int) -> Sequence[Sequence[Step]]:
        """Hold the metadata once more; send messages with a word too many."""
        del target, length
        words = ("create_thin 3 4", "create_snap 2 0 0", "delete 1 1", "release_metadata_snap 0")
        return (Message("reserve_metadata_snap"),), tuple(map(Message, words))


RULE = _ThinPool()
