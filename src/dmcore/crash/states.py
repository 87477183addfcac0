"""Crash states of a log: what was on the disk when the power went, one by one, the telling ones first.

A state is an epoch and the set of its pending writes that are there, whole or torn. Its id says exactly that and is
enough to make it again from the same log: `e12:5` is epoch 12 with pending writes 0 and 2; `e12:5:t2.f1` the same, of
write 2 only the first sector.

Sources for the families: Mohan et al., "Finding Crash-Consistency Bugs with Bounded Black-Box Crash Testing" (OSDI 2018),
sections 4 and 5; Pillai et al., "All File Systems Are Not Created Equal" (OSDI 2014), section 3.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from dmcore.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dmcore.crash.epochs import Epoch, Piece, Timeline, Write

__all__ = ["State", "Tear", "parse_state", "state_pieces", "units"]

_ID = re.compile(r"e([0-9]+):([0-9a-f]+)(?::(t[0-9]+\.[flox][0-9a-f]+(?:,t[0-9]+\.[flox][0-9a-f]+)*))?")


class Tear(NamedTuple):
    """Which sectors of a write are there.

    Attributes:
        write: Number of the write among the pending ones.
        kind: "f" the first `amount`, "l" the last `amount`, "o" every second beginning with number `amount`
            (0 or 1), "x" those whose bits are set in `amount`.
        amount: See `kind`.
    """

    write: int
    kind: str
    amount: int

    def __str__(self) -> str:
        return f"t{self.write}.{self.kind}{self.amount:x}"

    def holds(self, unit: int, count: int) -> bool:
        """Return whether sector `unit` of `count` is there."""
        match self.kind:
            case "f":
                return unit < self.amount
            case "l":
                return unit >= count - self.amount
            case "o":
                return unit % 2 == self.amount
            case _:
                return bool(self.amount >> unit & 1)


@dataclass(frozen=True, slots=True)
class State:
    """What was on the disk.

    Attributes:
        epoch: Number of the epoch: all that was durable by then is there.
        present: Bit i says whether pending write i is there; of a torn one it is set.
        torn: The writes of which only a part is there.
    """

    epoch: int
    present: int
    torn: tuple[Tear, ...] = ()

    def __str__(self) -> str:
        tail = ":" + ",".join(map(str, self.torn)) if self.torn else ""
        return f"e{self.epoch}:{self.present:x}{tail}"

    def missing(self, count: int) -> tuple[int, ...]:
        """Return the numbers of the pending writes, of `count`, of which nothing is there."""
        return tuple(i for i in range(count) if not self.present >> i & 1)


def parse_state(text: str, timeline: Timeline) -> State:
    """Return the state of an id.

    Raises:
        SpecError: No id, or one of another log: an epoch or a write that this one does not have.
    """
    match = _ID.fullmatch(text)
    if match is None:
        raise SpecError("state", text, "is not an id like e12:5 or e12:5:t2.f1")
    epoch, present = int(match[1]), int(match[2], 16)
    torn = tuple(
        Tear(int(word[1:].partition(".")[0]), word.partition(".")[2][0], int(word.partition(".")[2][1:], 16))
        for word in (match[3] or "").split(",")
        if word
    )
    if epoch >= len(timeline.epochs):
        raise SpecError("state", text, f"the log has {len(timeline.epochs)} epochs at {timeline.level}")
    count = len(timeline.epochs[epoch].pending)
    if present >> count or any(not present >> tear.write & 1 for tear in torn):
        raise SpecError(
            "state", text, f"epoch {epoch} has {count} pending writes, and what is torn is present"
        )
    return State(epoch, present, torn)


def units(write: Write, size: int) -> list[Piece]:
    """Return a write cut at multiples of `size` bytes of the device: what a disk of such sectors writes whole or not."""
    cut: list[Piece] = []
    for piece in write.pieces:
        offset, end = piece.offset, piece.offset + piece.length
        while offset < end:
            stop = min(end, (offset // size + 1) * size)
            source = piece.source if piece.source < 0 else piece.source + offset - piece.offset
            cut.append(type(piece)(offset, stop - offset, source))
            offset = stop
    return cut


def state_pieces(epoch: Epoch, state: State, torn_size: int) -> Iterator[tuple[Write, Sequence[Piece]]]:
    """Yield the pending writes that are there, each with its parts that are, in the order that they apply."""
    torn = {tear.write: tear for tear in state.torn}
    for number, write in enumerate(epoch.pending):
        if not state.present >> number & 1:
            continue
        tear = torn.get(number)
        if tear is None:
            yield write, write.pieces
        else:
            cut = units(write, torn_size)
            yield write, [piece for at, piece in enumerate(cut) if tear.holds(at, len(cut))]
