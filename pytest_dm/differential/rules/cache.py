"""cache: blocks that the model has put into the metadata, under policies that take in no others, and under smq.

`cleaner` takes in no block and writes back all that is dirty; in passthrough mode no policy takes in any. Of these all is
compared. What smq takes in and gives up, and when, is its secret, also with a `migration_threshold` of 0: of it only what is
read is compared, and the origin where that has to hold all.
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
from pytest_dm.differential.steps import Message, Status, Write, pattern

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hypothesis.strategies import DrawFn, SearchStrategy

    from dmcore.target import Target
    from pytest_dm.differential.setup import Disk
    from pytest_dm.differential.steps import Step

__all__ = ["RULE", "formatted"]

_BLOCK = 64
_FAST = 4
_SLOW = 6
_METADATA = 512
_ORIGIN = 90


class _Cache(Rule):
    lengths = (_SLOW * _BLOCK, _SLOW * _BLOCK + 8)
    layer = False
    fails = False  # what fails in the background is found there
    settles = True

    def draw(self, draw: DrawFn, room: Room) -> Cache:
        """Draw mode, policy and what is cached."""
        from hypothesis import strategies as st

        mode = draw(st.sampled_from([CacheMode.WRITEBACK, *CacheMode]))
        version = draw(st.sampled_from([1, 2]))
        few = draw(st.sampled_from([0, 2, 2]))
        slow, fast = st.integers(0, _SLOW - 1), st.integers(0, _FAST - 1)
        cached = draw(st.dictionaries(slow, fast, min_size=few, max_size=_FAST))
        places = tuple(sorted({place: block for block, place in cached.items()}.items()))
        policy = draw(st.sampled_from([Policy.SMQ, Policy.CLEANER, Policy.CLEANER]))
        same = places if policy is Policy.SMQ else ()
        copies = [(place * _BLOCK, pattern(_ORIGIN, block * _BLOCK, _BLOCK)) for place, block in same]
        return Cache(
            metadata=room.disk(_METADATA, patches=formatted(places, version, room.length)),
            cache=room.disk(_FAST * _BLOCK, seed=95, patches=copies),
            origin=room.disk(room.length, seed=_ORIGIN),
            block_sectors=_BLOCK,
            mode=mode,
            metadata2=version == 2,
            no_discard_passdown=draw(st.booleans()),
            policy=policy,
        )

    def prelude(self, target: Target, length: int) -> Sequence[Step]:
        """Write half of a block, a whole one, and half of the next."""
        del target, length
        return (Write(_BLOCK // 2, 2 * _BLOCK, 2),)

    def scenes(self, target: Target, length: int) -> Sequence[Sequence[Step]]:
        """Take out the last block of the cache, and what is behind it."""
        del target, length
        last = Message(f"invalidate_cblocks {_FAST - 1}")
        return (
            (
                last,
                Message(f"invalidate_cblocks {_FAST}"),
                Message(f"invalidate_cblocks 0-{_FAST + 1}"),
                Status(),
            ),
        )

    def discard_unit(self, target: Target) -> int:
        """Return 1, or 0 under smq: a discarded block that it takes in reads what the cache device held before."""
        return 0 if _is_smqs(target) else 1

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
        """Leave out how many metadata blocks are used, and what smq decides about."""
        words = text.split()
        if len(words) > 10:
            words[1] = "(used)/" + words[1].partition("/")[2]
            if "smq" in words and CacheMode.PASSTHROUGH not in words:
                words[3] = "(used)/" + words[3].partition("/")[2]
                words[4:11] = ["(smq's)"] * 7
        return " ".join(words)

    def hidden(self, target: Target, disks: dict[str, Disk], status: str) -> Iterable[tuple[str, int, int]]:
        """Hide the metadata: blocks have other numbers, and hints are a policy's. Under smq hide what it may move."""
        del status
        assert isinstance(target, Cache)
        hidden = [target.metadata.name]
        if _is_smqs(target):
            hidden += [target.cache.name]
            hidden += [target.origin.name] if target.mode is CacheMode.WRITEBACK else []
        for name in hidden:
            yield name, 0, disks[name].sectors * 512

    def facts(self, target: Target, disks: dict[str, MemoryStore], length: int) -> object:
        """Return what is cached where and whether it is dirty, discards, flags and statistics; under smq flags alone."""
        del length
        assert isinstance(target, Cache)
        found = CacheMetadata(disks[target.metadata.name], target.block_sectors, 2 if target.metadata2 else 1)
        if _is_smqs(target):
            return found.now.flags
        return list(found.mappings()), list(found.discards), found.now.flags, found.now.statistics


def _is_smqs(target: Target) -> bool:
    """Whether smq moves blocks."""
    assert isinstance(target, Cache)
    return target.policy is Policy.SMQ and target.mode is not CacheMode.PASSTHROUGH


@cache
def formatted(
    places: tuple[tuple[int, int], ...], version: int, length: int
) -> tuple[tuple[int, bytes], ...]:
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
