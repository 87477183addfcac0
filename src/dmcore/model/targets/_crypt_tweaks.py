"""The tweaks of XTS for many sectors at once: T, T*x, T*x^2 ... in GF(2^128), 32 blocks for each T.

Multiplied one by one they cost more than the cipher. But the states of a shift register are windows of the bits it puts
out: with a_0, a_1 ... the top bit of T*x^j for each j, bit i >= 7 of T*x^j is a_(j+127-i). The bits of T and 31 more by the
polynomial's recurrence (a_(n+128) = a_(n+7) + a_(n+2) + a_(n+1) + a_n) are thus 32 tweaks that overlap. Shifted by 0..7 bits
the windows begin at whole bytes, so that they can be copied. What is wrong are the bits below 7, by a function of the top
ones: bit i lacks a_(j+6-i), and bits 1 and 0 what the polynomial's other terms carry.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from dmcore.model.targets._crypt_blocks import Words

__all__ = ["ROW", "Tweaks", "doubled"]

ROW = 32
"""Blocks of 16 bytes that `Tweaks` multiplies one tweak for."""
_U = np.uint64


def doubled(tweaks: Words, times: int) -> Words:
    """Return tweaks, pairs of words with the low one first, times x^`times` with `times` in 1..56."""
    low, high = tweaks[..., 0], tweaks[..., 1]
    carry = high >> _U(64 - times)
    out = np.empty_like(tweaks)
    out[..., 0] = low << _U(times) ^ carry ^ carry << _U(1) ^ carry << _U(2) ^ carry << _U(7)
    out[..., 1] = high << _U(times) | low >> _U(64 - times)
    return out


class Tweaks:
    """Scratch for up to `rows` rows of tweaks; not for use by two threads at once.

    Attributes:
        rows: The most rows.
        tweaks: What the last call made.
    """

    def __init__(self, rows: int) -> None:
        assert sys.byteorder == "little"
        self.rows = rows
        self._record = np.zeros(rows * 8 * 3, np.uint64)
        self._tweaks = np.empty(rows * ROW * 2, np.uint64)
        self._one = np.empty(rows * 8, np.uint64)
        self._two = np.empty(rows * 8, np.uint64)
        self._fix = np.empty(rows * ROW, np.uint8)
        self._shift = np.arange(8, dtype=np.uint64)[:, None]
        self._back = _U(64) - self._shift
        self._used = 0
        self._use(rows)

    def _use(self, rows: int) -> None:
        """Make the views for so many rows."""
        if rows == self._used:
            return
        self._used = rows
        self._parts = self._record[: rows * 24].reshape(8, rows, 3)
        self.tweaks = self._tweaks[: rows * ROW * 2].reshape(rows, ROW, 2)
        places = self.tweaks.view(np.complex128).reshape(rows, 4, 8)
        raw = self._record.view(np.uint8)
        self._windows = [
            (
                places[:, skip],
                np.ndarray((rows, 8), np.complex128, raw.data, offset=8 - skip, strides=(24, rows * 24)),
            )
            for skip in range(4)
        ]
        octets = self.tweaks.view(np.uint8).reshape(rows * ROW, 16)
        self._low, self._top = octets[:, 0], octets[:, 15]

    def __call__(self, first: Words) -> Words:
        """Return `(rows, 32, 2)` words for `(rows, 2)`; they are good until the next call."""
        rows = len(first)
        self._use(rows)
        low, high = first[:, 0].copy(), first[:, 1].copy()
        top = high >> _U(57)
        low ^= top ^ top >> _U(5) ^ top >> _U(6)
        more = (high ^ high << _U(1) ^ high << _U(2) ^ high << _U(7)) & _U(0xFFFFFFFF00000000)
        one = self._one[: rows * 8].reshape(8, rows)
        two = self._two[: rows * 8].reshape(8, rows)
        np.left_shift(more, self._shift, out=self._parts[:, :, 0])
        for word, below, at in ((low, more, 1), (high, low, 2)):
            np.left_shift(word, self._shift, out=one)
            np.right_shift(below, self._back, out=two)
            np.bitwise_or(one, two, out=self._parts[:, :, at])
        for place, window in self._windows:
            np.copyto(place, window)
        fix = self._fix[: rows * ROW]
        np.right_shift(self._top, 1, out=fix)
        fix ^= (fix >> 5) ^ (fix >> 6)
        np.bitwise_xor(self._low, fix, out=self._low)
        return self.tweaks
