"""verity: trees of the library's own, and damage to data, tree and root; only read, since the device takes nothing else.

Repair from parity is held against kernels that have it in tests of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmcore.model.stores import MemoryStore
from dmcore.targets import Verity
from dmcore.targets.verity import OnCorruption
from dmcore.verity import format_verity
from pytest_dm.differential.rule import Room, Rule, patches
from pytest_dm.differential.steps import pattern

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn

__all__ = ["RULE"]

_SIZES = (512, 1024, 4096)
_TREE = 128
_SEED = 60
_ZEROS = 8
"""Sectors of zeros before all other data."""


class _Verity(Rule):
    lengths = (8, 24, 96, 264)
    layer = False  # what stands on it would have to be read-only as well
    writes = False
    fails = (
        False  # a failing tree fails what else is in its blocks, and how much of that was cached is chance
    )

    def draw(self, draw: DrawFn, room: Room) -> Verity:
        """Draw sizes, options, salt and damage."""
        from hypothesis import strategies as st

        data_size, hash_size = draw(st.sampled_from(_SIZES)), draw(st.sampled_from(_SIZES))
        version, algorithm = draw(st.integers(0, 1)), draw(st.sampled_from(["sha256", "sha1", "sha512"]))
        salt = draw(st.sampled_from([b"", b"s", bytes(range(32))]))
        zeros = draw(st.sampled_from([0, _ZEROS, _ZEROS]))
        data, tree = MemoryStore(room.length * 512), MemoryStore(_TREE * 512)
        data.write(zeros, memoryview(pattern(_SEED, zeros, room.length - zeros)))
        root = format_verity(
            data, tree, version=version, algorithm=algorithm, data_block_size=data_size, hash_block_size=hash_size,
            salt=salt, superblock=False,
        )  # fmt: skip
        if draw(st.integers(0, 9)) == 0:
            root = root[::-1]
        _damage(draw, data, room.length * 512, most=3)
        _damage(draw, tree, sum(len(part) for _, part in patches(tree)), most=1)
        return Verity(
            version=version,
            data=room.disk(room.length, patches=patches(data)),
            hashes=room.disk(_TREE, patches=patches(tree)),
            data_block_size=data_size,
            hash_block_size=hash_size,
            data_blocks=room.length * 512 // data_size,
            algorithm=algorithm,
            root=root,
            salt=salt,
            on_corruption=draw(st.sampled_from([None, None, OnCorruption.IGNORE])),
            ignore_zero_blocks=draw(st.sampled_from([True, True, False])),
            check_at_most_once=draw(st.booleans()),
        )

    def mask(self, text: str) -> str:
        """Leave out the number of repaired blocks, which kernels before 7.2 do not tell."""
        return text.split(maxsplit=1)[0]


def _damage(draw: DrawFn, store: MemoryStore, size: int, *, most: int) -> None:
    """Change some bytes, mostly at the beginning, where blocks of zeros may be."""
    from hypothesis import strategies as st

    if not size:
        return
    place = st.integers(0, size - 1) | st.integers(0, min(size, _ZEROS * 512) - 1)
    for at in draw(st.lists(place, max_size=most)):
        sector = store.read(at // 512, 1)
        sector[at % 512] ^= draw(st.integers(1, 255))
        store.write(at // 512, memoryview(sector))


RULE = _Verity()
