"""writecache: without what depends on time; nothing is written back unless a message says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmcore.formats import writecache as layout
from dmcore.targets import Writecache
from pytest_dm.differential.rule import Room, Rule
from pytest_dm.differential.steps import Discard, Flush, Message, Read, Resume, Status, Suspend, Write

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hypothesis.strategies import DrawFn, SearchStrategy

    from dmcore.target import Target
    from pytest_dm.differential.setup import Disk
    from pytest_dm.differential.steps import Step

__all__ = ["RULE"]


class _Writecache(Rule):
    lengths = (64, 96)
    layer = False  # its writer's thread and a layer that fails do not go together
    fails = False  # what a failed write-back leaves depends on when its thread ran

    def draw(self, draw: DrawFn, room: Room) -> Writecache:
        """Draw a cache that a script cannot fill (a full one brings kernels down), and the options without a clock."""
        from hypothesis import strategies as st

        return Writecache(
            origin=room.data(room.length),
            cache=room.disk(2048),
            block_size=4096,
            high_watermark=100,
            low_watermark=100,
            autocommit_ms=3_600_000,
            pause_writeback_ms=60_000,
            metadata_only=draw(st.sampled_from([False, False, True])),
        )

    def scenes(self, target: Target, length: int) -> Sequence[Sequence[Step]]:
        """Write, discard and write back blocks that are committed: over them, across them, all of them."""
        del target
        flush, read = Flush(), Read(0, length)
        return (
            (Write(8, 8, 1), flush, Write(8, 8, 2), Write(0, 24, 3), Status(), flush, Status()),
            (Write(0, 32, 4), flush, Discard(0, 24), Status(), read),
            (Write(8, 32, 5), Message("flush"), read),
            (Write(0, 16, 6), Message("flush_on_suspend"), Suspend(), Resume(), Status()),
        )

    def messages(self, target: Target, length: int) -> SearchStrategy[str]:
        """Draw what is certain to be over when it returns."""
        from hypothesis import strategies as st

        del target, length
        return st.sampled_from(["flush", "FLUSH", "flush_on_suspend", "clear_stats", "nonsense", "flush now"])

    def mask(self, text: str) -> str:
        """Leave out `writes_allocate`, which kernels count in two ways."""
        words = text.split()
        if len(words) > 10:
            words[10] = "(allocate)"
        return " ".join(words)

    def hidden(self, target: Target, disks: dict[str, Disk], status: str) -> Iterable[tuple[str, int, int]]:
        """Hide what pads the entries to a whole block: whatever the kernel's memory held."""
        del status
        assert isinstance(target, Writecache)
        blocks = layout.most_blocks(disks[target.cache.name].sectors * 512, target.block_size)
        first = layout.SUPER_BYTES + blocks * layout.ENTRY.size
        end = layout.entries_bytes(blocks, target.block_size)
        yield target.cache.name, first, end - first


RULE = _Writecache()
