"""cache: blocks that the model has put into the metadata, and a policy that takes in no others.

That is `cleaner`, which writes back all that is dirty; in passthrough mode no policy takes in any. smq does, now and then,
also with a `migration_threshold` of 0.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from dmcore.model.stores import MemoryStore
from dmcore.model.targets._cache import CacheMetadata
from dmcore.ref import Ref
from dmcore.table import Table
from dmcore.targets import Cache
from dmcore.targets.cache import CacheMode, Policy
from dmcore.volume import open_volume
from pytest_dm.differential.rule import Room, Rule, patches

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hypothesis.strategies import DrawFn, SearchStrategy

    from dmcore.target import Target
    from pytest_dm.differential.setup import Disk

__all__ = ["RULE"]

_BLOCK = 64
_FAST = 4
_SLOW = 6
_METADATA = 512


class _Cache(Rule):
    lengths = (_SLOW * _BLOCK, _SLOW * _BLOCK + 8)
    layer = False
    fails = False  # what fails in the background is found there
    settles = True
    discards = False  # what a discarded block reads that was cached is a policy's affair

    def draw(self, draw: DrawFn, room: Room) -> Cache:
        """Draw mode, policy and what is cached."""
        from hypothesis import strategies as st

        mode = draw(st.sampled_from(CacheMode))
        version = draw(st.sampled_from([1, 2]))
        cached = draw(st.dictionaries(st.integers(0, _SLOW - 1), st.integers(0, _FAST - 1), max_size=_FAST))
        places = tuple(sorted({place: block for block, place in cached.items()}.items()))
        return Cache(
            metadata=room.disk(_METADATA, patches=_made(places, version, room.length)),
            cache=room.disk(_FAST * _BLOCK, seed=95),
            origin=room.disk(room.length, seed=90),
            block_sectors=_BLOCK,
            mode=mode,
            metadata2=version == 2,
            no_discard_passdown=draw(st.booleans()),
            policy=Policy.SMQ if mode is CacheMode.PASSTHROUGH else Policy.CLEANER,
        )

    def messages(self, target: Target, length: int) -> SearchStrategy[str]:
        """Draw blocks to take out, and what no policy knows."""
        from hypothesis import strategies as st

        del target, length
        number = st.integers(0, _FAST)
        return st.one_of(
            st.builds("invalidate_cblocks {}".format, number),
            st.builds("invalidate_cblocks {}-{}".format, number, number),
            st.sampled_from(["migration_threshold", "migration_threshold x", "nonsense 3", "x"]),
        )

    def settled(self, text: str) -> bool:
        """Whether the cleaner has nothing to do."""
        words = text.split()
        return len(words) < 11 or "cleaner" not in words or words[10] == "0"

    def mask(self, text: str) -> str:
        """Leave out how many metadata blocks are used."""
        words = text.split()
        if len(words) > 4:
            words[1] = "(used)/" + words[1].partition("/")[2]
        return " ".join(words)

    def hidden(self, target: Target, disks: dict[str, Disk], status: str) -> Iterable[tuple[str, int, int]]:
        """Hide the metadata: blocks have other numbers, and hints are a policy's."""
        del status
        assert isinstance(target, Cache)
        yield target.metadata.name, 0, disks[target.metadata.name].sectors * 512

    def facts(self, target: Target, disks: dict[str, MemoryStore], length: int) -> object:
        """Return what is cached where and whether it is dirty, discards, flags and statistics."""
        del length
        assert isinstance(target, Cache)
        found = CacheMetadata(disks[target.metadata.name], target.block_sectors, 2 if target.metadata2 else 1)
        return list(found.mappings()), list(found.discards), found.now.flags, found.now.statistics


@cache
def _made(places: tuple[tuple[int, int], ...], version: int, length: int) -> tuple[tuple[int, bytes], ...]:
    """Return metadata with blocks of the origin by their places on the cache device."""
    metadata = MemoryStore(_METADATA * 512)
    disks = {"meta": metadata, "fast": MemoryStore(_FAST * _BLOCK * 512), "slow": MemoryStore(length * 512)}
    target = Cache(
        metadata=Ref("meta"),
        cache=Ref("fast"),
        origin=Ref("slow"),
        block_sectors=_BLOCK,
        metadata2=version == 2,
    )
    open_volume(Table.of(target, length), disks).close()
    if places:
        found = CacheMetadata(metadata, _BLOCK, version)
        found.place(dict(places))
        found.commit(clean=True)
    return patches(metadata)


RULE = _Cache()
