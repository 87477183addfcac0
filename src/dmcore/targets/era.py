"""era: a linear device that keeps a record of which blocks were written since when.

Sources: drivers/md/dm-era-target.c (era_ctr, era_preresume, era_postsuspend, era_status, era_message, perform_rpc).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dmcore import validate
from dmcore.params import U32_MAX, Tokens
from dmcore.target import Status, Target
from dmcore.targets._persistent import (
    Unreadable,
    Usage,
    Word,
    check_block,
    metadata_usage,
    number_or_dash,
)

if TYPE_CHECKING:
    from typing import Self

    from hypothesis.strategies import SearchStrategy

    from dmcore.ref import Ref
    from dmcore.target import Lookup, Resolve, Space

__all__ = [
    "Checkpoint",
    "DropMetadataSnap",
    "Era",
    "EraStatus",
    "TakeMetadataSnap",
    "Unreadable",
    "Usage",
]

_MIN_BLOCK = 8


@dataclass(frozen=True, slots=True)
class EraStatus(Status):
    """Status of an era target.

    Attributes:
        metadata: Use of the metadata device, in blocks of 4 KiB.
        era: The present era; blocks written from now on belong to it.
        metadata_snap: Metadata block of the snapshot; None without one.
    """

    metadata: Usage
    era: int
    metadata_snap: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Era(Target):
    """All of a device, and a record of the era in which each block was written last.

    An era ends with `Checkpoint`, with `TakeMetadataSnap`, and whenever the device is suspended. The metadata device is
    formatted if its first 4 KiB are zeros, and then always has that block size. While the device is suspended, reading
    its status and sending it a message wait until it is resumed, and cannot be interrupted.

    Attributes:
        metadata: Device for the metadata.
        origin: Device for the data, from its first sector on.
        block_sectors: Sectors of a block: a multiple of 8 (4 KiB), up to 2^32-8.

    Raises:
        SpecError: A value the kernel's constructor would refuse (EINVAL).
    """

    kernel_name: ClassVar[str] = "era"
    kernel_module: ClassVar[str] = "dm-era"

    metadata: Ref
    origin: Ref
    block_sectors: int = _MIN_BLOCK

    def __post_init__(self) -> None:
        validate.ref("metadata", self.metadata)
        validate.ref("origin", self.origin)
        check_block("block_sectors", self.block_sectors, _MIN_BLOCK, U32_MAX)

    def refs(self) -> tuple[Ref, ...]:
        """Return the metadata device and the origin."""
        return self.metadata, self.origin

    def encode(self, resolve: Resolve) -> str:
        """Return `<metadata> <origin> <block>`."""
        return f"{resolve(self.metadata)} {resolve(self.origin)} {self.block_sectors}"

    @classmethod
    def decode(cls, tokens: Tokens, lookup: Lookup) -> Self:
        """Read `<metadata> <origin> <block>`."""
        metadata = lookup(tokens.word("the metadata device"))
        origin = lookup(tokens.word("the origin device"))
        block = tokens.wrapping("the block size in sectors", bits=32)
        tokens.done()
        return cls(metadata=metadata, origin=origin, block_sectors=block)

    def parse_status(self, text: str) -> EraStatus | Unreadable:
        """Read `8 <used>/<total> <era> <snapshot or ->`, or "Error"."""
        tokens = Tokens(text, target=self.kernel_name)
        if len(tokens) == 1 and tokens.peek() == "Error":
            return Unreadable()
        status = EraStatus(
            metadata_usage(tokens),
            tokens.strict("the era"),
            number_or_dash(tokens, "the metadata snapshot"),
        )
        tokens.done()
        return status

    @classmethod
    def strategy(cls, space: Space) -> SearchStrategy[Era]:
        """Draw any two devices (both may be the same to the kernel; here they differ) and a block size."""
        from hypothesis import strategies as st

        def of(origin: Ref) -> SearchStrategy[Era]:
            return st.builds(
                Era,
                metadata=st.sampled_from([ref for ref in space.refs if ref != origin]),
                origin=st.just(origin),
                block_sectors=st.integers(1, U32_MAX // _MIN_BLOCK).map(lambda count: count * _MIN_BLOCK),
            )

        return space.devices().flatmap(of)


@dataclass(frozen=True, slots=True)
class Checkpoint(Word):
    """End the present era."""

    text: ClassVar[str] = "checkpoint"


@dataclass(frozen=True, slots=True)
class TakeMetadataSnap(Word):
    """End the present era, and keep a copy of the metadata for tools to read. EINVAL if one is kept."""

    text: ClassVar[str] = "take_metadata_snap"


@dataclass(frozen=True, slots=True)
class DropMetadataSnap(Word):
    """Give up the copy of the metadata. EINVAL if there is none."""

    text: ClassVar[str] = "drop_metadata_snap"
