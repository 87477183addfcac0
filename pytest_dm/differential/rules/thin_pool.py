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


RULE = _ThinPool()
