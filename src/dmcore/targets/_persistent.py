"""What targets with metadata of their own on a device report alike.

Sources: drivers/md/dm-thin.c (pool_status, thin_status), dm-cache-target.c (cache_status), dm-clone-target.c
(clone_status), dm-era-target.c (era_status).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dmcore import validate
from dmcore.errors import SpecError
from dmcore.target import Silent, Status

if TYPE_CHECKING:
    from dmcore.params import Tokens

__all__ = [
    "Failed",
    "Unreadable",
    "Usage",
    "Word",
    "check_block",
    "given_up",
    "metadata_usage",
    "number_or_dash",
]

_USAGE = re.compile(r"([0-9]{1,20})/([0-9]{1,20})")


@dataclass(frozen=True, slots=True)
class Failed(Status):
    """ "Fail": the target gave up after an error of its metadata device, and takes no more messages.

    Requests to thin devices fail with EIO. A cache goes on serving the blocks it knows, and the origin's.
    """


@dataclass(frozen=True, slots=True)
class Unreadable(Status):
    """ "Error": the kernel could not read the numbers; its log says which."""


@dataclass(frozen=True, slots=True)
class Usage:
    """How much of something is used.

    Attributes:
        used: Blocks in use.
        total: Blocks there are.
    """

    used: int
    total: int

    @classmethod
    def decode(cls, tokens: Tokens, what: str) -> Usage:
        """Take a word `<used>/<total>`."""
        expected = f"{what} as used/total"
        match = _USAGE.fullmatch(tokens.word(expected))
        if match is None:
            raise tokens.error(expected, back=1)
        return cls(int(match[1]), int(match[2]))


class Word(Silent):
    """Base of the messages that are one word."""

    __slots__ = ()

    text: ClassVar[str]

    def encode(self) -> str:
        """Return the word."""
        return self.text


def given_up(tokens: Tokens) -> Failed | Unreadable | None:
    """Return the status of a target that has no numbers to report; None if there are some."""
    if len(tokens) != 1 or tokens.peek() not in {"Fail", "Error"}:
        return None
    return Failed() if tokens.word("Fail or Error") == "Fail" else Unreadable()


def metadata_usage(tokens: Tokens) -> Usage:
    """Take `8 <used>/<total>`: the size of a metadata block in sectors, which is always 8, and their use."""
    tokens.keyword("8")
    return Usage.decode(tokens, "blocks of metadata")


def number_or_dash(tokens: Tokens, expected: str) -> int | None:
    """Take a number of 64 bits, or "-" for None."""
    if tokens.peek() == "-":
        tokens.word(expected)
        return None
    return tokens.strict(expected, bits=64)


def check_block(field: str, value: object, low: int, high: int) -> None:
    """Refuse a block size, in sectors, that is not a multiple of `low` within `low`..`high`.

    Raises:
        SpecError: Naming `field` and `value`.
    """
    validate.integer(field, value, low, high, "sectors")
    if isinstance(value, int) and value % low:
        raise SpecError(field, value, f"must be a multiple of {low} sectors")
