"""CRC-32C (Castagnoli), as the kernel's crc32c: without the final inversion that the standard has.

A checksum is linear in the bits of what it is made of. So what a byte adds depends on its value and its distance from the
end only, and numpy looks all of them up at once. Its import costs as much as a MiB takes without it, hence `_PLAIN`.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TypeAlias

    import numpy as np
    from numpy.typing import NDArray

    Buffer: TypeAlias = bytes | bytearray | memoryview
    Octets: TypeAlias = NDArray[np.uint8]
    Checksums: TypeAlias = NDArray[np.uint32]

__all__ = ["crc32c", "crc32c_rows"]

_POLYNOMIAL = 0x82F63B78
_FEW = 64
_PIECE = 512
_AT_ONCE = 1 << 18
_PLAIN = 1 << 20
_done = [0]


def _byte_table() -> list[int]:
    made: list[int] = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
        made.append(crc)
    return made


_BYTES = _byte_table()


@cache
def _pairs() -> list[int]:
    """Return the table for two bytes at a time, made when it is first needed."""
    table = _BYTES
    return [table[low] >> 8 ^ table[table[low] & 0xFF ^ high] for high in range(256) for low in range(256)]


@cache
def _zeros(power: int) -> list[int]:
    """Return what 2^power bytes of zeros make of each single bit of a checksum: the rest follows from linearity."""
    if power == 0:
        return [(1 << bit) >> 8 ^ _BYTES[(1 << bit) & 0xFF] for bit in range(32)]
    half = _zeros(power - 1)
    return [_apply(half, image) for image in half]


def _apply(images: list[int], crc: int) -> int:
    result = 0
    while crc:
        low = crc & -crc
        result ^= images[low.bit_length() - 1]
        crc ^= low
    return result


def _past_zeros(crc: int, count: int) -> int:
    """Return what `count` bytes of zeros make of a checksum."""
    power = 0
    while count:
        if count & 1:
            crc = _apply(_zeros(power), crc)
        count >>= 1
        power += 1
    return crc


@cache
def _places() -> Checksums:
    """Return what each value of a byte adds, `(distance from the end, value)`, for the last `_PIECE` bytes."""
    import numpy as np

    table = np.empty((_PIECE, 256), np.uint32)
    table[0] = _BYTES
    for distance in range(1, _PIECE):
        before = table[distance - 1]
        table[distance] = before >> np.uint32(8) ^ table[0][before & np.uint32(0xFF)]
    return table


def crc32c_rows(rows: Octets, crc: int = 0xFFFFFFFF) -> Checksums:
    """Return the checksum of each row of a contiguous array of bytes, each going on from `crc`."""
    import numpy as np

    count, width = rows.shape
    found = np.full(count, crc, np.uint32)
    table = _places()
    flat = table.reshape(-1)
    at = 0
    while at < width:
        size = (width - at) % _PIECE or _PIECE
        last = np.arange(size - 1, -1, -1, dtype=np.intp) * 256
        step = max(_AT_ONCE // size, 1)
        for first in range(0, count, step):
            part = rows[first : first + step, at : at + size]
            before = found[first : first + step].copy()
            added = np.bitwise_xor.reduce(flat.take(part + last), axis=1)
            for byte in range(4):
                value = before >> np.uint32(8 * byte) & np.uint32(0xFF)
                if byte < size:
                    added ^= table[size - 1 - byte][value]
                else:
                    added ^= value << np.uint32(8 * (byte - size))
            found[first : first + step] = added
        at += size
    return found


def _sum(data: bytes, crc: int) -> int:
    """Return the checksum without numpy."""
    odd = len(data) % 2
    if sys.byteorder == "little" and len(data) >= _FEW:
        pairs = _pairs()
        for pair in memoryview(data)[: len(data) - odd].cast("H"):
            crc = crc >> 16 ^ pairs[(crc ^ pair) & 0xFFFF]
        data = data[len(data) - odd :]
    for byte in data:
        crc = crc >> 8 ^ _BYTES[(crc ^ byte) & 0xFF]
    return crc


def _sum_fast(data: bytes, crc: int) -> int:
    """Return the checksum with numpy: pieces on their own, then put together."""
    import numpy as np

    odd = len(data) % _PIECE
    crc = _sum(data[:odd], crc)
    pieces = crc32c_rows(np.frombuffer(data, np.uint8, offset=odd).reshape(-1, _PIECE), 0)
    past = _past_piece()
    for piece in pieces.tolist():
        crc = (
            past[0][crc & 0xFF]
            ^ past[1][crc >> 8 & 0xFF]
            ^ past[2][crc >> 16 & 0xFF]
            ^ past[3][crc >> 24]
            ^ piece
        )
    return crc


@cache
def _past_piece() -> list[list[int]]:
    """Return what `_PIECE` bytes of zeros make of each byte of a checksum."""
    return [[_past_zeros(value << 8 * byte, _PIECE) for value in range(256)] for byte in range(4)]


def crc32c(data: Buffer, crc: int = 0xFFFFFFFF) -> int:
    """Return the checksum of `data`, going on from `crc`; zeros at the end cost next to nothing."""
    whole = bytes(data)
    filled = whole.rstrip(b"\0")
    if len(filled) >= 2 * _PIECE:
        _done[0] += len(filled)
    fast = len(filled) >= 2 * _PIECE and _done[0] > _PLAIN
    crc = (_sum_fast if fast else _sum)(filled, crc)
    return _past_zeros(crc, len(whole) - len(filled))
