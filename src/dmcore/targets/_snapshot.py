"""What snapshot and snapshot-merge have in common: one constructor, one status.

Sources: drivers/md/dm-snap.c (snapshot_ctr, parse_snapshot_features, snapshot_status), dm-exception-store.c
(dm_exception_store_create, dm_exception_store_set_chunk_size), dm-snap-persistent.c, dm-snap-transient.c.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

from dmcore import validate
from dmcore.errors import SpecError
from dmcore.params import Tokens
from dmcore.target import Requirement, Status, Target

if TYPE_CHECKING:
    from typing import Self

    from hypothesis.strategies import SearchStrategy

    from dmcore.ref import Ref
    from dmcore.target import Features, Lookup, Resolve, Space

__all__ = ["SnapshotParams", "SnapshotState", "SnapshotStatus", "Store", "draw_values"]

_MOST_SECTORS = 2**21
_DEFAULT_CHUNK = 32
_SAFE_DISCARD_CHUNK = 512
"""Below this, kernel 7.2.7 divides by zero when a table with `discard_zeroes_cow` is loaded."""

_ZEROES = "discard_zeroes_cow"
_PASSDOWN = "discard_passdown_origin"


class Store(StrEnum):
    """Where the copied chunks are written down; the values are the kernel's words."""

    PERSISTENT = "P"
    """On the COW device: the snapshot can be loaded again. Out of space, it becomes invalid for ever."""

    OVERFLOW = "PO"
    """The same, but a write to the snapshot that finds no space fails, and the rest stays readable."""

    TRANSIENT = "N"
    """In memory only: gone with the table. Out of space, it becomes invalid."""


class SnapshotState(StrEnum):
    """How a snapshot does; the values are the kernel's words, but for the first."""

    ACTIVE = "active"
    """It works; the status has numbers."""

    INVALID = "Invalid"
    """A copy could not be made or written down: all I/O to the snapshot fails with EIO."""

    OVERFLOW = "Overflow"
    """A write found no space (`Store.OVERFLOW`): all writes fail with EIO, reads go on. A new table forgets it."""

    MERGE_FAILED = "Merge failed"
    """I/O of the merge failed, which has stopped."""

    UNKNOWN = "Unknown"
    """The store cannot tell."""


@dataclass(frozen=True, slots=True)
class SnapshotStatus(Status):
    """Status of a snapshot, or of its merge.

    Attributes:
        state: How it does; the numbers are None unless it is ACTIVE.
        used: Sectors of the COW device in use, metadata included.
        total: Sectors of the COW device.
        metadata: Sectors of the COW device that hold metadata; 0 for a transient store.
    """

    state: SnapshotState
    used: int | None = None
    total: int | None = None
    metadata: int | None = None

    @property
    def empty(self) -> bool:
        """Whether the snapshot is known to hold no chunk: nothing was copied, or all is merged."""
        return self.used is not None and self.used == self.metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotParams(Target):
    """The fields of both targets; they say what they mean there.

    Attributes:
        origin: The device that was shot.
        cow: Another device, which holds the chunks that differ.
        store: How they are written down.
        chunk: Sectors copied at once: 0 or a power of two, up to 2^21; a multiple of both devices' logical blocks, which
            the kernel checks. 0 means 32 for a persistent store (a logical block of `cow` if that is more); for a
            transient one it is refused unless the snapshot takes over from another table's. A persistent store that
            `cow` holds already keeps its own chunk size, which the kernel then prints.
        discard_zeroes_cow: Discards are supported: one of whole chunks zeroes those that the snapshot holds.
        discard_passdown_origin: Such a discard goes to `origin` as well; needs `discard_zeroes_cow`.

    Raises:
        SpecError: A value the kernel's constructor would refuse (EINVAL).
    """

    origin: Ref
    cow: Ref
    store: Store = Store.PERSISTENT
    chunk: int = 0
    discard_zeroes_cow: bool = False
    discard_passdown_origin: bool = False

    def __post_init__(self) -> None:
        validate.ref("origin", self.origin)
        validate.ref("cow", self.cow)
        if self.cow == self.origin:
            raise SpecError("cow", self.cow, "must be another device than the origin")
        validate.instance("store", self.store, Store, "Store.PERSISTENT")
        validate.integer("chunk", self.chunk, 0, _MOST_SECTORS, "sectors")
        if self.chunk & (self.chunk - 1):
            raise SpecError("chunk", self.chunk, "must be a power of two")
        validate.boolean(_ZEROES, self.discard_zeroes_cow)
        validate.boolean(_PASSDOWN, self.discard_passdown_origin)
        if self.discard_passdown_origin and not self.discard_zeroes_cow:
            raise SpecError(_PASSDOWN, self.discard_passdown_origin, f"depends on {_ZEROES}")

    def refs(self) -> tuple[Ref, ...]:
        """Return origin and COW device."""
        return (self.origin, self.cow)

    def encode(self, resolve: Resolve) -> str:
        """Return `<origin> <cow> <store> <chunk> [<#words> <words>]`."""
        words = [
            word
            for word, given in ((_ZEROES, self.discard_zeroes_cow), (_PASSDOWN, self.discard_passdown_origin))
            if given
        ]
        head = f"{resolve(self.origin)} {resolve(self.cow)} {self.store} {self.chunk}"
        return " ".join([head, str(len(words)), *words]) if words else head

    @classmethod
    def decode(cls, tokens: Tokens, lookup: Lookup) -> Self:
        """Read `<origin> <cow> <store> <chunk> [<#words> <words>]`; words behind those announced are ignored.

        Of the store's word, the kernel looks at the first letter and, of a P, at the second.
        """
        origin = lookup(tokens.word("the origin device"))
        cow = lookup(tokens.word("the COW device"))
        store = _decode_store(tokens)
        chunk = tokens.strict("the chunk size in sectors")
        words: set[str] = set()
        if len(tokens):
            for _ in range(_counted(tokens)):
                words.add(tokens.keyword(_ZEROES, _PASSDOWN))
        for _ in tokens:
            pass
        return cls(
            origin=origin,
            cow=cow,
            store=store,
            chunk=chunk,
            discard_zeroes_cow=_ZEROES in words,
            discard_passdown_origin=_PASSDOWN in words,
        )

    def readback(self, features: Features) -> Self:
        """Return the value with the default chunk size in numbers: of a fresh COW device with blocks of up to 16 KiB."""
        del features
        if self.chunk or self.store is Store.TRANSIENT:
            return self
        return dataclasses.replace(self, chunk=_DEFAULT_CHUNK)

    def needs(self) -> Requirement:
        """Return the need for the first version that has discards, if this value uses them."""
        version = (1, 16, 0) if self.kernel_name == "snapshot" else (1, 5, 0)
        return Requirement(self.kernel_name, version if self.discard_zeroes_cow else (0, 0, 0))

    def parse_status(self, text: str) -> SnapshotStatus:
        """Read `<used>/<total> <metadata>`, or the word for a state."""
        for state in SnapshotState:
            if text == state.value and state is not SnapshotState.ACTIVE:
                return SnapshotStatus(state)
        tokens = Tokens(text.replace("/", " ", 1), target=self.kernel_name)
        used = tokens.strict("the sectors in use", bits=64)
        total = tokens.strict("the sectors of the COW device", bits=64)
        metadata = tokens.strict("the sectors of metadata", bits=64)
        tokens.done()
        return SnapshotStatus(SnapshotState.ACTIVE, used, total, metadata)


def _decode_store(tokens: Tokens) -> Store:
    word = tokens.word("P, PO or N").upper()
    if word.startswith("N"):
        return Store.TRANSIENT
    if word == "P":
        return Store.PERSISTENT
    if word.startswith("PO"):
        return Store.OVERFLOW
    raise tokens.error("P, PO or N", back=1)


def _counted(tokens: Tokens) -> int:
    count = tokens.ranged("the number of feature words", 0, 2)
    if count > len(tokens):
        raise tokens.error(f"{count} feature words")
    return count


S = TypeVar("S", bound=SnapshotParams)


def draw_values(kind: type[S], space: Space, *stores: Store) -> SearchStrategy[S]:
    """Return a strategy for values of `kind` with one of `stores`.

    Discards are drawn with chunks of at least 512 sectors only: kernel 7.2.7 divides by zero when it loads others, and
    dies of it.
    """
    from hypothesis import strategies as st

    @st.composite
    def values(draw: st.DrawFn) -> S:
        origin = draw(space.devices())
        cow = draw(st.sampled_from([ref for ref in space.refs if ref != origin]))
        store = draw(st.sampled_from(stores))
        most = space.refs[cow] // 2 if store is not Store.TRANSIENT else _MOST_SECTORS
        chunks = [1 << bit for bit in range(22) if 1 << bit <= most]
        zeroes = draw(st.booleans())
        if zeroes:
            chunks = [chunk for chunk in chunks if chunk >= _SAFE_DISCARD_CHUNK]
        elif store is not Store.TRANSIENT:
            chunks.append(0)
        return kind(
            origin=origin,
            cow=cow,
            store=store,
            chunk=draw(st.sampled_from(chunks)),
            discard_zeroes_cow=zeroes,
            discard_passdown_origin=zeroes and draw(st.booleans()),
        )

    return values()
