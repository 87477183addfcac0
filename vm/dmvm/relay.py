"""The line's language: frames, what may be under way at once, jobs, how they end, and test marks. Pure, no I/O.

A frame is a kind (1 byte), a length (4 bytes, big endian) and a payload. The guest's end is `dmvm.guest_init`.

Host to guest: J piece of the job (JSON), G go, D bytes for its stdin, C its stdin is at its end, K signal for it
(1 byte), W terminal size (2 x 2 bytes), P are you alive, M a mark that a test starts has arrived, and with it all that
the job wrote before: the job gets a byte for it on its mark descriptor. The guest answers each with A (payload: the kind), D only
once the bytes are in the job's pipe. User-mode Linux throttles its line for good when 3968 bytes lie unread
(drivers/tty/n_tty.c, 128 bytes of 4096 free), hence pieces of 2048 bytes and one unanswered frame per lane: J G D C
are one lane, K W P M the other, so that a signal gets through to a job that does not read.

Guest to host: R ready (JSON), A, L launched (pid), O and E bytes of stdout and stderr, T test marks, X ended (JSON).
"""

from __future__ import annotations

import json
import math
import struct
from collections import deque
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from dmcore.errors import AbiError, SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["PIECE", "Decoder", "Job", "Marks", "Outbox", "Outcome", "encode", "pieces"]

PIECE: Final = 2048
"""Bytes of payload in one frame to the guest, at most."""

_HEADER: Final = struct.Struct("!cI")
_LONGEST: Final = 1 << 24
_DATA_LANE: Final = frozenset((b"J", b"G", b"D", b"C"))
_CONTROL_LANE: Final = frozenset((b"K", b"W", b"P", b"M"))
_TO_HOST: Final = frozenset((b"R", b"A", b"L", b"O", b"E", b"T", b"X"))


def encode(kind: bytes, payload: bytes = b"") -> bytes:
    """Return one frame."""
    return _HEADER.pack(kind, len(payload)) + payload


def pieces(data: bytes) -> Iterator[bytes]:
    """Cut bytes into payloads that may go to the guest."""
    for start in range(0, len(data), PIECE):
        yield data[start : start + PIECE]


class Decoder:
    """Splits the guest's byte stream into frames."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """Take bytes as they come; returns the (kind, payload) of the frames they complete.

        Raises:
            AbiError: What came is no frame of ours: something else writes to the line.
        """
        self._data += data
        frames: list[tuple[bytes, bytes]] = []
        start = 0
        while len(self._data) - start >= _HEADER.size:
            kind, length = _HEADER.unpack_from(self._data, start)
            if kind not in _TO_HOST or length > _LONGEST:
                raise AbiError(
                    f"the guest's line carries {kind!r} with {length} bytes, which is no frame", start
                )
            end = start + _HEADER.size + length
            if len(self._data) < end:
                break
            frames.append((kind, bytes(self._data[start + _HEADER.size : end])))
            start = end
        del self._data[:start]
        return frames


class Outbox:
    """Frames for the guest, and which of them may go now: one unanswered per lane."""

    def __init__(self) -> None:
        self._data: deque[tuple[bytes, bytes]] = deque()
        self._control: deque[tuple[bytes, bytes]] = deque()
        self._data_open = b""
        self._control_open = b""

    def put(self, kind: bytes, payload: bytes = b"") -> None:
        """Queue one frame.

        Raises:
            SpecError: The payload is longer than `PIECE`, or the kind does not go to the guest.
        """
        if len(payload) > PIECE:
            raise SpecError("payload", len(payload), f"at most {PIECE} bytes go in one frame")
        if kind in _DATA_LANE:
            self._data.append((kind, payload))
        elif kind in _CONTROL_LANE:
            self._control.append((kind, payload))
        else:
            raise SpecError("kind", kind, "not a frame for the guest")

    def answered(self, kind: bytes) -> None:
        """Note the guest's answer to a frame.

        Raises:
            AbiError: No such frame is unanswered.
        """
        if kind and kind == self._data_open:
            self._data_open = b""
        elif kind and kind == self._control_open:
            self._control_open = b""
        else:
            raise AbiError(f"the guest answered {kind!r}, which was not asked")

    def take(self) -> bytes:
        """Return the bytes that may go on the line now ("" if none), and count them as under way."""
        ready = b""
        if self._control and not self._control_open:
            kind, payload = self._control.popleft()
            self._control_open = kind
            ready += encode(kind, payload)
        if self._data and not self._data_open:
            kind, payload = self._data.popleft()
            self._data_open = kind
            ready += encode(kind, payload)
        return ready

    @property
    def wants_data(self) -> bool:
        """Whether more stdin should be read: nothing of the data lane waits or is unanswered."""
        return not self._data and not self._data_open

    @property
    def control_unanswered(self) -> bool:
        """Whether a control frame is unanswered, and so no further ping makes sense."""
        return bool(self._control or self._control_open)


@dataclass(frozen=True, slots=True)
class Job:
    """One command for the guest.

    Attributes:
        argv: The command; looked up in the PATH of `env`.
        env: Its whole environment; PYTEST_DM_CTL is added by the guest.
        cwd: Its folder, a path of the host.
        umask: File mode creation mask.
        terminal: (rows, columns) to run it on a terminal of its own, None for three pipes.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    umask: int = 0o022
    terminal: tuple[int, int] | None = None

    def encode(self) -> bytes:
        """Return the JSON that goes in J frames."""
        return json.dumps({**asdict(self), "env": dict(self.env)}).encode()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended.

    Attributes:
        code: Its exit status, None if a signal ended it or its guest was lost.
        signal: The signal that ended it, None if none did.
        error: Why it could not be started ("" if it was).
        lost: Why its guest was given up ("" if it was not): panic, deadline, death of the machine ...
        test: The test that ran then ("" if none).
    """

    code: int | None = None
    signal: int | None = None
    error: str = ""
    lost: str = ""
    test: str = ""

    @classmethod
    def decode(cls, payload: bytes, test: str = "") -> Outcome:
        """Read the payload of an X frame."""
        fields: dict[str, Any] = json.loads(payload)
        return cls(fields.get("code"), fields.get("signal"), fields.get("error", ""), "", test)

    @property
    def status(self) -> int:
        """Exit status as a shell gives it: 128 + signal; 125 for a lost guest."""
        if self.lost:
            return 125
        return 128 + self.signal if self.signal is not None else self.code or 0


class Marks:
    """The test that runs in the guest and its deadline, from the lines that the guest's pytest writes.

    ``start NODEID SECONDS`` (0 or "inf": no deadline), ``end NODEID``, and ``note TEXT``, something for a person to
    read; times are those of the caller's clock.
    """

    def __init__(self) -> None:
        self._partial = b""
        self.starts = 0
        self.notes: list[str] = []
        self.test = ""
        self.seconds = math.inf
        self.started = 0.0

    def feed(self, data: bytes, now: float) -> None:
        """Take the payload of a T frame.

        Raises:
            AbiError: A line is not a mark.
        """
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            verb, _, rest = line.decode("utf-8", "replace").partition(" ")
            if verb == "end":
                self.test, self.seconds = "", math.inf
                continue
            if verb == "note":
                self.notes.append(rest)
                continue
            test, _, seconds = rest.rpartition(" ")
            try:
                limit = float(seconds)
            except ValueError:
                limit = math.nan
            if verb != "start" or not test or not limit >= 0:
                raise AbiError(f"not a test mark: {line!r}")
            self.starts += 1
            self.test, self.seconds, self.started = test, limit or math.inf, now

    def remaining(self, now: float) -> float:
        """Seconds until the running test is overdue; infinite if none runs or it has no deadline."""
        return self.started + self.seconds - now if self.test else math.inf
