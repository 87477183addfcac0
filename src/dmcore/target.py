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

from dmcore.errors import ParseError
from dmcore.ref import Ref

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from hypothesis.strategies import SearchStrategy

    from dmcore.params import Tokens

__all__ = [
    "NO_FEATURES",
    "Feature",
    "Features",
    "Lookup",
    "Message",
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
"""Names of the probed features a kernel has, as "flakey.error_reads"."""

NO_FEATURES: Features = frozenset()


@dataclass(frozen=True, slots=True)
class Feature:
    """Something a target can do on some kernels only, found by loading a table, never by a version number.

    Attributes:
        params: Table parameters to load on a tiny device; `{dev}` stands for a device below.
        prints: If given, the feature is there only if the kernel prints exactly these parameters for the loaded
            table (trailing blanks aside); else acceptance is enough.
    """

    params: str
    prints: str | None = None


@dataclass(frozen=True, slots=True)
class Requirement:
    """What a kernel must offer to load one value.

    Attributes:
        target: Kernel name of the target.
        version: Lowest version of the target.
        features: Features of the target, by the names in `Target.features`.
    """

    target: str
    version: tuple[int, int, int] = (0, 0, 0)
    features: Features = NO_FEATURES


class Status:
    """Base of the typed statuses; subclasses are frozen dataclasses."""

    __slots__ = ()


class Message(ABC, Generic[R]):
    """Base of the typed messages; subclasses are frozen dataclasses of a target's file."""

    __slots__ = ()

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


class Target(ABC):
    """A target's parameters. Subclasses are frozen, slotted, keyword-only dataclasses.

    Class attributes:
        kernel_name: The word in a table line.
        kernel_module: Module that provides it, without `.ko`; "dm-mod" for the built-in ones.
        features: What only some kernels have, by name.
    """

    __slots__ = ()

    kernel_name: ClassVar[str]
    kernel_module: ClassVar[str]
    features: ClassVar[Mapping[str, Feature]] = {}

    @abstractmethod
    def refs(self) -> tuple[Ref, ...]:
        """Return the devices below, in the order the table names them, repeats included."""

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

    @abstractmethod
    def parse_status(self, text: str) -> Status:
        """Return the typed status for the kernel's INFO text.

        Raises:
            ParseError: Not this target's status.
        """

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
    def strategy(cls, space: Space) -> SearchStrategy[Self]:
        """Return a hypothesis strategy for valid values; imports hypothesis when called."""
