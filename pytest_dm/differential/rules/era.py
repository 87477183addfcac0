"""era: which block was written in which era is compared, however the metadata say it; numbers of metadata blocks are not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmcore.formats.era import WRITESET, SuperBlock
from dmcore.formats.persistent_data import Reader
from dmcore.targets import Era
from pytest_dm.differential.rule import Room, Rule
from pytest_dm.differential.steps import Message, Settle, Status, Write

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hypothesis.strategies import DrawFn, SearchStrategy

    from dmcore.model.stores import MemoryStore
    from dmcore.target import Target
    from pytest_dm.differential.setup import Disk
    from pytest_dm.differential.steps import Step

__all__ = ["RULE"]

_METADATA = 1024


class _Era(Rule):
    lengths = (8, 24, 64, 100)
    behind = False  # 6.1 goes to the sectors that requests have on the whole device (see the findings)
    talks_suspended = False  # the kernel holds both back, and they cannot be interrupted

    def draw(self, draw: DrawFn, room: Room) -> Era:
        """Draw the size of blocks."""
        from hypothesis import strategies as st

        return Era(
            metadata=room.disk(_METADATA),
            origin=room.data(room.length),
            block_sectors=draw(st.sampled_from([8, 8, 16, 24])),
        )

    def prelude(self, target: Target, length: int) -> Sequence[Step]:
        """Write the first block in two eras, and its neighbours in the first of them only."""
        del target
        return Write(0, min(length, 20), seed=4), Message("checkpoint"), Write(0, 1, seed=5)

    def scenes(self, target: Target, length: int) -> Sequence[Sequence[Step]]:
        """Take a snapshot, write, give it up; let several eras be over before any of them is put into the array."""
        del target, length
        take, drop = Message("take_metadata_snap"), Message("drop_metadata_snap")
        return (take, Status(), Write(0, 1), drop), (Message("checkpoint"), Settle())

    def messages(self, target: Target, length: int) -> SearchStrategy[str]:
        """Draw all that there are, and none."""
        from hypothesis import strategies as st

        del target, length
        words = [
            "checkpoint",
            "checkpoint",
            "take_metadata_snap",
            "drop_metadata_snap",
            "CHECKPOINT",
            "x",
            "checkpoint 1",
        ]
        return st.sampled_from(words)

    def mask(self, text: str) -> str:
        """Leave out how many metadata blocks are used, and which one is the snapshot."""
        words = text.split()
        if len(words) == 4:
            words[1] = "(used)/" + words[1].partition("/")[2]
            words[3] = "-" if words[3] == "-" else "(block)"
        return " ".join(words)

    def hidden(self, target: Target, disks: dict[str, Disk], status: str) -> Iterable[tuple[str, int, int]]:
        """Hide the metadata: blocks have other numbers."""
        del status
        assert isinstance(target, Era)
        yield target.metadata.name, 0, disks[target.metadata.name].sectors * 512

    def facts(self, target: Target, disks: dict[str, MemoryStore], length: int) -> object:
        """Return era and blocks, the era in which each block was written last, and the same of the snapshot."""
        del length
        assert isinstance(target, Era)
        reader = Reader(disks[target.metadata.name])
        now = SuperBlock.read(reader)
        if now is None:
            return None
        shot = SuperBlock.read(reader, now.snapshot) if now.snapshot else None
        return now.era, now.blocks, _eras(reader, now, live=True), shot and _eras(reader, shot, live=False)


def _eras(reader: Reader, found: SuperBlock, *, live: bool) -> dict[int, int]:
    data = reader.array(found.eras, 4, found.blocks, "eras").data
    eras = {block: int.from_bytes(data[4 * block : 4 * block + 4], "little") for block in range(found.blocks)}
    sets = [(era, *WRITESET.unpack(value)) for era, value in reader.btree(found.writesets, WRITESET.size)]
    if live and found.writeset.root:
        sets.append((found.era, *found.writeset))
    for era, bits, root in sorted(sets):
        written = reader.bitset(root, bits, "writeset").data
        eras.update({bit: era for bit in range(min(bits, found.blocks)) if written[bit // 8] >> bit % 8 & 1})
    return {block: era for block, era in eras.items() if era}


RULE = _Era()
