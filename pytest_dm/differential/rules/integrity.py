"""integrity: the three modes over a disk that the kernel formats, or the model where a random salt would differ.

What the journal holds, and when tags go to the disk, is the kernel's affair: scripts read all, suspend and load again, and the
model has to read what is left on the kernel's disks.
"""

from __future__ import annotations

import errno
from functools import cache
from typing import TYPE_CHECKING
from zlib import crc32

from dmcore.model.stores import MemoryStore
from dmcore.ref import Ref
from dmcore.table import Table
from dmcore.targets import Integrity
from dmcore.targets.crypt import Key
from dmcore.targets.integrity import Algorithm, Mode
from dmcore.volume import open_volume
from pytest_dm.differential.rule import Room, Rule, patches
from pytest_dm.differential.steps import Discard, Read, Write

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hypothesis.strategies import DrawFn

    from dmcore.target import Target
    from dmcore.volume import Volume
    from pytest_dm.differential.setup import Disk
    from pytest_dm.differential.steps import Step

__all__ = ["RULE"]

_DEV = 4096
_META = 2048
_KEYED = Algorithm("hmac(sha256)", Key(bytes(range(4))))
_HASHES = (Algorithm("crc32c"), Algorithm("crc32"), Algorithm("sha256"), _KEYED, _KEYED)


class _Integrity(Rule):
    lengths = (64, 512)
    layer = False  # it makes its disks
    fails = False  # a journal that fails is found by a thread, and ends the device
    settles = (
        True  # what a bitmap told has its tags made anew: an HMAC that is unsafe then refuses the next table
    )

    def draw(self, draw: DrawFn, room: Room) -> Integrity:
        """Draw mode, sizes, hash and options."""
        from hypothesis import strategies as st

        mode = draw(st.sampled_from([Mode.JOURNAL, Mode.JOURNAL, Mode.DIRECT, Mode.BITMAP]))
        separate = draw(st.booleans())
        hashed = draw(st.sampled_from(_HASHES))
        salted = hashed.key is not None and draw(st.sampled_from([True, True, False]))
        target = Integrity(
            dev=Ref("dev"),
            start=draw(st.sampled_from([0, 8])),
            mode=mode,
            meta_device=Ref("meta") if separate else None,
            block_size=draw(st.sampled_from([512, 512, 1024, 4096])),
            sectors_per_bit=draw(st.sampled_from([None, 8])) if mode is Mode.BITMAP else None,
            internal_hash=hashed,
            allow_discards=not salted and draw(st.booleans()),
            fix_padding=draw(st.booleans()),
            fix_hmac=salted,
            commit_time=3_600_000,
        )
        formatted = _formatted(target, room.length) if salted else ((), ())
        made = {Ref("dev"): room.disk(_DEV, patches=formatted[0])}
        if separate:
            made[Ref("meta")] = room.disk(_META, patches=formatted[1])
        words = target.encode(lambda ref: made[ref].name)
        (line,) = Table.parse(f"0 {room.length} integrity {words}").lines
        assert isinstance(line.target, Integrity)
        return line.target

    def prelude(self, target: Target, length: int) -> Sequence[Step]:
        """Write all of it, so that its tags fit."""
        del target
        return (Write(0, length, seed=3),)

    def scenes(self, target: Target, length: int) -> Sequence[Sequence[Step]]:
        """Discard the first half."""
        del target
        return ((Discard(0, length // 2), Read(0, length)),)

    def mask(self, text: str) -> str:
        """Leave out how far tags were made anew: a thread does that to what a bitmap told."""
        return " ".join(text.split()[:2])

    def mask_table(self, text: str) -> str:
        """Leave out the options: kernels print numbers that the disk's size decides."""
        return " ".join(text.split()[:4])

    def settled(self, text: str) -> bool:
        """Whether all tags were made anew that had to be."""
        _, provided, done = text.split()
        return done in {"-", provided}

    def hidden(self, target: Target, disks: dict[str, Disk], status: str) -> Iterable[tuple[str, int, int]]:
        """Hide all of it: the journal, and the tags that it still holds."""
        del status
        for ref in target.refs():
            yield ref.name, 0, disks[ref.name].sectors * 512

    def facts(self, target: Target, disks: dict[str, MemoryStore], length: int) -> object:
        """Return what the model reads of each block: a checksum, or the errno that it fails with.

        Not with a bitmap: which tags were made anew that had never been right is the kernel's affair.
        """
        assert isinstance(target, Integrity)
        if target.mode is Mode.BITMAP:
            return None
        with open_volume(
            Table.of(target, length), {ref.name: disks[ref.name] for ref in target.refs()}
        ) as volume:
            places = range(0, length * 512, target.block_size)
            return [_read(volume, place, target.block_size) for place in places]


def _read(volume: Volume, place: int, size: int) -> str:
    try:
        return f"{crc32(volume.read(place, size)):08x}"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))


@cache
def _formatted(target: Integrity, length: int) -> tuple[tuple[tuple[int, bytes], ...], ...]:
    disks = {"dev": MemoryStore(_DEV * 512), "meta": MemoryStore(_META * 512)}
    open_volume(Table.of(target, length), disks).close()
    return tuple(patches(disk) for disk in disks.values())


RULE = _Integrity()
