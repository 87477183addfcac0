"""verity: reads are checked against a tree of hashes; a block that does not match is never returned.

Sources: drivers/md/dm-verity-target.c (verity_ctr, verity_parse_opt_args, verity_status), drivers/md/dm-verity-fec.c
(verity_fec_parse_opt_args, verity_fec_ctr, verity_fec_status_table), drivers/md/dm-verity-verify-sig.c.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

from dmcore import validate
from dmcore.errors import SpecError
from dmcore.params import U64_MAX, Tokens, quote
from dmcore.target import Feature, Requirement, Status, Target
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Self

    from hypothesis.strategies import SearchStrategy

    from dmcore.ref import Ref
    from dmcore.target import Lookup, Resolve, Space

__all__ = ["DIGEST_SIZES", "Fec", "OnCorruption", "OnError", "Verity", "VerityStatus"]

DIGEST_SIZES = {
    "blake2b-160": 20, "blake2b-256": 32, "blake2b-384": 48, "blake2b-512": 64, "md5": 16, "sha1": 20, "sha224": 28,
    "sha256": 32, "sha384": 48, "sha512": 64, "sha3-224": 28, "sha3-256": 32, "sha3-384": 48, "sha3-512": 64, "sm3": 32,
}  # fmt: skip
"""Bytes of a digest of well-known algorithms, by their kernel names; others can be used too, unchecked."""

_MAX_BLOCK = 1 << 30
_PAGE = 4096
_MAX_ONCE = 2**31 - 1
_ROOT = "00" * 32
_ONE_BLOCK = f"1 {{dev}} {{dev}} 4096 4096 1 1 sha256 {_ROOT} -"
_FEC = "verity.fec"
_ON_ERROR = "verity.on_error"
_SIGNATURE = "verity.signature"
_LARGE = "verity.large_data_blocks"


class OnCorruption(StrEnum):
    """What happens instead of EIO when a block does not match; the values are the kernel's words."""

    IGNORE = "ignore_corruption"
    RESTART = "restart_on_corruption"
    PANIC = "panic_on_corruption"


class OnError(StrEnum):
    """What happens when a device below fails with an I/O error; the values are the kernel's words."""

    RESTART = "restart_on_error"
    PANIC = "panic_on_error"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerityStatus(Status):
    """Status of a verity target.

    Attributes:
        corrupted: Whether a block did not match since the table was loaded, corrected ones included ("C", else "V").
        corrected: Blocks that FEC corrected; None where the kernel does not count them, or without FEC.
    """

    corrupted: bool
    corrected: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fec:
    """Reed-Solomon parity that repairs blocks which do not match.

    Attributes:
        dev: Device with the parity.
        start: Its first block on `dev`, in data blocks.
        blocks: Blocks that are covered: the data, then what stands on the hash device from `hash_start` on. At least
            the data and the tree.
        roots: Parity bytes for each code word of 255, 2..24.

    Raises:
        SpecError: A value out of range.
    """

    dev: Ref
    start: int = 0
    blocks: int
    roots: int = 2

    def __post_init__(self) -> None:
        validate.ref("dev", self.dev)
        validate.integer("start", self.start, 0, U64_MAX, "blocks")
        validate.integer("blocks", self.blocks, 1, U64_MAX, "blocks")
        validate.integer("roots", self.roots, 2, 24, "bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verity(Target):
    """A read-only device whose every block is checked when it is read.

    A block that does not match fails with EIO, and so does the whole request that it is part of; the status says
    `corrupted` from then on. Blocks of the tree are read when needed and stay checked while they are cached, until the
    device is suspended. The table must be loaded read-only (`Device` does) and has only this line.

    Attributes:
        version: Hash type, 0 or 1: salt behind the data and packed digests, or salt before it and padded ones.
        data: Device with the data, used from its start.
        hashes: Device with the tree; may be the same.
        data_block_size: Bytes: a power of two, 512..65536, at most the kernel's page; more than 4096 needs the feature
            "verity.large_data_blocks". The line's length is a whole number of them.
        hash_block_size: Bytes: a power of two, 512..2^30, and at least two digests.
        data_blocks: Blocks that the tree covers, 0..2^64-1; the line serves at most these.
        hash_start: Where the tree begins on `hashes`, in hash blocks.
        algorithm: Hash, by its kernel name. One that the kernel lacks is refused with ENOENT.
        root: Digest of the tree's top block.
        salt: Any number of bytes.
        on_corruption: What to do instead of EIO; None for EIO. RESTART reboots, PANIC panics.
        on_error: What to do besides EIO when a device below fails. Needs "verity.on_error".
        ignore_zero_blocks: Blocks that should be zeros are returned as zeros, and never read.
        check_at_most_once: Check a block at its first read only; at most 2^31-1 blocks.
        fec: Parity that repairs what does not match; `hash_block_size` must equal `data_block_size`. Needs "verity.fec".
        try_verify_in_tasklet: Check without a queue where possible.
        root_hash_sig_key_desc: Description of a key of type "user" in a keyring, which holds the PKCS#7 signature of the
            root's hex digits. Needs "verity.signature". EKEYREJECTED and others if it does not match.

    Raises:
        SpecError: A value the kernel's constructor would refuse (EINVAL, E2BIG).
    """

    kernel_name: ClassVar[str] = "verity"
    kernel_module: ClassVar[str] = "dm-verity"
    readonly: ClassVar[bool] = True
    singleton: ClassVar[bool] = True
    features: ClassVar[Mapping[str, Feature]] = {
        _FEC: Feature(f"{_ONE_BLOCK} 8 use_fec_from_device {{dev}} fec_blocks 2 fec_start 2 fec_roots 2"),
        _ON_ERROR: Feature(f"{_ONE_BLOCK} 1 restart_on_error"),
        _SIGNATURE: Feature(
            f"{_ONE_BLOCK} 2 root_hash_sig_key_desc pytest-dm:no-such-key", fails=errno.ENOKEY
        ),
        _LARGE: Feature(f"1 {{dev}} {{dev}} 8192 8192 1 1 sha256 {_ROOT} -"),
    }

    version: int = 1
    data: Ref
    hashes: Ref
    data_block_size: int = 4096
    hash_block_size: int = 4096
    data_blocks: int
    hash_start: int = 0
    algorithm: str = "sha256"
    root: bytes
    salt: bytes = b""
    on_corruption: OnCorruption | None = None
    on_error: OnError | None = None
    ignore_zero_blocks: bool = False
    check_at_most_once: bool = False
    fec: Fec | None = None
    try_verify_in_tasklet: bool = False
    root_hash_sig_key_desc: str | None = None

    def __post_init__(self) -> None:
        validate.integer("version", self.version, 0, 1)
        validate.ref("data", self.data)
        validate.ref("hashes", self.hashes)
        _power("data_block_size", self.data_block_size, 1 << 16)
        _power("hash_block_size", self.hash_block_size, _MAX_BLOCK)
        most = U64_MAX // (self.data_block_size // SECTOR)
        validate.integer("data_blocks", self.data_blocks, 0, most, "data blocks")
        most = U64_MAX // (self.hash_block_size // SECTOR)
        validate.integer("hash_start", self.hash_start, 0, most, "hash blocks")
        _word("algorithm", self.algorithm, "sha256")
        validate.instance("root", self.root, bytes, "bytes.fromhex('...')")
        validate.instance("salt", self.salt, bytes, "bytes.fromhex('...')")
        self._check_root()
        if self.on_corruption is not None:
            validate.instance("on_corruption", self.on_corruption, OnCorruption, "OnCorruption.IGNORE")
        if self.on_error is not None:
            validate.instance("on_error", self.on_error, OnError, "OnError.PANIC")
        for field in ("ignore_zero_blocks", "check_at_most_once", "try_verify_in_tasklet"):
            validate.boolean(field, getattr(self, field))
        if self.check_at_most_once and self.data_blocks > _MAX_ONCE:
            reason = f"check_at_most_once works with at most {_MAX_ONCE} blocks"
            raise SpecError("data_blocks", self.data_blocks, reason)
        if self.root_hash_sig_key_desc is not None:
            _word("root_hash_sig_key_desc", self.root_hash_sig_key_desc, "image:signature")
        if self.fec is not None:
            self._check_fec(self.fec)

    def _check_root(self) -> None:
        size = DIGEST_SIZES.get(self.algorithm, len(self.root))
        if len(self.root) != size or not size:
            raise SpecError(
                "root", self.root.hex(), f"a digest of {self.algorithm} has {size or 'some'} bytes"
            )
        if self.hash_block_size < 2 * size:
            raise SpecError("hash_block_size", self.hash_block_size, f"must hold two digests of {size} bytes")

    def _check_fec(self, fec: Fec) -> None:
        validate.instance("fec", fec, Fec, "Fec(dev=Ref('7:2'), blocks=1000)")
        if self.hash_block_size != self.data_block_size:
            raise SpecError("hash_block_size", self.hash_block_size, "must be the data block size for fec")
        if fec.start > U64_MAX // (self.data_block_size // SECTOR):
            raise SpecError("fec.start", fec.start, "is behind the last block that a device can have")
        least = self.data_blocks + self.tree_blocks
        if fec.blocks < least:
            raise SpecError("fec.blocks", fec.blocks, f"must be at least the {least} blocks of data and tree")

    @property
    def tree_blocks(self) -> int:
        """Hash blocks that the tree takes from `hash_start` on; 0 for a tree of one data block or none."""
        per_block = 1 << ((self.hash_block_size // len(self.root)).bit_length() - 1)
        blocks, total = self.data_blocks, 0
        while blocks > 1:
            blocks = -(-blocks // per_block)
            total += blocks
        return total

    def refs(self) -> tuple[Ref, ...]:
        """Return the devices with data, tree and, if there is one, parity."""
        return (self.data, self.hashes, *((self.fec.dev,) if self.fec else ()))

    def _options(self, resolve: Resolve) -> Iterator[str]:
        """Yield the optional words in the order the kernel prints them."""
        if self.on_corruption is not None:
            yield self.on_corruption
        if self.on_error is not None:
            yield self.on_error
        for field in ("ignore_zero_blocks", "check_at_most_once", "try_verify_in_tasklet"):
            if getattr(self, field):
                yield field
        if self.fec is not None:
            yield from ("use_fec_from_device", resolve(self.fec.dev), "fec_blocks", str(self.fec.blocks))
            yield from ("fec_start", str(self.fec.start), "fec_roots", str(self.fec.roots))
        if self.root_hash_sig_key_desc is not None:
            yield from ("root_hash_sig_key_desc", quote(self.root_hash_sig_key_desc))

    def encode(self, resolve: Resolve) -> str:
        """Return `<version> <data> <hashes> <bytes> <bytes> <blocks> <start> <algorithm> <root> <salt> [<#> <words>]`."""
        words = [
            str(self.version), resolve(self.data), resolve(self.hashes), str(self.data_block_size),
            str(self.hash_block_size), str(self.data_blocks), str(self.hash_start), quote(self.algorithm),
            self.root.hex(), self.salt.hex() or "-",
        ]  # fmt: skip
        options = list(self._options(resolve))
        return " ".join([*words, str(len(options)), *options] if options else words)

    @classmethod
    def decode(cls, tokens: Tokens, lookup: Lookup) -> Self:
        """Read the ten words and the optional ones; words behind those announced are ignored.

        Words of `fec` without a device are ignored, as the kernel does.
        """
        version = tokens.wrapping("the version, 0 or 1", bits=32)
        data = lookup(tokens.word("the data device"))
        hashes = lookup(tokens.word("the hash device"))
        data_block_size = tokens.wrapping("the data block size in bytes", bits=32)
        hash_block_size = tokens.wrapping("the hash block size in bytes", bits=32)
        data_blocks = tokens.wrapping("the number of data blocks")
        hash_start = tokens.wrapping("the tree's first block")
        algorithm = tokens.word("the hash's name")
        root = _hex(tokens, "the root digest in hex")
        salt = b"" if tokens.peek() == "-" and tokens.word("-") else _hex(tokens, "the salt in hex, or -")
        options = _Options()
        if len(tokens):
            options.decode(tokens, lookup)
        return cls(
            version=version,
            data=data,
            hashes=hashes,
            data_block_size=data_block_size,
            hash_block_size=hash_block_size,
            data_blocks=data_blocks,
            hash_start=hash_start,
            algorithm=algorithm,
            root=root,
            salt=salt,
            on_corruption=options.on_corruption,
            on_error=options.on_error,
            ignore_zero_blocks="ignore_zero_blocks" in options.flags,
            check_at_most_once="check_at_most_once" in options.flags,
            fec=options.fec(),
            try_verify_in_tasklet="try_verify_in_tasklet" in options.flags,
            root_hash_sig_key_desc=options.signature,
        )

    def parse_status(self, text: str) -> VerityStatus:
        """Read `V` or `C` and, on newer kernels, the number of corrected blocks, or `-`."""
        tokens = Tokens(text, target=self.kernel_name)
        letter = tokens.word("V or C")
        if letter not in {"V", "C"}:
            raise tokens.error("V or C", back=1)
        corrected = None
        if tokens.peek() == "-":
            tokens.word("-")
        elif len(tokens):
            corrected = tokens.strict("the number of corrected blocks", bits=64)
        tokens.done()
        return VerityStatus(corrupted=letter == "C", corrected=corrected)

    def needs(self) -> Requirement:
        """Return the need for the features that this value uses."""
        given = {
            _FEC: self.fec is not None,
            _ON_ERROR: self.on_error is not None,
            _SIGNATURE: self.root_hash_sig_key_desc is not None,
            _LARGE: self.data_block_size > _PAGE,
        }
        return Requirement(self.kernel_name, features=frozenset(name for name, used in given.items() if used))

    def check(self, start: int, length: int) -> None:
        """Refuse a line that does not begin the device, or is longer than the data; half a block fails at resume."""
        if start:
            raise SpecError("start", start, "verity must be the only line of its table")
        block = self.data_block_size // SECTOR
        if length > self.data_blocks * block:
            raise SpecError("data_blocks", self.data_blocks, f"are fewer than the line's {length} sectors")
        if length % block:
            reason = f"the line's {length} sectors are not a whole number of blocks"
            raise SpecError("data_block_size", self.data_block_size, reason)

    @classmethod
    def strategy(cls, space: Space) -> SearchStrategy[Verity]:
        """Draw trees that fit the devices; signatures are left out, since they need a key in a keyring."""
        from hypothesis import strategies as st

        sizes = [size for size in (512, 1024, 2048, 4096) if space.length * SECTOR % size == 0]
        algorithms = ["md5", "sha1", "sha224", "sha256"]
        choice = st.none() | st.sampled_from(OnError)
        on_error = choice if _ON_ERROR in space.features else st.none()

        @st.composite
        def values(draw: st.DrawFn) -> Verity:
            data = draw(space.devices())
            hashes = draw(st.sampled_from(sorted(space.refs)))
            size = draw(st.sampled_from(sizes))
            with_fec = _FEC in space.features and draw(st.booleans())
            algorithm = draw(st.sampled_from(algorithms))
            blocks = space.length * SECTOR // size
            value = Verity(
                version=draw(st.integers(0, 1)),
                data=data,
                hashes=hashes,
                data_block_size=size,
                hash_block_size=size if with_fec else draw(st.sampled_from([512, 1024, 4096, 8192])),
                data_blocks=draw(st.integers(blocks, min(2 * blocks, space.refs[data] * SECTOR // size))),
                algorithm=algorithm,
                root=draw(st.binary(min_size=DIGEST_SIZES[algorithm], max_size=DIGEST_SIZES[algorithm])),
                salt=draw(st.binary(max_size=40)),
                on_corruption=draw(st.none() | st.sampled_from(OnCorruption)),
                on_error=draw(on_error),
                ignore_zero_blocks=draw(st.booleans()),
                check_at_most_once=draw(st.booleans()),
                try_verify_in_tasklet=draw(st.booleans()),
            )
            room = space.refs[hashes] * SECTOR // value.hash_block_size - value.tree_blocks
            fec = draw(_fecs(value, space)) if with_fec else None
            return replace(value, hash_start=draw(st.integers(0, room)), fec=fec)

        return values().filter(lambda value: value.hash_start >= 0)


def _fecs(value: Verity, space: Space) -> SearchStrategy[Fec]:
    """Draw parity for the tree's blocks."""
    from hypothesis import strategies as st

    return st.builds(
        Fec,
        dev=st.sampled_from(sorted(space.refs)),
        start=st.integers(0, 8),
        blocks=st.just(value.data_blocks + value.tree_blocks),
        roots=st.integers(2, 24),
    )


def _power(field: str, value: int, most: int) -> None:
    validate.integer(field, value, SECTOR, most, "bytes")
    if value & (value - 1):
        raise SpecError(field, value, "must be a power of two")


def _word(field: str, value: object, example: str) -> None:
    validate.instance(field, value, str, repr(example))
    if not value or "\0" in str(value):
        raise SpecError(field, value, "must be a word, not empty and without NUL")


def _hex(tokens: Tokens, expected: str) -> bytes:
    word = tokens.word(expected)
    try:
        found = bytes.fromhex(word)
    except ValueError:
        found = b""
    if 2 * len(found) != len(word):
        raise tokens.error(expected, back=1)
    return found


class _Options:
    """What the optional words said."""

    def __init__(self) -> None:
        self.on_corruption: OnCorruption | None = None
        self.on_error: OnError | None = None
        self.flags: set[str] = set()
        self.parity: Ref | None = None
        self.numbers: dict[str, int] = {}
        self.signature: str | None = None

    def decode(self, tokens: Tokens, lookup: Lookup) -> None:
        """Read `<#words> <words>`, and drop what stands behind them."""
        behind = len(tokens) - 1 - tokens.ranged("the number of optional words", 0, len(tokens) - 1)
        while len(tokens) > behind:
            word = tokens.keyword(
                *OnCorruption, *OnError, "ignore_zero_blocks", "check_at_most_once", "try_verify_in_tasklet",
                "use_fec_from_device", "fec_blocks", "fec_start", "fec_roots", "root_hash_sig_key_desc",
            )  # fmt: skip
            if word in {*OnCorruption, *OnError}:
                self._mode(tokens, word)
            elif word in {"ignore_zero_blocks", "check_at_most_once", "try_verify_in_tasklet"}:
                self.flags.add(word)
            elif len(tokens) <= behind:
                raise tokens.error(f"the value of {word} among the words announced")
            else:
                self._valued(tokens, lookup, word)
        for _ in tokens:
            pass

    def _mode(self, tokens: Tokens, word: str) -> None:
        corruption = word in {*OnCorruption}
        if (self.on_corruption if corruption else self.on_error) is not None:
            raise tokens.error("one way to handle each failure", back=1)
        if corruption:
            self.on_corruption = OnCorruption(word)
        else:
            self.on_error = OnError(word)

    def _valued(self, tokens: Tokens, lookup: Lookup, word: str) -> None:
        if word == "use_fec_from_device":
            self.parity = lookup(tokens.word("the device with the parity"))
        elif word == "root_hash_sig_key_desc":
            self.signature = tokens.word("the description of the key with the signature")
        elif word == "fec_roots":
            self.numbers[word] = tokens.wrapping("the number of roots, 2..24", bits=8)
            if not 2 <= self.numbers[word] <= 24:
                raise tokens.error("the number of roots, 2..24", back=1)
        else:
            self.numbers[word] = tokens.wrapping("a number of blocks")

    def fec(self) -> Fec | None:
        if self.parity is None:
            return None
        return Fec(
            dev=self.parity,
            start=self.numbers.get("fec_start", 0),
            blocks=self.numbers.get("fec_blocks", 0),
            roots=self.numbers.get("fec_roots", 0),
        )
