"""writecache: writes go to a fast device first, and from there to the origin.

Sources: drivers/md/dm-writecache.c (writecache_ctr, writecache_status, writecache_message, writecache_io_hints,
calculate_memory_size).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

from dmcore import validate
from dmcore.errors import SpecError
from dmcore.params import U32_MAX, U64_MAX, Tokens
from dmcore.target import Feature, Requirement, Status, Target
from dmcore.targets._persistent import Word
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Self

    from hypothesis.strategies import SearchStrategy

    from dmcore.ref import Ref
    from dmcore.target import Lookup, Resolve, Space

__all__ = [
    "Cleaner",
    "ClearStats",
    "Flush",
    "FlushOnSuspend",
    "Medium",
    "Writecache",
    "WritecacheStatus",
]

_PAGE = 4096
_MAX_BLOCK = 65536
_MOST_WORDS = 18
_WATERMARK = 50, 45
_NUMBERS = {
    "start_sector": ("start_sector", U64_MAX),
    "high_watermark": ("high_watermark", 100),
    "low_watermark": ("low_watermark", 100),
    "writeback_jobs": ("writeback_jobs", U32_MAX),
    "autocommit_blocks": ("autocommit_blocks", U32_MAX),
    "autocommit_time": ("autocommit_ms", 3_600_000),
    "max_age": ("max_age_ms", 86_400_000),
    "pause_writeback": ("pause_writeback_ms", 60_000),
}
"""Options with a value: field and highest value, by the kernel's word."""

_WORDS = ("cleaner", "fua", "nofua", "metadata_only")


class Medium(StrEnum):
    """What the fast device is; the values are the kernel's words."""

    SSD = "s"
    PMEM = "p"


@dataclass(frozen=True, slots=True)
class WritecacheStatus(Status):
    """Status of a writecache. Counts begin at the load or `ClearStats`, and are of blocks but for the last two.

    Attributes:
        error: Whether the target failed.
        blocks: Blocks the cache has.
        free: Blocks that are free.
        writeback: Blocks being written back now.
        reads: Blocks read.
        read_hits: Blocks read from the cache.
        writes: Blocks written.
        write_hits_uncommitted: Blocks written over ones in the cache that were not committed.
        write_hits_committed: Blocks written over ones in the cache that were.
        writes_around: Blocks written to the origin past the cache.
        writes_allocate: Blocks written to free blocks of the cache.
        blocked_on_freelist: Writes that waited for a free block.
        flushes: Flushes.
        discards: Blocks discarded.
    """

    error: bool
    blocks: int
    free: int
    writeback: int
    reads: int
    read_hits: int
    writes: int
    write_hits_uncommitted: int
    write_hits_committed: int
    writes_around: int
    writes_allocate: int
    blocked_on_freelist: int
    flushes: int
    discards: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Writecache(Target):
    """A device whose writes are kept on a fast one until they are written back.

    The cache device is formatted if it begins with zeros, and then always has that block size. Removing the device does
    not write anything back: what was written and not flushed by `Flush` is on the cache device only.

    Attributes:
        medium: An SSD (any block device), or persistent memory (a DAX device; else EOPNOTSUPP).
        origin: The slow device, from its first sector on.
        cache: The fast device.
        block_size: Bytes: a power of two, 512..65536, no more than a page of the kernel (4096 bytes on x86), and no less
            than the logical blocks of both devices. The device's logical block, so that start and length of its
            line are multiples of it.
        start_sector: Where on `cache` the cache begins, below its end.
        high_watermark: Percent of used blocks at which writing back begins, 0..100; None for the default, 50.
        low_watermark: Percent of used blocks at which it ends, 0..100 and no more than the other; None for 45.
        writeback_jobs: Most writes to the origin at once, 0..2^32-1; None and 0 for no limit.
        autocommit_blocks: Commit after so many blocks, 0..2^32-1; None for 65536, or 64 of persistent memory.
        autocommit_ms: Commit after so many milliseconds, 0..3600000; None for 1000.
        max_age_ms: Write back what is older, 0..86400000; None for never.
        cleaner: Cache no new writes and write everything back.
        fua: Write back with FUA (True), or without and flush afterwards (False); None for the kernel's choice.
            Persistent memory only.
        metadata_only: Cache only requests that are marked as metadata.
        pause_writeback_ms: Write nothing back while the origin had other requests in the last so many milliseconds,
            0..60000; None for 3000. SSD only.

    Raises:
        SpecError: A value the kernel's constructor would refuse (EINVAL).
    """

    kernel_name: ClassVar[str] = "writecache"
    kernel_module: ClassVar[str] = "dm-writecache"
    features: ClassVar[Mapping[str, Feature]] = {
        f"writecache.block_{size}": Feature(f"s {{dev}} {{dev}} {size} 0", sectors=2 * _MAX_BLOCK // SECTOR)
        for size in (8192, 16384, 32768, _MAX_BLOCK)
    }

    medium: Medium = Medium.SSD
    origin: Ref
    cache: Ref
    block_size: int = _PAGE
    start_sector: int = 0
    high_watermark: int | None = None
    low_watermark: int | None = None
    writeback_jobs: int | None = None
    autocommit_blocks: int | None = None
    autocommit_ms: int | None = None
    max_age_ms: int | None = None
    cleaner: bool = False
    fua: bool | None = None
    metadata_only: bool = False
    pause_writeback_ms: int | None = None

    def __post_init__(self) -> None:
        validate.instance("medium", self.medium, Medium, "Medium.SSD")
        validate.ref("origin", self.origin)
        validate.ref("cache", self.cache)
        validate.integer("block_size", self.block_size, SECTOR, _MAX_BLOCK, "bytes")
        if self.block_size & (self.block_size - 1):
            raise SpecError("block_size", self.block_size, "must be a power of two")
        validate.integer("start_sector", self.start_sector, 0, U64_MAX, "sectors")
        for field, most in _NUMBERS.values():
            if getattr(self, field) is not None:
                validate.integer(field, getattr(self, field), 0, most)
        for field in ("cleaner", "metadata_only"):
            validate.boolean(field, getattr(self, field))
        if self.fua is not None:
            validate.boolean("fua", self.fua)
            if self.medium is not Medium.PMEM:
                raise SpecError("fua", self.fua, "is for persistent memory only")
        if self.pause_writeback_ms is not None and self.medium is not Medium.SSD:
            raise SpecError("pause_writeback_ms", self.pause_writeback_ms, "is for SSDs only")
        high, low = (
            default if given is None else given
            for given, default in zip((self.high_watermark, self.low_watermark), _WATERMARK, strict=True)
        )
        if low > high:
            field = "high_watermark" if self.low_watermark is None else "low_watermark"
            raise SpecError(
                field, getattr(self, field), f"the low watermark, {low}, is above the high, {high}"
            )

    def refs(self) -> tuple[Ref, ...]:
        """Return the origin and the cache device."""
        return self.origin, self.cache

    def _options(self) -> Iterator[str]:
        """Yield the options' words in the order the kernel prints them."""
        for word, (field, _) in _NUMBERS.items():
            if (
                word != "pause_writeback"
                and (value := getattr(self, field)) is not None
                and (value or word != "start_sector")
            ):
                yield f"{word} {value}"
        if self.cleaner:
            yield "cleaner"
        if self.fua is not None:
            yield "fua" if self.fua else "nofua"
        if self.metadata_only:
            yield "metadata_only"
        if self.pause_writeback_ms is not None:
            yield f"pause_writeback {self.pause_writeback_ms}"

    def encode(self, resolve: Resolve) -> str:
        """Return `<p or s> <origin> <cache> <block size> <#words> <options>`."""
        head = f"{self.medium} {resolve(self.origin)} {resolve(self.cache)} {self.block_size}"
        options = " ".join(self._options())
        return f"{head} {len(options.split())} {options}".rstrip()

    @classmethod
    def decode(cls, tokens: Tokens, lookup: Lookup) -> Self:
        """Read what `encode` writes, in any order; of an option given twice the last counts, words behind are ignored."""
        medium = Medium(tokens.keyword(*Medium))
        origin = lookup(tokens.word("the origin device"))
        cache = lookup(tokens.word("the cache device"))
        block_size = tokens.wrapping("the block size in bytes", bits=32)
        count = tokens.ranged("the number of option words", 0, _MOST_WORDS)
        if count > len(tokens):
            raise tokens.error(f"{count} option words")
        behind = len(tokens) - count
        numbers: dict[str, int] = {}
        words: set[str] = set()
        fua: bool | None = None
        while len(tokens) > behind:
            word = tokens.keyword(*_NUMBERS, *_WORDS)
            if word in {"fua", "nofua"}:
                fua = word == "fua"
            elif word in _WORDS:
                words.add(word)
            else:
                if len(tokens) == behind:
                    raise tokens.error(f"a value of {word} among the {count} words announced")
                numbers[_NUMBERS[word][0]] = _number(tokens, word)
        for _ in tokens:
            pass
        return cls(
            medium=medium,
            origin=origin,
            cache=cache,
            block_size=block_size,
            start_sector=numbers.pop("start_sector", 0),
            cleaner="cleaner" in words,
            fua=fua,
            metadata_only="metadata_only" in words,
            **numbers,
        )

    def needs(self) -> Requirement:
        """Return the need for blocks as large as the value's."""
        large = {f"writecache.block_{self.block_size}"} if self.block_size > _PAGE else set[str]()
        return Requirement(self.kernel_name, features=frozenset(large))

    def check(self, start: int, length: int) -> None:
        """Refuse a line that is not of whole blocks, which a device cannot be resumed with."""
        block = self.block_size // SECTOR
        if start % block or length % block:
            raise SpecError(
                "block_size",
                self.block_size,
                f"the line's {length} sectors from {start} on are not whole blocks",
            )

    def parse_status(self, text: str) -> WritecacheStatus:
        """Read the 14 numbers of the status."""
        tokens = Tokens(text, target=self.kernel_name)
        error = tokens.word("the error").removeprefix("-")
        if not (error.isascii() and error.isdecimal()):
            raise tokens.error("a number that says whether it failed", back=1)
        counts = (
            tokens.strict(f"the count of {field.name}", bits=64) for field in fields(WritecacheStatus)[1:]
        )
        status = WritecacheStatus(bool(error.strip("0")), *counts)
        tokens.done()
        return status

    @classmethod
    def strategy(cls, space: Space) -> SearchStrategy[Writecache]:
        """Draw devices, a block size that fits the line, and any options of an SSD; persistent memory is rare."""
        from hypothesis import strategies as st

        sizes = [
            size
            for size in (1 << bit for bit in range(9, 17))
            if not space.length % (size // SECTOR)
            and (size <= _PAGE or f"writecache.block_{size}" in space.features)
        ]

        def optional(most: int) -> SearchStrategy[int | None]:
            return st.none() | st.integers(0, most)

        @st.composite
        def values(draw: st.DrawFn) -> Writecache:
            origin = draw(space.devices())
            cache = draw(st.sampled_from([ref for ref in space.refs if ref != origin]))
            block_size = draw(st.sampled_from(sizes))
            low, high = sorted((draw(st.integers(0, 100)), draw(st.integers(0, 100))))
            return Writecache(
                origin=origin,
                cache=cache,
                block_size=block_size,
                start_sector=draw(st.integers(0, space.refs[cache] - 3 * _MAX_BLOCK // SECTOR)),
                high_watermark=draw(st.sampled_from([high, None])) if low <= _WATERMARK[0] else high,
                low_watermark=draw(st.sampled_from([low, None])) if high >= _WATERMARK[0] else low,
                writeback_jobs=draw(optional(U32_MAX)),
                autocommit_blocks=draw(optional(U32_MAX)),
                autocommit_ms=draw(optional(3_600_000)),
                max_age_ms=draw(optional(86_400_000)),
                cleaner=draw(st.booleans()),
                metadata_only=draw(st.booleans()),
                pause_writeback_ms=draw(optional(60_000)),
            )

        return values()


def _number(tokens: Tokens, word: str) -> int:
    """Take the value of an option, as the kernel's `sscanf` does."""
    most = _NUMBERS[word][1]
    value = tokens.wrapping(f"the value of {word}", bits=64 if most == U64_MAX else 32)
    if value > most:
        raise tokens.error(f"a value of {word} in 0..{most}", back=1)
    return value


@dataclass(frozen=True, slots=True)
class Flush(Word):
    """Write everything back, and wait for it. EBUSY while suspended, EIO if it failed."""

    text: ClassVar[str] = "flush"


@dataclass(frozen=True, slots=True)
class FlushOnSuspend(Word):
    """Write everything back at the next suspend: the last step before the device is replaced by its origin."""

    text: ClassVar[str] = "flush_on_suspend"


@dataclass(frozen=True, slots=True)
class Cleaner(Word):
    """Cache no new writes from now on, and write everything back in the background."""

    text: ClassVar[str] = "cleaner"


@dataclass(frozen=True, slots=True)
class ClearStats(Word):
    """Set the counts of the status to 0."""

    text: ClassVar[str] = "clear_stats"
