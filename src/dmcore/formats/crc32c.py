"""CRC-32C (Castagnoli), as the kernel's crc32c: without the final inversion that the standard has."""

from __future__ import annotations

import sys
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TypeAlias

    Buffer: TypeAlias = bytes | bytearray | memoryview

__all__ = ["crc32c"]

_POLYNOMIAL = 0x82F63B78
_FEW = 64


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


def crc32c(data: Buffer, crc: int = 0xFFFFFFFF) -> int:
    """Return the checksum of `data`, going on from `crc`; zeros at the end cost next to nothing."""
    whole = bytes(data)
    filled = whole.rstrip(b"\0")
    behind = len(whole) - len(filled)
    odd = len(filled) % 2
    if sys.byteorder == "little" and len(filled) >= _FEW:
        pairs = _pairs()
        for pair in memoryview(filled)[: len(filled) - odd].cast("H"):
            crc = crc >> 16 ^ pairs[(crc ^ pair) & 0xFFFF]
        filled = filled[len(filled) - odd :]
    for byte in filled:
        crc = crc >> 8 ^ _BYTES[(crc ^ byte) & 0xFF]
    power = 0
    while behind:
        if behind & 1:
            crc = _apply(_zeros(power), crc)
        behind >>= 1
        power += 1
    return crc
