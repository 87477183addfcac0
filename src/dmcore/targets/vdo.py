"""vdo: blocks kept once, and compressed.

Sources: drivers/md/dm-vdo/dm-vdo-target.c (parse_device_config, parse_one_key_value_pair, process_one_thread_config_spec,
vdo_status, process_vdo_message).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

from dmcore import validate
from dmcore.errors import SpecError
from dmcore.params import U32_MAX, U64_MAX, Tokens
from dmcore.ref import Ref
from dmcore.target import Message, Silent, Status, Target

if TYPE_CHECKING:
    from typing import Self

    from hypothesis.strategies import SearchStrategy

    from dmcore.target import Lookup, Resolve, Space

__all__ = [
    "Config",
    "Dump",
    "DumpOnShutdown",
    "IndexAction",
    "IndexMessage",
    "SetCompression",
    "Stats",
    "Vdo",
    "VdoMode",
    "VdoStatus",
]

_COUNTS = {
    "ack": (0, 100),
    "bio": (1, 100),
    "bioRotationInterval": (1, 1024),
    "cpu": (1, 100),
    "hash": (0, 100),
    "logical": (0, 60),
    "physical": (0, 16),
    "maxDiscard": (1, U32_MAX // 4096),
}
_SWITCHES = ("deduplication", "compression")
_CACHE_PER_ZONE = 2 * 2048


class VdoMode(StrEnum):
    """Whether it can be written; the values are the kernel's words."""

    NORMAL = "normal"
    RECOVERING = "recovering"
    READ_ONLY = "read-only"


@dataclass(frozen=True, slots=True)
class VdoStatus(Status):
    """Status of a vdo device.

    Attributes:
        dev: The device below, as "/dev/NAME".
        mode: Whether it can be written.
        recovering: Whether it rebuilds its counts after a crash.
        index: State of the deduplication index: "online", "offline", "opening", "closed", "error", "unknown" ...
        compressing: Whether blocks are compressed.
        used: Blocks of 4 KiB in use, its own included.
        total: Blocks of 4 KiB of the device below.
    """

    dev: Ref
    mode: VdoMode
    recovering: bool
    index: str
    compressing: bool
    used: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Vdo(Target):
    """A device of many 4 KiB blocks, kept on few: equal ones once, others compressed. Formatted by `vdoformat`.

    Only tables of version 4 are known here, the one that current tools write. The kernel prints the table's words as they were
    given, the device too.

    Attributes:
        dev: Device below.
        physical_blocks: Its size in blocks of 4 KiB, as formatted or larger.
        minimum_io: Smallest request, 512 or 4096 bytes.
        cache_blocks: Blocks of 4 KiB of the block map's cache, 0..2^32-1; at least 4096 for each of `logical`.
        era_length: How many changes of the block map may wait, 0..2^32-1 (1..16380 make sense).
        deduplication: Whether to keep equal blocks once; None for yes.
        compression: Whether to compress; None for no.
        ack, bio, bioRotationInterval, cpu, hash, logical, physical: Threads of each kind (0 or 1 to 100, 60, 16), and
            requests to one bio thread in a row (1..1024). The last three are all 0 or none is.
        maxDiscard: Blocks of 4 KiB of the largest discard, 1..1048575.

    Raises:
        SpecError: A value the kernel's constructor would refuse (EINVAL).
    """

    kernel_name: ClassVar[str] = "vdo"
    kernel_module: ClassVar[str] = "dm-vdo"
    kernel_since: ClassVar[str] = "6.9"
    singleton: ClassVar[bool] = True

    dev: Ref
    physical_blocks: int
    minimum_io: int = 4096
    cache_blocks: int = 32768
    era_length: int = 16380
    ack: int | None = None
    bio: int | None = None
    bioRotationInterval: int | None = None  # noqa: N815 - the kernel's word
    cpu: int | None = None
    hash: int | None = None
    logical: int | None = None
    physical: int | None = None
    maxDiscard: int | None = None  # noqa: N815 - the kernel's word
    deduplication: bool | None = None
    compression: bool | None = None

    def __post_init__(self) -> None:
        validate.ref("dev", self.dev)
        validate.integer("physical_blocks", self.physical_blocks, 0, U64_MAX, "blocks")
        validate.integer("minimum_io", self.minimum_io, 512, 4096, "bytes")
        if self.minimum_io not in {512, 4096}:
            raise SpecError("minimum_io", self.minimum_io, "must be 512 or 4096 bytes")
        validate.integer("cache_blocks", self.cache_blocks, 0, U32_MAX, "blocks")
        validate.integer("era_length", self.era_length, 0, U32_MAX)
        for field, (low, high) in _COUNTS.items():
            if getattr(self, field) is not None:
                validate.integer(field, getattr(self, field), low, high)
        for field in _SWITCHES:
            if getattr(self, field) is not None:
                validate.boolean(field, getattr(self, field))
        zones = [self.logical or 0, self.physical or 0, self.hash or 0]
        if any(zones) and not all(zones):
            raise SpecError("logical", self.logical, "logical, physical and hash are all 0 or none is")
        if self.cache_blocks < _CACHE_PER_ZONE * zones[0]:
            least = _CACHE_PER_ZONE * zones[0]
            raise SpecError(
                "cache_blocks", self.cache_blocks, f"must be {least} for {zones[0]} logical zones"
            )

    def refs(self) -> tuple[Ref, ...]:
        """Return the device below."""
        return (self.dev,)

    def encode(self, resolve: Resolve) -> str:
        """Return `V4 <dev> <blocks> <512 or 4096> <cache> <era> (<key> <value>)*`."""
        words = ["V4", resolve(self.dev)]
        words += map(str, (self.physical_blocks, self.minimum_io, self.cache_blocks, self.era_length))
        for field in _COUNTS:
            if getattr(self, field) is not None:
                words += [field, str(getattr(self, field))]
        for field in _SWITCHES:
            if getattr(self, field) is not None:
                words += [field, "on" if getattr(self, field) else "off"]
        return " ".join(words)

    @classmethod
    def decode(cls, tokens: Tokens, lookup: Lookup) -> Self:
        """Read what `encode` writes; of a key given twice the last counts, and unknown keys are refused."""
        if tokens.word("the table's version, V4") != "V4":
            raise tokens.error("V4", back=1)
        dev = lookup(tokens.word("a device"))
        blocks = tokens.strict("its blocks", bits=64)
        size = tokens.word("512 or 4096")
        if size not in {"512", "4096"}:
            raise tokens.error("512 or 4096", back=1)
        cache = tokens.strict("the cache's blocks")
        era = tokens.strict("the era's length")
        counts: dict[str, int] = {}
        switches: dict[str, bool] = {}
        while len(tokens):
            key = tokens.word("a key")
            if key in _COUNTS:
                counts[key] = tokens.strict(f"a number for {key}")
            elif key in _SWITCHES:
                value = tokens.word("on or off")
                if value not in {"on", "off"}:
                    raise tokens.error("on or off", back=1)
                switches[key] = value == "on"
            else:
                raise tokens.error(f"a key: {', '.join([*_COUNTS, *_SWITCHES])}", back=1)
        return cls(
            dev=dev,
            physical_blocks=blocks,
            minimum_io=int(size),
            cache_blocks=cache,
            era_length=era,
            **counts,
            deduplication=switches.get("deduplication"),
            compression=switches.get("compression"),
        )

    def check(self, start: int, length: int) -> None:
        """Refuse a length that is not whole blocks of 4 KiB."""
        del start
        if length % 8:
            raise SpecError("length", length, "must be whole blocks of 4 KiB")

    def parse_status(self, text: str) -> VdoStatus:
        """Read `<dev> <mode> <recovering or -> <index> <online or offline> <used> <total>`."""
        tokens = Tokens(text, target=self.kernel_name)
        dev = Ref(tokens.word("the device below"))
        mode = VdoMode(tokens.keyword(*VdoMode))
        recovering = tokens.keyword("recovering", "-") != "-"
        index = tokens.word("the index's state")
        compressing = tokens.keyword("online", "offline") == "online"
        used = tokens.strict("the blocks in use", bits=64)
        total = tokens.strict("all blocks", bits=64)
        tokens.done()
        return VdoStatus(dev, mode, recovering, index, compressing, used, total)

    @classmethod
    def strategy(cls, space: Space) -> SearchStrategy[Vdo]:
        """Draw any words; a kernel wants a device that was formatted, of several GiB."""
        from hypothesis import strategies as st

        if space.length % 8:
            return st.nothing()

        def counts(field: str) -> st.SearchStrategy[int | None]:
            return st.none() | st.integers(*_COUNTS[field])

        @st.composite
        def values(draw: st.DrawFn) -> Vdo:
            zones = draw(st.booleans())
            logical = draw(st.integers(1, 60)) if zones else 0
            return Vdo(
                dev=draw(st.sampled_from(list(space.refs))),
                physical_blocks=draw(st.integers(0, U64_MAX)),
                minimum_io=draw(st.sampled_from([512, 4096])),
                cache_blocks=draw(st.integers(_CACHE_PER_ZONE * logical, U32_MAX)),
                era_length=draw(st.integers(0, U32_MAX)),
                **{
                    field: draw(counts(field))
                    for field in ("ack", "bio", "bioRotationInterval", "cpu", "maxDiscard")
                },
                hash=draw(st.integers(1, 100)) if zones else draw(st.sampled_from([None, 0])),
                logical=logical if zones else draw(st.sampled_from([None, 0])),
                physical=draw(st.integers(1, 16)) if zones else draw(st.sampled_from([None, 0])),
                deduplication=draw(st.none() | st.booleans()),
                compression=draw(st.none() | st.booleans()),
            )

        return values()


@dataclass(frozen=True, slots=True)
class SetCompression(Silent):
    """Compress, or do not.

    Attributes:
        on: Which.
    """

    on: bool

    def __post_init__(self) -> None:
        validate.boolean("on", self.on)

    def encode(self) -> str:
        """Return `compression on` or `compression off`."""
        return f"compression {'on' if self.on else 'off'}"


class IndexAction(StrEnum):
    """What to do with the deduplication index; the values are the kernel's words."""

    CREATE = "index-create"
    CLOSE = "index-close"
    ENABLE = "index-enable"
    DISABLE = "index-disable"


@dataclass(frozen=True, slots=True)
class IndexMessage(Silent):
    """Do something with the deduplication index.

    Attributes:
        action: What.
    """

    action: IndexAction

    def __post_init__(self) -> None:
        validate.instance("action", self.action, IndexAction, "IndexAction.CLOSE")

    def encode(self) -> str:
        """Return the action."""
        return str(self.action)


@dataclass(frozen=True, slots=True)
class Dump(Silent):
    """Write the state to the kernel's log."""

    def encode(self) -> str:
        """Return `dump`."""
        return "dump"


@dataclass(frozen=True, slots=True)
class DumpOnShutdown(Silent):
    """Write the state to the kernel's log when the device goes."""

    def encode(self) -> str:
        """Return `dump-on-shutdown`."""
        return "dump-on-shutdown"


@dataclass(frozen=True, slots=True)
class Stats(Message[str]):
    """Ask for all counts; the reply is the kernel's text of nested `{ name : value, }`."""

    def encode(self) -> str:
        """Return `stats`."""
        return "stats"

    def parse_reply(self, reply: str) -> str:
        """Return the text as it is."""
        return reply


@dataclass(frozen=True, slots=True)
class Config(Message[str]):
    """Ask what the device was formatted with; the reply is the kernel's text, as of `Stats`."""

    def encode(self) -> str:
        """Return `config`."""
        return "config"

    def parse_reply(self, reply: str) -> str:
        """Return the text as it is."""
        return reply
