"""MD5 without its end, and the diffusers of the Elephant: word by word, for all units at once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dmcore.model.targets._crypt_blocks import Octets

__all__ = ["diffuse", "md5_state", "undiffuse"]

_SINES = [int(abs(math.sin(step + 1)) * 2**32) for step in range(64)]
_TURNS = ((7, 12, 17, 22), (5, 9, 14, 20), (4, 11, 16, 23), (6, 10, 15, 21))
_FIRST = (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476)
_A_TURNS = (9, 0, 13, 0)
_B_TURNS = (0, 10, 0, 25)


def _turned(words: NDArray[np.uint32], bits: int) -> NDArray[np.uint32]:
    if not bits:
        return words
    return words << np.uint32(bits) | words >> np.uint32(32 - bits)


def md5_state(messages: Octets) -> Octets:
    """Return MD5's state after messages of whole 64-byte blocks, `(messages, 16)`: neither padded nor finished."""
    words = np.ascontiguousarray(messages.view(np.uint32).T)
    state = [np.full(len(messages), word, np.uint32) for word in _FIRST]
    for block in words.reshape(-1, 16, len(messages)):
        a, b, c, d = state
        for step in range(64):
            kind = step // 16
            if kind == 0:
                mixed, index = d ^ (b & (c ^ d)), step
            elif kind == 1:
                mixed, index = c ^ (d & (b ^ c)), (5 * step + 1) % 16
            elif kind == 2:
                mixed, index = b ^ c ^ d, (3 * step + 5) % 16
            else:
                mixed, index = c ^ (b | ~d), 7 * step % 16
            mixed = mixed + a + block[index] + np.uint32(_SINES[step])
            a, d, c, b = d, c, b, b + _turned(mixed, _TURNS[kind][step % 4])
        state = [old + new for old, new in zip(state, (a, b, c, d), strict=True)]
    return np.stack(state, axis=1).view(np.uint8)


def diffuse(units: Octets) -> Octets:
    """Return units after diffuser A and then B."""
    words = np.ascontiguousarray(units.view(np.uint32).T)
    count = len(words)
    for cycles, sign, turns in ((5, -1, _A_TURNS), (3, 1, _B_TURNS)):
        for _ in range(cycles):
            for at in reversed(range(count)):
                near, far = words[(at + 2 * sign) % count], words[(at + 5 * sign) % count]
                words[at] -= near ^ _turned(far, turns[at % 4])
    return np.ascontiguousarray(words.T).view(np.uint8)


def undiffuse(units: Octets) -> Octets:
    """Return what `diffuse` was given."""
    words = np.ascontiguousarray(units.view(np.uint32).T)
    count = len(words)
    for cycles, sign, turns in ((3, 1, _B_TURNS), (5, -1, _A_TURNS)):
        for _ in range(cycles):
            for at in range(count):
                near, far = words[(at + 2 * sign) % count], words[(at + 5 * sign) % count]
                words[at] += near ^ _turned(far, turns[at % 4])
    return np.ascontiguousarray(words.T).view(np.uint8)
