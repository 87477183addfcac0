"""The steps of a script, as frozen values. Sectors are 512 bytes; `on` is a device of the stack, "" its topmost.

A script fits every stack: what is past the end or no whole logical block is cut to what the device takes, and what the
kernel would hold back, because something is suspended, is left out on both sides.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TypeAlias

__all__ = [
    "Discard",
    "Fail",
    "Flush",
    "Heal",
    "Message",
    "Read",
    "Reload",
    "Resume",
    "Settle",
    "Status",
    "Step",
    "Suspend",
    "Write",
    "ZeroOut",
    "pattern",
]


def pattern(seed: int, sector: int, count: int) -> bytes:
    """Return `count` sectors that tell where they are from; seed 0: zeros.

    The bytes of a sector depend on `seed` and its number alone, so that one that was moved or mixed up is found.
    """
    if not seed:
        return bytes(512 * count)
    return b"".join(
        hashlib.blake2b(f"{seed}:{number}".encode(), digest_size=32).digest() * 16
        for number in range(sector, sector + count)
    )


@dataclass(frozen=True, slots=True)
class Read:
    """Read `count` sectors from `sector` on."""

    sector: int
    count: int
    on: str = ""


@dataclass(frozen=True, slots=True)
class Write:
    """Write `pattern(seed, sector, count)`; `fua`: durably, which is a FUA write and a flush."""

    sector: int
    count: int
    seed: int = 1
    fua: bool = False
    on: str = ""


@dataclass(frozen=True, slots=True)
class Flush:
    """Flush (fsync)."""

    on: str = ""


@dataclass(frozen=True, slots=True)
class Discard:
    """Discard `count` sectors (BLKDISCARD)."""

    sector: int
    count: int
    on: str = ""


@dataclass(frozen=True, slots=True)
class ZeroOut:
    """Zero `count` sectors (BLKZEROOUT)."""

    sector: int
    count: int
    on: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """Send a message to the target that serves `sector`."""

    text: str
    sector: int = 0
    on: str = ""


@dataclass(frozen=True, slots=True)
class Suspend:
    """Suspend a device; requests that would wait for its resume are left out until then."""

    noflush: bool = False
    on: str = ""


@dataclass(frozen=True, slots=True)
class Resume:
    """Resume a device."""

    on: str = ""


@dataclass(frozen=True, slots=True)
class Reload:
    """Load another table, whose text names devices as the stack does, and resume; "" loads the first one again.

    A table that is refused at either point leaves the device with the one before, running.
    """

    table: str = ""
    on: str = ""


@dataclass(frozen=True, slots=True)
class Fail:
    """Let `length` sectors of a disk from `start` on fail with EIO, from now until they are healed."""

    disk: str
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Heal:
    """Let the whole of a disk work again, with what it held."""

    disk: str


@dataclass(frozen=True, slots=True)
class Settle:
    """Wait until the work in the background is done."""


@dataclass(frozen=True, slots=True)
class Status:
    """Compare table and status of every device (done at the end of every script, too)."""


Step: TypeAlias = (
    Read
    | Write
    | Flush
    | Discard
    | ZeroOut
    | Message
    | Suspend
    | Resume
    | Reload
    | Fail
    | Heal
    | Settle
    | Status
)
