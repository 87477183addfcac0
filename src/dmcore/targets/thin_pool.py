"""thin-pool: blocks of a data device, handed out to thin devices as they are written.

Sources: drivers/md/dm-thin.c (pool_ctr, parse_pool_features, pool_preresume, pool_message, pool_status, emit_flags).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

from dmcore import validate
from dmcore.errors import SpecError
from dmcore.params import U64_MAX, Tokens
from dmcore.target import Silent, Status, Target
from dmcore.targets._persistent import Failed, Unreadable, Usage, Word, check_block, given_up, number_or_dash

if TYPE_CHECKING:
    from typing import Self

    from hypothesis.strategies import SearchStrategy

    from dmcore.ref import Ref
    from dmcore.target import Lookup, Resolve, Space

__all__ = [
    "MAX_DEV_ID",
    "CreateSnap",
    "CreateThin",
    "Delete",
    "Discards",
    "Failed",
    "NoSpace",
    "PoolMode",
    "ReleaseMetadataSnap",
    "ReserveMetadataSnap",
    "SetTransactionId",
    "ThinPool",
    "ThinPoolStatus",
    "Unreadable",
    "Usage",
]

MAX_DEV_ID = 2**24 - 1
"""Highest id of a thin device."""

_MIN_BLOCK = 128
_MAX_BLOCK = 2097152
_MOST_FEATURES = 4
_FEATURES = ("skip_block_zeroing", "ignore_discard", "no_discard_passdown", "read_only", "error_if_no_space")


class PoolMode(StrEnum):
    """What the pool can do now; the values are the kernel's words."""

    WRITABLE = "rw"
    READ_ONLY = "ro"
    OUT_OF_DATA_SPACE = "out_of_data_space"


class Discards(StrEnum):
    """What becomes of discards; the values are the kernel's words."""

    PASSED_DOWN = "discard_passdown"
    UNMAP_ONLY = "no_discard_passdown"
    IGNORED = "ignore_discard"


class NoSpace(StrEnum):
    """What becomes of a write that finds no free block; the values are the kernel's words."""

    ERROR = "error_if_no_space"
    QUEUE = "queue_if_no_space"


@dataclass(frozen=True, slots=True)
class ThinPoolStatus(Status):
    """Status of a pool that works, or one that has become read-only.

    Attributes:
        transaction_id: Number that `SetTransactionId` sets, for the use of whoever manages the pool.
        metadata: Use of the metadata device, in blocks of 4 KiB.
        data: Use of the data device, in the pool's blocks; a block that several thin devices share counts once.
        held_root: Metadata block of the metadata snapshot; None without one.
        mode: Whether it can be written, can only be read, or has no free data block.
        discards: What becomes of discards now: not passed down either if the data device knows none.
        no_space: What becomes of a write that finds no free block. Queued ones fail after the time in the module
            parameter `no_space_timeout` (60 s); then this says `ERROR`.
        needs_check: The metadata has to be checked (`thin_check`, `thin_repair`) before the pool is writable again.
        metadata_low_water: An event comes when fewer free blocks of metadata than this are left.
    """

    transaction_id: int
    metadata: Usage
    data: Usage
    held_root: int | None
    mode: PoolMode
    discards: Discards
    no_space: NoSpace
    needs_check: bool
    metadata_low_water: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinPool(Target):
    """A pool of blocks; `Thin` devices on it read and write. The pool's own device takes no reads and writes of use.

    The metadata device is formatted if its first 4 KiB are zeros. Its pool then always has that block size. The line's
    length is the size of the data device that is used: more than before makes the pool larger. Less is refused by the
    resume (EINVAL), which leaves the device suspended with the refused table: load one that is large enough. The pool's
    line must be the only one of its table.

    Attributes:
        metadata: Device for the metadata; 48 bytes for each block of data do, and never less than 2 MiB is wise.
        data: Device for the data; not `metadata`.
        block_sectors: Sectors of a block: a multiple of 128 (64 KiB), up to 2097152 (1 GiB).
        low_water: An event comes once when fewer free blocks of data than this are left, 0..2^64-1.
        skip_block_zeroing: Let what the data device held before show where a new block is not written in full.
        ignore_discard: Refuse discards; cannot be changed by a reload.
        no_discard_passdown: Discards unmap blocks, and are not sent to the data device.
        read_only: Refuse whatever changes the metadata: needs a formatted device, and thin devices can be read, and
            written where they need no new block.
        error_if_no_space: A write without a free block fails with ENOSPC at once, rather than wait for the pool to grow.

    Not all five of the last ones together: the kernel takes four words.

    Raises:
        SpecError: A value the kernel's constructor would refuse (EINVAL).
    """

    kernel_name: ClassVar[str] = "thin-pool"
    kernel_module: ClassVar[str] = "dm-thin-pool"
    singleton: ClassVar[bool] = True

    metadata: Ref
    data: Ref
    block_sectors: int = _MIN_BLOCK
    low_water: int = 0
    skip_block_zeroing: bool = False
    ignore_discard: bool = False
    no_discard_passdown: bool = False
    read_only: bool = False
    error_if_no_space: bool = False

    def __post_init__(self) -> None:
        validate.ref("metadata", self.metadata)
        validate.ref("data", self.data)
        if self.data == self.metadata:
            raise SpecError("data", self.data, "must not be the metadata device")
        check_block("block_sectors", self.block_sectors, _MIN_BLOCK, _MAX_BLOCK)
        validate.integer("low_water", self.low_water, 0, U64_MAX, "blocks")
        for field in _FEATURES:
            validate.boolean(field, getattr(self, field))
        if len(self._words()) > _MOST_FEATURES:
            raise SpecError(
                "no_discard_passdown",
                self.no_discard_passdown,
                "is one too many of the features; ignore_discard includes it",
            )

    def _words(self) -> list[str]:
        """Return the features' words in the order the kernel prints them."""
        return [field for field in _FEATURES if getattr(self, field)]

    def refs(self) -> tuple[Ref, ...]:
        """Return the metadata and the data device."""
        return self.metadata, self.data

    def encode(self, resolve: Resolve) -> str:
        """Return `<metadata> <data> <block> <low water> [<#features> <features>]`."""
        head = f"{resolve(self.metadata)} {resolve(self.data)} {self.block_sectors} {self.low_water}"
        words = self._words()
        return " ".join([head, str(len(words)), *words]) if words else head

    @classmethod
    def decode(cls, tokens: Tokens, lookup: Lookup) -> Self:
        """Read what `encode` writes, in any order; words behind the features announced are ignored."""
        metadata = lookup(tokens.word("the metadata device"))
        data = lookup(tokens.word("the data device"))
        block = tokens.strict("the block size in sectors", bits=64)
        low_water = tokens.strict("the low water mark in blocks", bits=64)
        words: set[str] = set()
        if len(tokens):
            count = tokens.ranged("the number of features", 0, _MOST_FEATURES)
            words.update(tokens.keyword(*_FEATURES) for _ in range(count))
            for _ in tokens:
                pass
        return cls(
            metadata=metadata,
            data=data,
            block_sectors=block,
            low_water=low_water,
            **{field: field in words for field in _FEATURES},
        )

    def check(self, start: int, length: int) -> None:
        """Refuse a line that does not begin its table: a pool must be the only one."""
        del length
        if start:
            raise SpecError("start", start, "a pool's line must be the only one of its table")

    def parse_status(self, text: str) -> ThinPoolStatus | Failed | Unreadable:
        """Read the ten words of a pool's status, or "Fail" or "Error"."""
        tokens = Tokens(text, target=self.kernel_name)
        if (end := given_up(tokens)) is not None:
            return end
        transaction_id = tokens.strict("the transaction id", bits=64)
        metadata = Usage.decode(tokens, "blocks of metadata")
        data = Usage.decode(tokens, "blocks of data")
        status = ThinPoolStatus(
            transaction_id,
            metadata,
            data,
            number_or_dash(tokens, "the held root"),
            PoolMode(tokens.keyword(*PoolMode)),
            Discards(tokens.keyword(*Discards)),
            NoSpace(tokens.keyword(*NoSpace)),
            tokens.keyword("needs_check", "-") != "-",
            tokens.strict("the low water mark of metadata", bits=64),
        )
        tokens.done()
        return status

    @classmethod
    def strategy(cls, space: Space) -> SearchStrategy[ThinPool]:
        """Draw two devices, a block size and any features; `read_only` needs metadata that is formatted so."""
        from hypothesis import strategies as st

        @st.composite
        def values(draw: st.DrawFn) -> ThinPool:
            data = draw(space.devices())
            metadata = draw(st.sampled_from([ref for ref in space.refs if ref != data]))
            features = draw(st.sets(st.sampled_from(_FEATURES), max_size=_MOST_FEATURES))
            return ThinPool(
                metadata=metadata,
                data=data,
                block_sectors=_MIN_BLOCK * draw(st.integers(1, _MAX_BLOCK // _MIN_BLOCK)),
                low_water=draw(st.integers(0, U64_MAX)),
                **dict.fromkeys(features, True),
            )

        return values()


def _check_id(field: str, value: object) -> None:
    validate.integer(field, value, 0, MAX_DEV_ID)


@dataclass(frozen=True, slots=True)
class CreateThin(Silent):
    """Make an empty thin device. EEXIST if there is one of that id.

    Every message commits the metadata; its reply does not tell whether that failed, the pool's status does. While the
    pool is read-only or failed, every message is refused (EOPNOTSUPP).

    Attributes:
        dev_id: Its id, 0..2^24-1.
    """

    dev_id: int

    def __post_init__(self) -> None:
        _check_id("dev_id", self.dev_id)

    def encode(self) -> str:
        """Return `create_thin <id>`."""
        return f"create_thin {self.dev_id}"


@dataclass(frozen=True, slots=True)
class CreateSnap(Silent):
    """Make a thin device that shares the blocks of another. EEXIST, or ENODATA if there is no such origin.

    A device of the origin must be suspended meanwhile (the kernel does not see to it), or its writes may show in the
    snapshot.

    Attributes:
        dev_id: Its id, 0..2^24-1.
        origin: Id of the device whose contents it begins with.
    """

    dev_id: int
    origin: int

    def __post_init__(self) -> None:
        _check_id("dev_id", self.dev_id)
        _check_id("origin", self.origin)

    def encode(self) -> str:
        """Return `create_snap <id> <origin>`."""
        return f"create_snap {self.dev_id} {self.origin}"


@dataclass(frozen=True, slots=True)
class Delete(Silent):
    """Delete a thin device and free what it alone uses. ENODATA if there is none, EBUSY while a table names it.

    Attributes:
        dev_id: Its id, 0..2^24-1.
    """

    dev_id: int

    def __post_init__(self) -> None:
        _check_id("dev_id", self.dev_id)

    def encode(self) -> str:
        """Return `delete <id>`."""
        return f"delete {self.dev_id}"


@dataclass(frozen=True, slots=True)
class SetTransactionId(Silent):
    """Set the transaction id if it is what is expected, else EINVAL.

    Attributes:
        current: The id expected, 0..2^64-1.
        new: The id to set, 0..2^64-1.
    """

    current: int
    new: int

    def __post_init__(self) -> None:
        validate.integer("current", self.current, 0, U64_MAX)
        validate.integer("new", self.new, 0, U64_MAX)

    def encode(self) -> str:
        """Return `set_transaction_id <current> <new>`."""
        return f"set_transaction_id {self.current} {self.new}"


@dataclass(frozen=True, slots=True)
class ReserveMetadataSnap(Word):
    """Keep a copy of the metadata as it is now for tools to read while the pool lives on. EBUSY if one is held."""

    text: ClassVar[str] = "reserve_metadata_snap"


@dataclass(frozen=True, slots=True)
class ReleaseMetadataSnap(Word):
    """Give up the copy of the metadata. EINVAL if there is none."""

    text: ClassVar[str] = "release_metadata_snap"
