"""flakey: good service for `up` seconds, faults for `down` seconds, and again.

Sources: drivers/md/dm-flakey.c (flakey_ctr, parse_features, flakey_map, flakey_end_io, flakey_status). The module's
version is 1.5.0 on kernels that differ, so that features are probed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

from dmcore import validate
from dmcore.errors import SpecError
from dmcore.params import U32_MAX, U64_MAX
from dmcore.target import Feature, Leg, Requirement, Target

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Self

    from hypothesis.strategies import SearchStrategy

    from dmcore.params import Tokens
    from dmcore.ref import Ref
    from dmcore.target import Features, Lookup, Resolve, Space

__all__ = ["Corrupt", "Direction", "Flakey"]

ALWAYS = 1_000_000_000
"""The chance that means every request: `random_read_corrupt` and `random_write_corrupt` count in 10^-9."""

_MOST_WORDS = 11
_ERROR_READS = "flakey.error_reads"
_RANDOM = "flakey.random_corrupt"
_READS_TWICE = "flakey.error_reads_with_corrupt"
_WRITES_TWICE = "flakey.fail_writes_with_random_corrupt"


class Direction(StrEnum):
    """Which requests are corrupted; the values are the kernel's words."""

    READ = "r"
    WRITE = "w"


@dataclass(frozen=True, slots=True)
class Corrupt:
    """Change one byte of each request's data.

    Attributes:
        byte: Which byte of the request (of each piece, where it was split), counted from 1: 1..2^32-1. Shorter requests
            are left alone.
        direction: Reads (the data that is returned; kernels without the feature "flakey.error_reads" leave it
            unchanged where the device below is a loop or a disk) or writes (the data that is written; those kernels
            change the writer's own buffer with it).
        value: What the byte becomes, 0..255.
        flags: Only requests whose kernel flags (REQ_*, which differ from kernel to kernel) have all these bits, 32 bits;
            0 for all requests.

    Raises:
        SpecError: A value the kernel's constructor would refuse (EINVAL).
    """

    byte: int
    direction: Direction
    value: int
    flags: int = 0

    def __post_init__(self) -> None:
        validate.integer("byte", self.byte, 1, U32_MAX)
        validate.instance("direction", self.direction, Direction, "Direction.READ")
        validate.integer("value", self.value, 0, 255)
        validate.integer("flags", self.flags, 0, U32_MAX)

    def __str__(self) -> str:
        return f"corrupt_bio_byte {self.byte} {self.direction} {self.value} {self.flags}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flakey(Target):
    """A device with a schedule: in the first `up` seconds of each cycle it is linear, in the rest it has faults.

    The clock starts when the table is loaded (not when it is resumed) and runs on through suspends. `up=0` means always
    faults, `down=0` never; swapping such tables is the way to switch faults at an exact moment. Without any fault
    chosen, all reads and writes fail with EIO.

    Attributes:
        dev: Device below.
        offset: First sector used on `dev`, 0..2^64-1.
        up: Seconds of good service, 0..2^32-1.
        down: Seconds of faults, 0..2^32-1; `up + down` is 1..2^32-1.
        drop_writes: Writes, discards and flushes succeed and are not done.
        error_writes: Writes, discards and flushes fail with EIO; not with `drop_writes`.
        error_reads: Reads fail with EIO. Needs the feature "flakey.error_reads".
        corrupt: Change a certain byte; of writes only without `drop_writes` and `error_writes`.
        random_read_corrupt: Chance, in 10^-9, that a read gets one random byte at a random place: 0..10^9. None leaves
            the word away, 0 writes it without effect. Needs "flakey.random_corrupt".
        random_write_corrupt: The same for writes.

    Some kernels refuse `error_reads` together with corrupted reads, and writes that are dropped or failed together with
    `random_write_corrupt`; the features "flakey.error_reads_with_corrupt" and
    "flakey.fail_writes_with_random_corrupt" tell them apart.

    Raises:
        SpecError: A value every kernel's constructor would refuse (EINVAL).
    """

    kernel_name: ClassVar[str] = "flakey"
    kernel_module: ClassVar[str] = "dm-flakey"
    features: ClassVar[Mapping[str, Feature]] = {
        _ERROR_READS: Feature("{dev} 0 0 1 1 error_reads"),
        _RANDOM: Feature("{dev} 0 0 1 2 random_read_corrupt 1"),
        _READS_TWICE: Feature("{dev} 0 0 1 3 error_reads random_read_corrupt 1"),
        _WRITES_TWICE: Feature("{dev} 0 0 1 3 drop_writes random_write_corrupt 1"),
    }

    dev: Ref
    offset: int = 0
    up: int
    down: int
    drop_writes: bool = False
    error_writes: bool = False
    error_reads: bool = False
    corrupt: Corrupt | None = None
    random_read_corrupt: int | None = None
    random_write_corrupt: int | None = None

    def __post_init__(self) -> None:
        validate.ref("dev", self.dev)
        validate.integer("offset", self.offset, 0, U64_MAX, "sectors")
        validate.integer("up", self.up, 0, U32_MAX, "seconds")
        validate.integer("down", self.down, 0, U32_MAX, "seconds")
        if not 1 <= self.up + self.down <= U32_MAX:
            raise SpecError("down", self.down, f"up + down must be 1..{U32_MAX} seconds")
        for field in ("drop_writes", "error_writes", "error_reads"):
            validate.boolean(field, getattr(self, field))
        if self.corrupt is not None:
            validate.instance("corrupt", self.corrupt, Corrupt, "Corrupt(1, Direction.READ, 0)")
        for field in ("random_read_corrupt", "random_write_corrupt"):
            if getattr(self, field) is not None:
                validate.integer(field, getattr(self, field), 0, ALWAYS)
        if self.drop_writes and self.error_writes:
            raise SpecError("error_writes", self.error_writes, "conflicts with drop_writes")
        if (self.drop_writes or self.error_writes) and self._corrupts(Direction.WRITE):
            raise SpecError("corrupt", self.corrupt, "writes that are dropped or failed cannot be corrupted")

    def _corrupts(self, direction: Direction) -> bool:
        return self.corrupt is not None and self.corrupt.direction is direction

    def _no_effect(self) -> bool:
        """Whether nothing is chosen that a kernel with all features would do: such a one then fails everything."""
        return not (
            self.drop_writes
            or self.error_writes
            or self.error_reads
            or self.corrupt
            or self.random_read_corrupt
            or self.random_write_corrupt
        )

    def refs(self) -> tuple[Ref, ...]:
        """Return the device below."""
        return (self.dev,)

    def _faults(self) -> Iterator[str]:
        """Yield the features' words in the order the kernel prints them."""
        if self.error_reads:
            yield "error_reads"
        if self.drop_writes:
            yield "drop_writes"
        if self.error_writes:
            yield "error_writes"
        if self.corrupt is not None:
            yield str(self.corrupt)
        if self.random_read_corrupt is not None:
            yield f"random_read_corrupt {self.random_read_corrupt}"
        if self.random_write_corrupt is not None:
            yield f"random_write_corrupt {self.random_write_corrupt}"

    def encode(self, resolve: Resolve) -> str:
        """Return `<dev> <offset> <up> <down> [<#words> <words>]`."""
        head = f"{resolve(self.dev)} {self.offset} {self.up} {self.down}"
        faults = " ".join(self._faults())
        return f"{head} {faults.count(' ') + 1} {faults}" if faults else head

    @classmethod
    def decode(cls, tokens: Tokens, lookup: Lookup) -> Self:
        """Read `<dev> <offset> <up> <down> [<#words> <words>]`; words behind those announced are ignored.

        A fault given twice is refused, as every kernel does for `drop_writes`, `error_writes` and `error_reads`, and
        the newest for all.
        """
        leg = Leg.decode(tokens, lookup)
        up = tokens.ranged("the up interval in seconds", 0, U32_MAX)
        down = tokens.ranged("the down interval in seconds", 0, U32_MAX)
        faults = _decode_faults(tokens) if len(tokens) else _Faults()
        return cls(
            dev=leg.dev,
            offset=leg.offset,
            up=up,
            down=down,
            drop_writes="drop_writes" in faults.words,
            error_writes="error_writes" in faults.words,
            error_reads="error_reads" in faults.words,
            corrupt=faults.corrupt,
            random_read_corrupt=faults.random.get("random_read_corrupt"),
            random_write_corrupt=faults.random.get("random_write_corrupt"),
        )

    def readback(self, features: Features) -> Flakey:
        """Return the value without chances of 0; kernels with "flakey.error_reads" print no fault as both errors."""
        nothing = self._no_effect() and _ERROR_READS in features
        return Flakey(
            dev=self.dev,
            offset=self.offset,
            up=self.up,
            down=self.down,
            drop_writes=self.drop_writes,
            error_writes=self.error_writes or nothing,
            error_reads=self.error_reads or nothing,
            corrupt=self.corrupt,
            random_read_corrupt=self.random_read_corrupt or None,
            random_write_corrupt=self.random_write_corrupt or None,
        )

    def needs(self) -> Requirement:
        """Return the need for the features that this value uses."""
        given = {
            _ERROR_READS: self.error_reads,
            _RANDOM: self.random_read_corrupt is not None or self.random_write_corrupt is not None,
            _READS_TWICE: self.error_reads
            and (self._corrupts(Direction.READ) or bool(self.random_read_corrupt)),
            _WRITES_TWICE: (self.drop_writes or self.error_writes) and bool(self.random_write_corrupt),
        }
        return Requirement(
            self.kernel_name, features=frozenset(name for name, needed in given.items() if needed)
        )

    @classmethod
    def strategy(cls, space: Space) -> SearchStrategy[Flakey]:
        """Draw any schedule, and any faults that the kernel's features allow together."""
        from hypothesis import assume
        from hypothesis import strategies as st

        chance = st.none() | st.integers(0, ALWAYS)
        chance = chance if _RANDOM in space.features else st.none()
        corrupt = st.builds(
            Corrupt,
            st.integers(1, U32_MAX),
            st.sampled_from(Direction),
            st.integers(0, 255),
            st.integers(0, U32_MAX),
        )

        @st.composite
        def values(draw: st.DrawFn) -> Flakey:
            leg = draw(space.legs())
            up = draw(st.integers(0, U32_MAX))
            writes = draw(st.sampled_from(["", "drop_writes", "error_writes"]))
            changed = draw(st.none() | corrupt)
            assume(not (writes and changed and changed.direction is Direction.WRITE))
            value = Flakey(
                dev=leg.dev,
                offset=leg.offset,
                up=up,
                down=draw(st.integers(0 if up else 1, U32_MAX - up)) if up < U32_MAX else 0,
                drop_writes=writes == "drop_writes",
                error_writes=writes == "error_writes",
                error_reads=_ERROR_READS in space.features and draw(st.booleans()),
                corrupt=changed,
                random_read_corrupt=draw(chance),
                random_write_corrupt=draw(chance),
            )
            assume(value.needs().features <= space.features)
            return value

        return values()


class _Faults:
    """What the feature words said."""

    def __init__(self) -> None:
        self.words: set[str] = set()
        self.corrupt: Corrupt | None = None
        self.random: dict[str, int] = {}


def _decode_faults(tokens: Tokens) -> _Faults:
    """Read `<#words> <words>`, and drop what stands behind them."""
    count = tokens.ranged("the number of feature words", 0, _MOST_WORDS)
    behind = len(tokens) - count
    faults = _Faults()
    while len(tokens) > behind:
        word = tokens.keyword(
            "drop_writes",
            "error_writes",
            "error_reads",
            "corrupt_bio_byte",
            "random_read_corrupt",
            "random_write_corrupt",
        )
        if word in faults.words:
            raise tokens.error(f"{word} only once", back=1)
        faults.words.add(word)
        values = 4 if word == "corrupt_bio_byte" else 1 if word.startswith("random") else 0
        if len(tokens) - behind < values:
            raise tokens.error(f"{values} values of {word} among the {count} words announced")
        if values == 4:
            faults.corrupt = _decode_corrupt(tokens)
        elif values:
            faults.random[word] = tokens.ranged("a chance in 10^-9", 0, ALWAYS)
    for _ in tokens:
        pass
    return faults


def _decode_corrupt(tokens: Tokens) -> Corrupt:
    return Corrupt(
        tokens.ranged("the byte to corrupt, counted from 1", 1, U32_MAX),
        Direction(tokens.keyword(*Direction)),
        tokens.ranged("the byte's new value", 0, 255),
        tokens.ranged("the requests' flags", 0, U32_MAX),
    )
