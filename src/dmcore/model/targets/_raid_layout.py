"""Where raid levels put data, copies and parity, and the arithmetic of parity.

Sources: drivers/md/raid5.c (raid5_compute_sector), drivers/md/raid10.c (__raid10_find_phys), lib/raid6 (the field and its
two-failure recovery).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from dmcore.formats.raid import FAR_SETS, OFFSET

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Copies", "Row", "parity", "row", "solve"]

_POLYNOMIAL = 0x11D
_ORDER = 255


class Row(NamedTuple):
    """Which device holds what in one row of chunks.

    Attributes:
        data: Devices of the data chunks, in order.
        p: Device of the first parity.
        q: Device of the second one; None for levels 4 and 5.
        slots: Of each data device, its exponent in the second parity.
    """

    data: tuple[int, ...]
    p: int
    q: int | None
    slots: dict[int, int]


@cache
def row(kind: str, devices: int, number: int) -> Row:
    """Return how row `number` of chunks lies; call it with the number modulo `devices * (devices - 1)`."""
    n = devices
    if kind in {"raid6_zr", "raid6_nr", "raid6_nc"}:
        p = number % n if kind == "raid6_zr" else n - 1 - (number + (kind == "raid6_nr")) % n
        q = (p - 1 if kind == "raid6_nc" else p + 1) % n
        data = (
            [(p + 1 + k) % n for k in range(n - 2)]
            if kind == "raid6_nc"
            else [d for d in range(n) if d not in {p, q}]
        )
        return Row(tuple(data), p, q, {d: d for d in data})
    both = kind.startswith("raid6")
    n -= both
    name = kind.removeprefix("raid5_").removeprefix("raid6_").removesuffix("_6")
    p = {"raid4": 0, "n": n - 1}.get(name, number % n if name[0] == "r" else n - 1 - number % n)
    around = name in {"ls", "rs"}
    data = [(p + 1 + k) % n for k in range(n - 1)] if around else [d for d in range(n) if d != p]
    if not both:
        return Row(tuple(data), p, None, {})
    return Row(tuple(data), p, n, {d: slot for slot, d in enumerate(sorted(data))})


class Copies:
    """Places of the chunks of level 10, or of level 1 with one chunk.

    Args:
        layout: md's number of the layout.
        devices: Of the set.
        chunk: Sectors.
        sectors: Of data on each device.
    """

    def __init__(self, layout: int, devices: int, chunk: int, sectors: int) -> None:
        self.devices = devices
        self.near = layout & 0xFF
        self.far = layout >> 8 & 0xFF
        self._offset = bool(layout & OFFSET)
        rows = sectors // chunk
        self._stride = 1 if self._offset else rows // self.far
        self.chunks = rows // self.far * devices // self.near
        self._set = devices if not layout & FAR_SETS else self.far * self.near
        self._last_begin = (devices // self._set - 1) * self._set
        self._last_size = self._set + devices % self._set

    def places(self, number: int) -> list[tuple[int, int]]:
        """Return `(device, its chunk)` of each copy of chunk `number`, the one that is read first in front."""
        at, device = divmod(number * self.near, self.devices)
        if self._offset:
            at *= self.far
        found: list[tuple[int, int]] = []
        for _ in range(self.near):
            moved, below = device, at
            found.append((device, at))
            for _ in range(1, self.far):
                below += self._stride
                moved = self._next(moved)
                found.append((moved, below))
            device += 1
            if device == self.devices:
                device, at = 0, at + (self.far if self._offset else 1)
        return found

    def _next(self, device: int) -> int:
        """Return where the next far copy of what is on `device` lies."""
        begin = device // self._set * self._set
        size = self._set
        if self.devices % self._set and device >= self._last_begin:
            begin, size = self._last_begin, self._last_size
        return begin + (device - begin + self.near) % size


def _powers() -> tuple[list[int], list[int]]:
    """Return the powers of 2 in the field, twice over, and their logarithms."""
    powers, logs, value = [0] * (2 * _ORDER), [0] * 256, 1
    for exponent in range(_ORDER):
        powers[exponent] = powers[exponent + _ORDER] = value
        logs[value] = exponent
        value <<= 1
        if value > _ORDER:
            value ^= _POLYNOMIAL
    return powers, logs


_POWERS, _LOGS = _powers()


@cache
def _times(exponent: int) -> bytes:
    """Return the table for `bytes.translate` that multiplies by 2 to the power of `exponent`."""
    return bytes([0, *(_POWERS[_LOGS[value] + exponent % _ORDER] for value in range(1, 256))])


def _xor(blocks: Iterable[bytes], length: int) -> bytes:
    total = 0
    for block in blocks:
        total ^= int.from_bytes(block, "little")
    return total.to_bytes(length, "little")


def parity(where: Row, blocks: Mapping[int, bytes]) -> dict[int, bytes]:
    """Return the parity of a row by device, from the blocks of all its data devices."""
    length = len(blocks[where.data[0]])
    made = {where.p: _xor((blocks[device] for device in where.data), length)}
    if where.q is not None:
        made[where.q] = _syndrome(where, blocks, length)
    return made


def _syndrome(where: Row, blocks: Mapping[int, bytes], length: int) -> bytes:
    """Return the second parity of those of `blocks` that are data."""
    terms = (
        blocks[device].translate(_times(slot)) for device, slot in where.slots.items() if device in blocks
    )
    return _xor(terms, length)


def solve(where: Row, blocks: Mapping[int, bytes], length: int) -> dict[int, bytes]:
    """Return all blocks of a row, from those of as many devices as are needed."""
    known = dict(blocks)
    missing = [device for device in where.data if device not in known]
    if len(missing) == 1 and where.p in known:
        known[missing[0]] = _xor([known[where.p], *(known[d] for d in where.data if d in known)], length)
    elif len(missing) == 1:
        assert where.q is not None
        rest = _xor([known[where.q], _syndrome(where, known, length)], length)
        known[missing[0]] = rest.translate(_times(-where.slots[missing[0]]))
    elif missing:
        assert where.q is not None
        first, second = missing
        ours = _xor([known[where.p], *(known[d] for d in where.data if d in known)], length)
        theirs = _xor([known[where.q], _syndrome(where, known, length)], length)
        apart = where.slots[second] - where.slots[first]
        both = _xor([ours.translate(_times(apart)), theirs.translate(_times(-where.slots[first]))], length)
        known[first] = both.translate(_times(-_LOGS[_POWERS[apart % _ORDER] ^ 1]))
        known[second] = _xor([ours, known[first]], length)
    return known | {d: block for d, block in parity(where, known).items() if d not in known}
