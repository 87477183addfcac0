"""dust: bad blocks by command, which heal when they are written.

Sources: drivers/md/dm-dust.c (dust_ctr, dust_map_read, dust_map_write, dust_message, dust_status).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dmcore import validate
from dmcore.errors import ParseError, SpecError
from dmcore.params import U64_MAX, Tokens
from dmcore.ref import Ref
from dmcore.target import Leg, Message, Silent, Status, Target
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from typing import Self

    from hypothesis.strategies import SearchStrategy

    from dmcore.target import Lookup, Resolve, Space

__all__ = [
    "AddBadBlock",
    "ClearBadBlocks",
    "CountBadBlocks",
    "Disable",
    "Dust",
    "DustStatus",
    "Enable",
    "ListBadBlocks",
    "QueryBlock",
    "Quiet",
    "RemoveBadBlock",
]

_MAX_BLOCK = 2097152 * SECTOR


@dataclass(frozen=True, slots=True)
class DustStatus(Status):
    """Status of a dust target.

    Attributes:
        dev: The device below, as "major:minor".
        enabled: Whether listed blocks fail ("fail_read_on_bad_block"), else everything passes ("bypass").
        quiet: Whether the kernel log is spared a line for each block added, removed or hit.
    """

    dev: Ref
    enabled: bool
    quiet: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Dust(Target):
    """A device with a list of bad blocks, empty at first, and switched off at first (`Enable` switches it on).

    Then a read that touches a listed block fails with EIO; a write to one passes and takes it off the list, or fails
    with EIO as often as `AddBadBlock.write_failures` said, before it does. Blocks are numbered from the start of `dev`,
    whatever `offset` is. A flush counts as a write to the block at `offset` if the line starts at sector 0, and a
    discard as a write to the first of its blocks only. List and switch live through suspend and resume; a new table
    begins anew.

    Attributes:
        dev: Device below.
        offset: First sector used on `dev`, 0..2^64-1. If it is not a multiple of the block size, a request that
            straddles two blocks counts for the first only.
        block_size: Bytes: a power of two, 512..2^30, and at most the line's length.

    Raises:
        SpecError: A value the kernel's constructor would refuse (EINVAL).
    """

    kernel_name: ClassVar[str] = "dust"
    kernel_module: ClassVar[str] = "dm-dust"

    dev: Ref
    offset: int = 0
    block_size: int = SECTOR

    def __post_init__(self) -> None:
        validate.ref("dev", self.dev)
        validate.integer("offset", self.offset, 0, U64_MAX, "sectors")
        validate.integer("block_size", self.block_size, SECTOR, _MAX_BLOCK, "bytes")
        if self.block_size & (self.block_size - 1):
            raise SpecError("block_size", self.block_size, "must be a power of two")

    def refs(self) -> tuple[Ref, ...]:
        """Return the device below."""
        return (self.dev,)

    def encode(self, resolve: Resolve) -> str:
        """Return `<dev> <offset> <block size>`."""
        return f"{resolve(self.dev)} {self.offset} {self.block_size}"

    @classmethod
    def decode(cls, tokens: Tokens, lookup: Lookup) -> Self:
        """Read `<dev> <offset> <block size>`."""
        leg = Leg.decode(tokens, lookup)
        block_size = tokens.strict("the block size in bytes")
        tokens.done()
        return cls(dev=leg.dev, offset=leg.offset, block_size=block_size)

    def check(self, start: int, length: int) -> None:
        """Refuse a block larger than the line."""
        del start
        if self.block_size // SECTOR > length:
            raise SpecError("block_size", self.block_size, f"is more than the line's {length} sectors")

    def parse_status(self, text: str) -> DustStatus:
        """Read `<dev> bypass|fail_read_on_bad_block verbose|quiet`."""
        tokens = Tokens(text, target=self.kernel_name)
        status = DustStatus(
            Ref(tokens.word("the device below")),
            tokens.keyword("bypass", "fail_read_on_bad_block") != "bypass",
            tokens.keyword("verbose", "quiet") == "quiet",
        )
        tokens.done()
        return status

    @classmethod
    def strategy(cls, space: Space) -> SearchStrategy[Dust]:
        """Draw any part of a device, and any block size that fits the line."""
        from hypothesis import strategies as st

        sizes = [1 << bit for bit in range(9, 31) if 1 << bit <= space.length * SECTOR]
        pairs = st.tuples(space.legs(), st.sampled_from(sizes))
        return pairs.map(lambda pair: Dust(dev=pair[0].dev, offset=pair[0].offset, block_size=pair[1]))


def _check_block(block: int) -> None:
    validate.integer("block", block, 0, U64_MAX)


@dataclass(frozen=True, slots=True)
class AddBadBlock(Silent):
    """List a block. EINVAL if it is listed, or lies behind the end of the device below.

    Attributes:
        block: Number of the block on the device below, 0..2^64-1.
        write_failures: How many writes to it fail before one passes and heals it, 0..255.

    Raises:
        SpecError: A number out of range.
    """

    block: int
    write_failures: int = 0

    def __post_init__(self) -> None:
        _check_block(self.block)
        validate.integer("write_failures", self.write_failures, 0, 255)

    def encode(self) -> str:
        """Return `addbadblock <block> [<write failures>]`."""
        count = f" {self.write_failures}" if self.write_failures else ""
        return f"addbadblock {self.block}{count}"


@dataclass(frozen=True, slots=True)
class RemoveBadBlock(Silent):
    """Take a block off the list. EINVAL if it is not listed.

    Attributes:
        block: Number of the block on the device below, 0..2^64-1.
    """

    block: int

    def __post_init__(self) -> None:
        _check_block(self.block)

    def encode(self) -> str:
        """Return `removebadblock <block>`."""
        return f"removebadblock {self.block}"


@dataclass(frozen=True, slots=True)
class QueryBlock(Message[bool]):
    """Ask whether a block is listed.

    Attributes:
        block: Number of the block on the device below, 0..2^64-1.
    """

    block: int

    def __post_init__(self) -> None:
        _check_block(self.block)

    def encode(self) -> str:
        """Return `queryblock <block>`."""
        return f"queryblock {self.block}"

    def parse_reply(self, reply: str) -> bool:
        """Return whether the block is listed."""
        head = f"dust_query_block: block {self.block} "
        return _choice(reply, f"{head}found in badblocklist", f"{head}not found in badblocklist")


@dataclass(frozen=True, slots=True)
class CountBadBlocks(Message[int]):
    """Ask how many blocks are listed."""

    def encode(self) -> str:
        """Return `countbadblocks`."""
        return "countbadblocks"

    def parse_reply(self, reply: str) -> int:
        """Return the number of listed blocks."""
        tokens = Tokens(reply, target=Dust.kernel_name)
        tokens.keyword("countbadblocks:")
        count = tokens.strict("the number of blocks", bits=64)
        tokens.keyword("badblock(s)")
        tokens.keyword("found")
        tokens.done()
        return count


@dataclass(frozen=True, slots=True)
class ListBadBlocks(Message[tuple[int, ...]]):
    """Ask which blocks are listed."""

    def encode(self) -> str:
        """Return `listbadblocks`."""
        return "listbadblocks"

    def parse_reply(self, reply: str) -> tuple[int, ...]:
        """Return the listed blocks, ascending."""
        if reply.strip() == "No blocks in badblocklist":
            return ()
        tokens = Tokens(reply, target=Dust.kernel_name)
        if not len(tokens):
            raise tokens.error("a block's number")
        return tuple(tokens.strict("a block's number", bits=64) for _ in range(len(tokens)))


@dataclass(frozen=True, slots=True)
class ClearBadBlocks(Message[bool]):
    """Take all blocks off the list."""

    def encode(self) -> str:
        """Return `clearbadblocks`."""
        return "clearbadblocks"

    def parse_reply(self, reply: str) -> bool:
        """Return whether there were any."""
        return _choice(
            reply, "dust_clear_badblocks: badblocks cleared", "dust_clear_badblocks: no badblocks found"
        )


@dataclass(frozen=True, slots=True)
class Enable(Silent):
    """Let listed blocks fail from now on."""

    def encode(self) -> str:
        """Return `enable`."""
        return "enable"


@dataclass(frozen=True, slots=True)
class Disable(Silent):
    """Let everything pass from now on; the list stays."""

    def encode(self) -> str:
        """Return `disable`."""
        return "disable"


@dataclass(frozen=True, slots=True)
class Quiet(Silent):
    """Switch the kernel log lines off, or on again (`DustStatus.quiet` says which)."""

    def encode(self) -> str:
        """Return `quiet`."""
        return "quiet"


def _choice(reply: str, yes: str, no: str) -> bool:
    """Return which of two texts the reply is."""
    text = reply.strip()
    if text not in {yes, no}:
        raise ParseError(reply, 0, reply or None, f"{yes!r} or {no!r}", Dust.kernel_name)
    return text == yes
