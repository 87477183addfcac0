"""The tweaks of XTS (IEEE 1619) for many sectors at once: T, T*x, T*x^2 ... in GF(2^128), up to 256 blocks for each T.

Multiplied one by one they cost more than the cipher. But the states of a shift register are windows of the bits it puts
out: with a_0, a_1 ... the top bit of T*x^j for each j, bit i >= 7 of T*x^j is a_(j+127-i). The bits of T and some more by the
polynomial's recurrence (a_(n+128) = a_(n+7) + a_(n+2) + a_(n+1) + a_n) are thus tweaks that overlap. Shifted by 0..7 bits
the windows begin at whole bytes, so that they can be copied. What is wrong are the bits below 7, by a function of the top
ones: bit i lacks a_(j+6-i), and bits 1 and 0 what the polynomial's other terms carry.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from dmcore.model.targets._crypt_blocks import Octets, Words

__all__ = ["MOST_BLOCKS", "Tweaks", "doubled"]

MOST_BLOCKS = 256
"""Blocks of 16 bytes that `Tweaks` multiplies one tweak for, at most."""
_APART = 8
"""Words between what stands side by side in memory, so that not all of it falls into one set of the cache."""
_PARTS = 4
_Part = np.uint16
"""What is shifted at once, a part of a word: numpy is two to three times as slow with rows of less than 2731 items."""
_U = np.uint64
_TAPS = np.array([[1], [2], [7]], np.uint64)
_REST = _U(64) - _TAPS


def doubled(tweaks: Words, times: int) -> Words:
    """Return tweaks, pairs of words with the low one first, times x^`times` with `times` in 1..56."""
    low, high = tweaks[..., 0], tweaks[..., 1]
    carry = high >> _U(64 - times)
    out = np.empty_like(tweaks)
    out[..., 0] = low << _U(times) ^ carry ^ carry << _U(1) ^ carry << _U(2) ^ carry << _U(7)
    out[..., 1] = high << _U(times) | low >> _U(64 - times)
    return out


class Tweaks:
    """Room for the tweaks of up to `rows` rows; not for use by two threads at once.

    Args:
        rows: The most rows.
        blocks: Tweaks in a row, a multiple of 8 up to `MOST_BLOCKS`.
    """

    def __init__(self, rows: int, blocks: int) -> None:
        assert sys.byteorder == "little"
        assert blocks % 8 == 0
        assert blocks <= MOST_BLOCKS
        self.rows, self.blocks = rows, blocks
        self._more = -(-(blocks - 1) // 64)
        words = rows * (self._more + 2)
        self._words = np.empty(words, np.uint64)
        self._record = np.zeros((8, words + _APART), np.uint64)
        self._carried = np.empty((8, words * _PARTS), _Part)
        self._fix = np.empty(rows * blocks, np.uint8)
        self._fold = np.empty(rows * blocks, np.uint8)
        self._tweaks = np.empty(rows * blocks * 2, np.uint64)
        self._shift = np.arange(8, dtype=_Part)[:, None]
        self._back = _Part(64 // _PARTS) - self._shift

    def __call__(self, first: Words) -> Words:
        """Return `(rows, blocks, 2)` words for `(rows, 2)`; they are good until the next call."""
        rows, words = len(first), self._more + 2
        flat = self._words[: rows * words]
        self._sequence(first, flat.reshape(rows, words))
        parts = flat.view(_Part)
        record, carried = self._record.view(_Part)[:, : len(parts)], self._carried[:, : len(parts) - 1]
        np.left_shift(parts, self._shift, out=record)
        np.right_shift(parts[:-1], self._back, out=carried)
        # What a row's top word carries into the lowest bits of the next row is in no window.
        upper = record[:, 1:]
        np.bitwise_or(upper, carried, out=upper)
        out = self._tweaks[: rows * self.blocks * 2].reshape(rows, self.blocks, 2)
        steps, between = self.blocks // 8, self._record.strides[0]
        windows = np.ndarray(
            (rows, steps, 8), np.complex128, self._record.data, 8 * self._more, (words * 8, -1, between)
        )
        np.copyto(out.view(np.complex128).reshape(rows, steps, 8), windows)
        self._correct(out.view(np.uint8).reshape(rows * self.blocks, 16))
        return out

    def _sequence(self, first: Words, words: Words) -> None:
        """Write what the register puts out, for each row, the first bits in the last word."""
        high, more = first[:, 1], self._more
        top = high >> _U(57)
        one, two = high.copy(), first[:, 0] ^ top ^ top >> _U(5) ^ top >> _U(6)
        words[:, more + 1], words[:, more] = one, two
        for at in range(more - 1, -1, -1):
            taps = np.left_shift(one, _TAPS)
            np.bitwise_or(taps, np.right_shift(two, _REST), out=taps)
            new = np.bitwise_xor.reduce(taps, axis=0)
            np.bitwise_xor(new, one, out=new)
            words[:, at] = new
            one, two = two, new

    def _correct(self, octets: Octets) -> None:
        """Put the lowest byte of each tweak right."""
        fix, fold = self._fix[: len(octets)], self._fold[: len(octets)]
        np.copyto(fix, octets[:, 15])
        np.right_shift(fix, 1, out=fix)
        np.right_shift(fix, 5, out=fold)
        np.bitwise_xor(fix, fold, out=fix)
        np.right_shift(fold, 1, out=fold)
        np.bitwise_xor(fix, fold, out=fix)
        low = octets[:, 0]
        np.bitwise_xor(low, fix, out=low)
