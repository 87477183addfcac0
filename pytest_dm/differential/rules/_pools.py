"""What the rules of thin-pool and thin have in common: pools that the model has made, and what their metadata say."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING
from zlib import crc32

from dmcore.formats.persistent_data import Reader
from dmcore.formats.thin import DETAILS, SuperBlock, unpack_mapping
from dmcore.model.stores import MemoryStore
from dmcore.ref import Ref
from dmcore.table import Table
from dmcore.targets import ThinPool
from dmcore.volume import open_volume
from pytest_dm.differential.rule import Rule, patches

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hypothesis.strategies import DrawFn, SearchStrategy

    from dmcore.target import Target
    from pytest_dm.differential.rule import Room
    from pytest_dm.differential.setup import Disk

__all__ = ["BLOCK", "PoolRule", "draw_pool"]

BLOCK = 128
_METADATA = 1024
_FEATURES = ("skip_block_zeroing", "ignore_discard", "no_discard_passdown")


def draw_pool(draw: DrawFn, room: Room, blocks: int, devices: int) -> ThinPool:
    """Draw a pool with some devices that the model has made (0: one that the kernel formats), and its features.

    It has so many blocks that scripts cannot fill it: a kernel takes what was just freed after a commit only.
    """
    from hypothesis import strategies as st

    made = draw(st.integers(0, devices)) if devices < 2 else devices
    return ThinPool(
        metadata=room.disk(_METADATA, patches=_made(blocks, made) if made else ()),
        data=room.disk(blocks * BLOCK, seed=80),
        block_sectors=BLOCK,
        low_water=draw(st.sampled_from([0, 2])),
        error_if_no_space=draw(st.booleans()),
        **dict.fromkeys(draw(st.sets(st.sampled_from(_FEATURES))), True),
    )


@cache
def _made(blocks: int, devices: int) -> tuple[tuple[int, bytes], ...]:
    metadata = MemoryStore(_METADATA * 512)
    disks = {"meta": metadata, "data": MemoryStore(blocks * BLOCK * 512)}
    pool = ThinPool(metadata=Ref("meta"), data=Ref("data"), block_sectors=BLOCK)
    with open_volume(Table.of(pool, blocks * BLOCK), disks) as volume:
        for number in range(devices):
            volume.message(f"create_thin {number}")
    return patches(metadata)


class PoolRule(Rule):
    """Status and metadata without the numbers of metadata blocks; data without the places of their blocks."""

    layer = False
    fails = False  # metadata that fail are in tests of their own; which blocks of data a failed copy leaves used is chance

    def messages(self, target: Target, length: int) -> SearchStrategy[str] | None:
        """Draw messages of a pool over a few devices."""
        from hypothesis import strategies as st

        del length
        if not isinstance(target, ThinPool):
            return None
        number = st.integers(0, 3)
        return st.one_of(
            st.builds("create_thin {}".format, number),
            st.builds("create_snap {} {}".format, number, number),
            st.builds("delete {}".format, number),
            st.builds("set_transaction_id {} {}".format, st.integers(0, 1), st.integers(0, 2)),
            st.sampled_from(
                [
                    "reserve_metadata_snap",
                    "release_metadata_snap",
                    "create_thin",
                    "create_thin 0 0",
                    "delete x",
                    "x",
                ]
            ),
        )

    def mask(self, text: str) -> str:
        """Leave out how many metadata blocks are used, and which one is the snapshot; a thin device's status has neither."""
        words = text.split()
        if len(words) > 4:
            words[1] = "(used)/" + words[1].partition("/")[2]
            words[3] = "-" if words[3] == "-" else "(block)"
        return " ".join(words)

    def hidden(self, target: Target, disks: dict[str, Disk], status: str) -> Iterable[tuple[str, int, int]]:
        """Hide the pool's disks."""
        del status
        if isinstance(target, ThinPool):
            for ref in target.refs():
                yield ref.name, 0, disks[ref.name].sectors * 512

    def facts(self, target: Target, disks: dict[str, MemoryStore], length: int) -> object:
        """Return transaction, time, and each device's details and mapped blocks, with a checksum of what they hold."""
        del length
        if not isinstance(target, ThinPool):
            return None
        reader = Reader(disks[target.metadata.name])
        now = SuperBlock.read(reader)
        if now is None:
            return None
        data = disks[target.data.name]
        details = {key: DETAILS.unpack(value) for key, value in reader.btree(now.details, DETAILS.size)}
        mapped: dict[int, dict[int, int]] = {}
        for key, root in reader.btree(now.mappings, 8):
            blocks = reader.btree(int.from_bytes(root, "little"), 8)
            places = {block: unpack_mapping(mapping)[0] for block, mapping in blocks}
            mapped[key] = {block: crc32(data.read(place * BLOCK, BLOCK)) for block, place in places.items()}
        return now.transaction_id, now.time, bool(now.held_root), details, mapped
