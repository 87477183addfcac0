"""The Target contract: one frozen value says everything about one target's parameters.

From the value come the kernel's table words (`encode`), the way back (`decode`), what the kernel will print for it
(`readback`), the typed status (`parse_status`), what the kernel must offer (`needs`), the length rules (`check`) and
a hypothesis strategy (`strategy`). A value never knows whether a kernel or a model is below it.

A new target is one file in `dmcore/targets/`, one test file, one docs line.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from dmcore import validate
from dmcore.errors import ParseError
from dmcore.params import U64_MAX, Tokens
from dmcore.ref import Ref

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from hypothesis.strategies import SearchStrategy

__all__ = [
    "NO_FEATURES",
    "Feature",
    "Features",
    "Leg",
    "Lookup",
    "Message",
    "NoStatus",
    "Requirement",
    "Resolve",
    "Silent",
    "Space",
    "Status",
    "Target",
]

R = TypeVar("R")

Resolve = Callable[[Ref], str]
"""Gives the word that stands for a device in the text being made: "7:0" for the kernel, the name itself for people."""

Lookup = Callable[[str], Ref]
"""The way back: the `Ref` for a device word of a table."""

Features = frozenset[str]
"""Names of the probed features a kernel has, as "flakey.error_reads": the keys of every `Target.features`."""

NO_FEATURES: Features = frozenset()


@dataclass(frozen=True, slots=True)
class Leg:
    """A device below and where its part begins, as many targets name them.

    Attributes:
        dev: Device below.
        offset: First sector used on `dev`, 0..2^64-1.

    Raises:
        SpecError: Not a device, or not such a number.
    """

    dev: Ref
    offset: int = 0

    def __post_init__(self) -> None:
        validate.ref("dev", self.dev)
        validate.integer("offset", self.offset, 0, U64_MAX, "sectors")

    def encode(self, resolve: Resolve) -> str:
        """Return the two words, device and offset."""
        return f"{resolve(self.dev)} {self.offset}"

    @classmethod
    def decode(cls, tokens: Tokens, lookup: Lookup) -> Leg:
        """Take two words, device and offset; an offset of more than 64 bits is refused."""
        return cls(lookup(tokens.word("a device")), tokens.wrapping("the first sector on the device"))


@dataclass(frozen=True, slots=True)
class Feature:
    """Something a target can do on some kernels only, found by loading a table, never by a version number.

    It is there if the kernel accepts `params` and everything else that is given here holds as well.

    Attributes:
        params: Table parameters to load on a tiny device; `{dev}` stands for a device below, which reads as zeros.
        prints: The kernel prints exactly these parameters for the loaded table (trailing blanks aside).
        refuses: The kernel does not accept these parameters (it did when it looked at less of them).
        fails: The kernel understands `params`, and refuses them with this errno: what they name does not exist.
        limit: This file of the live device's `queue` folder in sysfs has a number above 0.
        busy: The live device, suspended, answers this message with EBUSY.
        sectors: Length of the device.
    """

    params: str
    prints: str | None = None
    refuses: str | None = None
    fails: int | None = None
    limit: str | None = None
    busy: str | None = None
    sectors: int = 8


@dataclass(frozen=True, slots=True)
class Requirement:
    """What a kernel must offer to load one value.

    Attributes:
        target: Kernel name of the target.
        version: Lowest version of the target.
        features: Features of that target, by their names in `Target.features`.
    """

    target: str
    version: tuple[int, int, int] = (0, 0, 0)
    features: Features = NO_FEATURES


class Status:
    """Base of the typed statuses; subclasses are frozen dataclasses."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class NoStatus(Status):
    """What a target without anything to report reports."""


class Message(ABC, Generic[R]):
    """Base of the typed messages; subclasses are frozen dataclasses of a target's file."""

    __slots__ = ()

    secret: ClassVar[bool] = False
    """Whether the text holds a key: it is sent as secure data, and no error shows it."""

    @abstractmethod
    def encode(self) -> str:
        """Return the message's text, quoted as the kernel's splitter wants it."""

    @abstractmethod
    def parse_reply(self, reply: str) -> R:
        """Return the kernel's reply ("" if there was none) as a value.

        Raises:
            ParseError: Not this message's reply.
        """


class Silent(Message[None]):
    """Base of the messages that the kernel answers without text."""

    __slots__ = ()

    def parse_reply(self, reply: str) -> None:
        """Return None; a reply is an error."""
        if reply:
            raise ParseError(reply, 0, reply, "no reply")


@dataclass(frozen=True, slots=True)
class Space:
    """What a strategy may use: devices below and the length of the line.

    Attributes:
        refs: Devices that may be named, with their sizes in sectors.
        length: Sectors the line will have.
        features: What the kernel offers; values that need more are not drawn.
    """

    refs: Mapping[Ref, int]
    length: int
    features: Features = NO_FEATURES

    def devices(self, length: int | None = None) -> SearchStrategy[Ref]:
        """Return a strategy for devices of at least `length` sectors (None: of the line's)."""
        from hypothesis import strategies as st

        need = self.length if length is None else length
        fit = [ref for ref, size in self.refs.items() if size >= need]
        return st.sampled_from(fit) if fit else st.nothing()

    def legs(self, length: int | None = None) -> SearchStrategy[Leg]:
        """Return a strategy for any `length` sectors (None: as many as the line has) of any device."""
        from hypothesis import strategies as st

        need = self.length if length is None else length
        return self.devices(need).flatmap(
            lambda ref: st.builds(Leg, st.just(ref), st.integers(0, self.refs[ref] - need))
        )


class Target(ABC):
    """A target's parameters. Subclasses are frozen, slotted, keyword-only dataclasses.

    Class attributes:
        kernel_name: The word in a table line.
        kernel_module: Module that provides it, without `.ko`; "dm-mod" for the built-in ones.
        kernel_since: First release that has it, where that is not older than every kernel we know: "6.9".
        features: What only some kernels have, by its name in full: "flakey.error_reads".
        readonly: The kernel takes it in read-only tables only.
        singleton: It must be the only line of its table.
        failed: Where a failed target's table is not told any more: what the kernel prints instead, for table and status
            alike, and the status that means.
    """

    __slots__ = ()

    kernel_name: ClassVar[str]
    kernel_module: ClassVar[str]
    kernel_since: ClassVar[str] = ""
    features: ClassVar[Mapping[str, Feature]] = {}
    readonly: ClassVar[bool] = False
    singleton: ClassVar[bool] = False
    failed: ClassVar[tuple[str, Status] | None] = None

    @property
    def kernel_type(self) -> str:
        """The target's word in a table line; the class's `kernel_name` but for `Raw`."""
        return self.kernel_name

    @property
    def secret(self) -> bool:
        """Whether `encode` gives words that hold a key, so that a load must be secure."""
        return False

    @abstractmethod
    def refs(self) -> tuple[Ref, ...]:
        """Return the devices below, in the order the table names them, repeats included."""

    def serves(self, other: Target) -> bool:
        """Whether `other`, in another table of a stack, depends on what this one does for it, though neither names the other.

        A stack then opens that table first: writes to a snapshot's origin must find the snapshot.
        """
        del other
        return False

    @abstractmethod
    def encode(self, resolve: Resolve) -> str:
        """Return the parameter words of the table line ("" for none)."""

    @classmethod
    @abstractmethod
    def decode(cls, tokens: Tokens, lookup: Lookup) -> Self:
        """Return the value for parameter words; the inverse of `encode`, and of what the kernel prints.

        Raises:
            ParseError: Words the kernel's constructor would not understand.
            SpecError: Values it would refuse.
        """

    def readback(self, features: Features) -> Target:
        """Return what a kernel with `features` reports for this value; mostly the value itself."""
        del features
        return self

    def parse_status(self, text: str) -> Status:
        """Return the typed status for the kernel's INFO text; a target that has none accepts only the empty one.

        Raises:
            ParseError: Not this target's status.
        """
        Tokens(text, target=self.kernel_type).done()
        return NoStatus()

    def needs(self) -> Requirement:
        """Return what a kernel must offer to accept this value."""
        return Requirement(self.kernel_name)

    def check(self, start: int, length: int) -> None:
        """Refuse a line of `length` sectors at `start` that the kernel's constructor would refuse.

        Raises:
            SpecError: Naming the field that does not fit the line.
        """
        del start, length

    @classmethod
    @abstractmethod
    def strategy(cls, space: Space) -> SearchStrategy[Target]:
        """Return a hypothesis strategy for valid values; imports hypothesis when called."""
