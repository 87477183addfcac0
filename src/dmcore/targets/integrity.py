"""integrity: a tag for each block, to find data that changed below, or to hold what a cipher above needs.

Sources: drivers/md/dm-integrity.c (dm_integrity_ctr, get_alg_and_key, initialize_superblock, dm_integrity_status,
dm_integrity_disable_recalculate).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

from dmcore import validate
from dmcore.errors import SpecError
from dmcore.params import U32_MAX, U64_MAX, Tokens
from dmcore.target import Feature, Leg, Requirement, Status, Target
from dmcore.targets._key import Key, decode_hex
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Self

    from hypothesis.strategies import SearchStrategy

    from dmcore.ref import Ref
    from dmcore.target import Features, Lookup, Resolve, Space

__all__ = ["Algorithm", "Integrity", "IntegrityStatus", "Key", "Mode"]

_MOST_WORDS = 18
_MOST_TAG = 255
_LONGEST_HASH = 32  # bytes, of the hashes that the strategy draws
_KEYED_DISCARDS = "integrity.allow_discards_keyed"
_FLAGS = (
    "recalculate", "reset_recalculate", "allow_discards", "allow_discards_keyed", "fix_padding", "fix_hmac",
    "legacy_recalculate",
)  # fmt: skip
_ALGORITHMS = ("internal_hash", "journal_crypt", "journal_mac")
_NUMBERS = {
    "journal_sectors": U32_MAX, "interleave_sectors": U32_MAX, "buffer_sectors": U32_MAX, "journal_watermark": 100,
    "commit_time": U32_MAX, "sectors_per_bit": U64_MAX, "bitmap_flush_interval": U32_MAX,
}  # fmt: skip


class Mode(StrEnum):
    """How data and tags are kept in step over a crash; the values are the kernel's words."""

    JOURNAL = "J"
    BITMAP = "B"
    DIRECT = "D"
    RECOVERY = "R"
    INLINE = "I"


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A hash or cipher of the kernel.

    Attributes:
        name: Its name in the kernel, such as "crc32c" or "hmac(sha256)"; without colon.
        key: Its key, None for one that takes none. No text shows it.
    """

    name: str
    key: Key | None = None

    def __post_init__(self) -> None:
        validate.instance("name", self.name, str, "'crc32c'")
        if not self.name or re.search(r"[\s\\:\0\xa0]", self.name):
            raise SpecError("name", self.name, "must be a word without white space, backslash and colon")
        if self.key is not None and not isinstance(self.key, Key):  # pyright: ignore[reportUnnecessaryIsInstance] - from callers without types
            raise SpecError("key", "(not shown)", f"must be a Key(b'...'), not {type(self.key).__name__}")

    def encode(self) -> str:
        """Return `<name>[:<key in hex>]`."""
        return self.name if self.key is None else f"{self.name}:{self.key.reveal().hex()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegrityStatus(Status):
    """Status of an integrity target.

    Attributes:
        mismatches: Requests that failed because a tag did not fit.
        provided_sectors: Sectors that the device could have; the usual length of its line.
        recalculated: Sector up to which tags were made anew; None if they are not.
    """

    mismatches: int
    provided_sectors: int
    recalculated: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Integrity(Target):
    """A device that keeps a tag beside each block.

    With `internal_hash` the tags are made and checked here: a block whose tag does not fit fails with EILSEQ (EIO in
    buffered I/O) and counts in the status. Without, they belong to the target above (`Crypt.tags`).

    The first load onto a device that begins with 4 KiB of zeros formats it, with what `journal_sectors` to `fix_hmac`
    say; later loads must say the same tag and block size, and take the rest from the disk. So one loads a short line first,
    reads `provided_sectors`, and loads that length. Blocks never written have no valid tags, unless recalculated.

    What kernels print for the numbers that are None here, and to what they round others, depends on the devices' sizes:
    `readback` leaves those fields as they are.

    Attributes:
        dev: Device below.
        start: First sector used on `dev`, 0..2^64-1; on `meta_device` if there is one.
        tag_size: Bytes of a tag, 1..255; None for those of `internal_hash`. A shorter tag cuts the hash.
        mode: How writes are kept whole. BITMAP needs `internal_hash`; RECOVERY neither checks nor writes; INLINE needs
            `internal_hash`, a disk with room for tags, and a kernel that has it (6.12 has).
        journal_sectors: Size of the journal, 0..2^32-1; rounded to its sections.
        interleave_sectors: Data between two pieces of tags, 0..2^32-1; rounded down to a power of two. With
            less than `buffer_sectors` kernels let tags overwrite data: see `overlaps`.
        buffer_sectors: Tags that are read and written at once, 0..2^32-1; rounded down to a power of two.
        journal_watermark: Per cent of the journal at which it is written back, 0..100.
        commit_time: Milliseconds after which the journal is committed, 0..2^32-1.
        meta_device: Device for everything but the data.
        block_size: Bytes of data for a tag: 512, 1024, 2048 or 4096. The line is a whole number of them.
        sectors_per_bit: Data for a bit of the bitmap, 0..2^64-1.
        bitmap_flush_interval: Milliseconds, 0..2^32-1; rounded up to the kernel's clock ticks.
        internal_hash: Makes the tags.
        journal_crypt: Encrypts the journal.
        journal_mac: Protects the journal's sector numbers.
        recalculate: Make all tags anew in the background. Needs `internal_hash`.
        reset_recalculate: Begin that from the start. Needs `internal_hash`.
        allow_discards: Pass discards down, with tags that fit any data. Needs `internal_hash`.
        allow_discards_keyed: The same with tags that tell. Needs a key for `internal_hash` and the feature
            "integrity.allow_discards_keyed".
        fix_padding: Waste less room for tags.
        fix_hmac: Make tags differ between devices.
        legacy_recalculate: Allow `recalculate` with a key, which else is refused (EOPNOTSUPP) without `fix_hmac`.

    Raises:
        SpecError: A value that the kernel's constructor would refuse (EINVAL, EOPNOTSUPP).
    """

    kernel_name: ClassVar[str] = "integrity"
    kernel_module: ClassVar[str] = "dm-integrity"
    singleton: ClassVar[bool] = True
    features: ClassVar[Mapping[str, Feature]] = {
        _KEYED_DISCARDS: Feature("{dev} 0 32 D 2 internal_hash:hmac(sha256):00 allow_discards_keyed"),
        "integrity.numbers_of_mode": Feature(  # prints those only that the mode uses: 7.2, and 6.12.118
            "{dev} 0 4 D 3 interleave_sectors:128 buffer_sectors:8 internal_hash:crc32c",
            prints="{dev} 0 4 D 3 interleave_sectors:128 buffer_sectors:8 internal_hash:crc32c",
        ),
    }

    dev: Ref
    start: int = 0
    tag_size: int | None = None
    mode: Mode = Mode.JOURNAL
    journal_sectors: int | None = None
    interleave_sectors: int | None = None
    buffer_sectors: int | None = None
    journal_watermark: int | None = None
    commit_time: int | None = None
    meta_device: Ref | None = None
    block_size: int = SECTOR
    sectors_per_bit: int | None = None
    bitmap_flush_interval: int | None = None
    internal_hash: Algorithm | None = None
    journal_crypt: Algorithm | None = None
    journal_mac: Algorithm | None = None
    recalculate: bool = False
    reset_recalculate: bool = False
    allow_discards: bool = False
    allow_discards_keyed: bool = False
    fix_padding: bool = False
    fix_hmac: bool = False
    legacy_recalculate: bool = False

    def __post_init__(self) -> None:
        validate.ref("dev", self.dev)
        validate.integer("start", self.start, 0, U64_MAX, "sectors")
        validate.instance("mode", self.mode, Mode, "Mode.JOURNAL")
        if self.tag_size is not None:
            validate.integer("tag_size", self.tag_size, 1, _MOST_TAG, "bytes")
        for field, most in _NUMBERS.items():
            if getattr(self, field) is not None:
                validate.integer(field, getattr(self, field), 0, most)
        if self.meta_device is not None:
            validate.ref("meta_device", self.meta_device)
        validate.integer("block_size", self.block_size, SECTOR, 4096, "bytes")
        if self.block_size & (self.block_size - 1):
            raise SpecError("block_size", self.block_size, "must be a power of two")
        for field in _ALGORITHMS:
            if getattr(self, field) is not None:
                validate.instance(field, getattr(self, field), Algorithm, "Algorithm('crc32c')")
        for field in _FLAGS:
            validate.boolean(field, getattr(self, field))
        self._check_hash()

    def _check_hash(self) -> None:
        if self.internal_hash is None:
            if self.tag_size is None:
                raise SpecError("tag_size", None, "must be given without internal_hash")
            if self.mode in {Mode.BITMAP, Mode.INLINE}:
                raise SpecError("mode", self.mode, "needs internal_hash")
            for field in ("recalculate", "reset_recalculate", "allow_discards", "allow_discards_keyed"):
                if getattr(self, field):
                    raise SpecError(field, getattr(self, field), "needs internal_hash")
        key = self.internal_hash is not None and self.internal_hash.key is not None
        if self.allow_discards_keyed and not key:
            raise SpecError(
                "allow_discards_keyed", self.allow_discards_keyed, "needs an internal_hash with a key"
            )
        mac = self.journal_mac is not None and self.journal_mac.key is not None
        unsafe = (key and not mac) if self.fix_hmac else (key or mac)
        if (self.recalculate or self.reset_recalculate) and unsafe and not self.legacy_recalculate:
            field = "recalculate" if self.recalculate else "reset_recalculate"
            reason = "with keys needs legacy_recalculate, or fix_hmac and a key for journal_mac too"
            raise SpecError(field, getattr(self, field), reason)

    @property
    def overlaps(self) -> bool:
        """Whether kernels let the tags of such a device overwrite data: less interleaved than buffered, without padding."""
        if self.fix_padding or self.meta_device is not None or self.mode in {Mode.INLINE, Mode.RECOVERY}:
            return False
        interleave = max(self.interleave_sectors or 32768, 8)
        buffers = 128 if self.buffer_sectors is None else max(self.buffer_sectors, 1)
        return interleave.bit_length() < buffers.bit_length()

    @property
    def run_sectors(self) -> int:
        """Most sectors that one piece of tags takes on `dev`, for hashes of up to 32 bytes; no device works with less than that and some data."""
        if self.meta_device is not None:
            return 0
        interleave = 1 << ((self.interleave_sectors or 32768).bit_length() - 1)
        return interleave * (self.tag_size or _LONGEST_HASH) // self.block_size

    @property
    def secret(self) -> bool:
        """Whether an algorithm has a key."""
        return any(given is not None and bool(given.key) for given in self._algorithms().values())

    def _algorithms(self) -> dict[str, Algorithm | None]:
        return {
            "internal_hash": self.internal_hash,
            "journal_crypt": self.journal_crypt,
            "journal_mac": self.journal_mac,
        }

    def refs(self) -> tuple[Ref, ...]:
        """Return the device below, and the one for the tags if there is one."""
        return (self.dev, *((self.meta_device,) if self.meta_device else ()))

    def _options(self, resolve: Resolve) -> Iterator[str]:
        if self.meta_device is not None:
            yield f"meta_device:{resolve(self.meta_device)}"
        if self.block_size != SECTOR:
            yield f"block_size:{self.block_size}"
        yield from (flag for flag in _FLAGS[:4] if getattr(self, flag))
        for field in _NUMBERS:
            if getattr(self, field) is not None:
                yield f"{field}:{getattr(self, field)}"
        yield from (flag for flag in _FLAGS[4:] if getattr(self, flag))
        for field, algorithm in self._algorithms().items():
            if algorithm is not None:
                yield f"{field}:{algorithm.encode()}"

    def encode(self, resolve: Resolve) -> str:
        """Return `<dev> <start> <tag size or -> <mode> <#words> <words>`, with keys as the kernel needs them."""
        tag = "-" if self.tag_size is None else str(self.tag_size)
        head = f"{resolve(self.dev)} {self.start} {tag} {self.mode}"
        options = list(self._options(resolve))
        return " ".join([head, str(len(options)), *options])

    @classmethod
    def decode(cls, tokens: Tokens, lookup: Lookup) -> Self:
        """Read `<dev> <start> <tag size or -> <mode> <#words> <words>`; words behind those announced are ignored."""
        leg = Leg.decode(tokens, lookup)
        tag = None
        if tokens.peek() == "-":
            tokens.word("-")
        else:
            tag = tokens.ranged("the tag size in bytes, or -", 1, _MOST_TAG)
        mode = tokens.word("the mode")
        if mode not in {*Mode}:
            raise tokens.error("J, B, D, R or I", back=1)
        options = _Options()
        options.decode(tokens, lookup)
        numbers, algorithms, flags = options.numbers, options.algorithms, options.flags
        return cls(
            dev=leg.dev,
            start=leg.offset,
            tag_size=tag,
            mode=Mode(mode),
            journal_sectors=numbers.get("journal_sectors"),
            interleave_sectors=numbers.get("interleave_sectors"),
            buffer_sectors=numbers.get("buffer_sectors"),
            journal_watermark=numbers.get("journal_watermark"),
            commit_time=numbers.get("commit_time"),
            meta_device=options.meta_device,
            block_size=numbers.get("block_size", SECTOR),
            sectors_per_bit=numbers.get("sectors_per_bit"),
            bitmap_flush_interval=numbers.get("bitmap_flush_interval"),
            internal_hash=algorithms.get("internal_hash"),
            journal_crypt=algorithms.get("journal_crypt"),
            journal_mac=algorithms.get("journal_mac"),
            recalculate="recalculate" in flags,
            reset_recalculate="reset_recalculate" in flags,
            allow_discards="allow_discards" in flags,
            allow_discards_keyed="allow_discards_keyed" in flags,
            fix_padding="fix_padding" in flags,
            fix_hmac="fix_hmac" in flags,
            legacy_recalculate="legacy_recalculate" in flags,
        )

    def readback(self, features: Features) -> Integrity:
        """Return the value with the flags that the superblock then has; see the class for its numbers."""
        del features
        mac = self.internal_hash is not None or self.journal_mac is not None
        return replace(
            self,
            recalculate=self.recalculate or self.reset_recalculate,
            allow_discards=self.allow_discards and not self.allow_discards_keyed,
            fix_hmac=self.fix_hmac and mac,
            fix_padding=self.fix_padding and self.meta_device is None,
        )

    def parse_status(self, text: str) -> IntegrityStatus:
        """Read `<mismatches> <provided sectors> <sector or ->`."""
        tokens = Tokens(text, target=self.kernel_name)
        mismatches = tokens.strict("the number of mismatches", bits=64)
        provided = tokens.strict("the provided sectors", bits=64)
        at = None
        if tokens.peek() == "-":
            tokens.word("-")
        else:
            at = tokens.strict("the recalculated sectors, or -", bits=64)
        tokens.done()
        return IntegrityStatus(mismatches=mismatches, provided_sectors=provided, recalculated=at)

    def needs(self) -> Requirement:
        """Return the need for the feature that this value uses."""
        used = frozenset({_KEYED_DISCARDS}) if self.allow_discards_keyed else frozenset[str]()
        return Requirement(self.kernel_name, features=used)

    def check(self, start: int, length: int) -> None:
        """Refuse a line that does not begin the device, or is not whole blocks."""
        if start:
            raise SpecError("start", start, "integrity must be the only line of its table")
        if length % (self.block_size // SECTOR):
            raise SpecError(
                "block_size", self.block_size, f"the line's {length} sectors are not a whole number of blocks"
            )

    @classmethod
    def strategy(cls, space: Space) -> SearchStrategy[Integrity]:
        """Draw values that format blank devices of 2 MiB or more, and leave a half for data.

        INLINE is left out, which needs a special disk, and what `overlaps`.
        """
        from hypothesis import strategies as st

        sizes = [size for size in (512, 1024, 2048, 4096) if space.length * SECTOR % size == 0]
        keyed_hash = Algorithm("hmac(sha256)", Key(b"\1\2\3\4"))
        hashes = st.sampled_from([Algorithm("crc32c"), Algorithm("sha256"), keyed_hash])
        ciphers = st.sampled_from(
            [Algorithm(f"{mode}(aes)", Key(bytes(range(16)))) for mode in ("ctr", "cbc")]
        )

        def numbers(most: int) -> SearchStrategy[int | None]:
            return st.none() | st.integers(0, most)

        @st.composite
        def values(draw: st.DrawFn) -> Integrity:
            mode = draw(st.sampled_from([Mode.JOURNAL, Mode.BITMAP, Mode.DIRECT]))
            internal = draw(hashes if mode is Mode.BITMAP else st.none() | hashes)
            keyed = internal is not None and internal.key is not None
            again = draw(st.sampled_from(["", "recalculate", "reset_recalculate"])) if internal else ""
            mac = draw(st.none() | st.just(keyed_hash))
            dev = draw(space.devices())
            others = [ref for ref, size in space.refs.items() if ref != dev and size >= space.refs[dev]]
            return cls(
                dev=dev,
                meta_device=draw(st.none() | st.sampled_from(others)) if others else None,
                tag_size=draw(st.integers(1, 32) if internal is None else st.none() | st.integers(1, 32)),
                mode=mode,
                journal_sectors=draw(numbers(300)),
                interleave_sectors=draw(st.none() | st.integers(256, 70_000)),
                buffer_sectors=draw(numbers(128)),
                journal_watermark=draw(numbers(100)),
                commit_time=draw(st.none() | st.integers(1, 100_000)),
                sectors_per_bit=draw(numbers(1 << 20)),
                bitmap_flush_interval=draw(st.none() | st.integers(1, 5000).map(lambda times: 20 * times)),
                block_size=draw(st.sampled_from(sizes)),
                internal_hash=internal,
                journal_crypt=draw(st.none() | ciphers),
                journal_mac=mac,
                recalculate=again == "recalculate",
                reset_recalculate=again == "reset_recalculate",
                allow_discards=internal is not None and draw(st.booleans()),
                allow_discards_keyed=keyed and _KEYED_DISCARDS in space.features and draw(st.booleans()),
                fix_padding=draw(st.booleans()),
                fix_hmac=draw(st.booleans()),
                legacy_recalculate=bool(again) and (keyed or mac is not None),
            )

        return values().filter(
            lambda value: not value.overlaps and value.run_sectors * 2 <= space.refs[value.dev]
        )


class _Options:
    """What the optional words said."""

    def __init__(self) -> None:
        self.flags: set[str] = set()
        self.numbers: dict[str, int] = {}
        self.algorithms: dict[str, Algorithm] = {}
        self.meta_device: Ref | None = None

    def decode(self, tokens: Tokens, lookup: Lookup) -> None:
        """Read `<#words> <words>`, and drop what stands behind them."""
        count = tokens.ranged("the number of optional words", 0, min(_MOST_WORDS, max(0, len(tokens) - 1)))
        behind = len(tokens) - count
        while len(tokens) > behind:
            word = tokens.word("an option")
            name, _, value = word.partition(":")
            if word in _FLAGS:
                self.flags.add(word)
            elif name == "meta_device" and ":" in word:
                self.meta_device = lookup(value)
            elif name in _ALGORITHMS and ":" in word:
                self.algorithms[name] = _decode_algorithm(tokens, value)
            else:
                self._number(tokens, name, value)
        for _ in tokens:
            pass

    def _number(self, tokens: Tokens, name: str, value: str) -> None:
        most = 4096 if name == "block_size" else _NUMBERS.get(name, -1)
        if not re.fullmatch(r"[0-9]{1,20}", value, re.ASCII):
            raise tokens.error("an option of integrity", back=1)
        number = int(value) % 2 ** (64 if name == "sectors_per_bit" else 32)
        if number > most:
            raise tokens.error("an option of integrity, or a number in its range", back=1)
        self.numbers[name] = number


def _decode_algorithm(tokens: Tokens, value: str) -> Algorithm:
    name, colon, digits = value.partition(":")
    key = None if not colon else Key(b"") if not digits else decode_hex(digits)
    if not name or (colon and key is None):
        raise tokens.error("<name of an algorithm>[:<key in hex>]", back=1)
    return Algorithm(name, key)
