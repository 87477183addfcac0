"""Reed-Solomon codes over bytes, many code words at once: 255 bytes each, of which `roots` are parity.

The field is GF(256) with x^8+x^4+x^3+x^2+1, the first root is 1 (lib/reed_solomon with 8, 0x11d, 0, 1, roots). Code words
lie across columns: column i holds byte i of every word, so that a whole block is worked on by one `bytes.translate` and
one exclusive or of large integers.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["WORD", "TooManyErrors", "correct", "parity", "syndromes"]

WORD = 255
"""Bytes of a code word."""


def _tables() -> tuple[list[int], list[int]]:
    exp, log = [0] * 512, [0] * 256
    value = 1
    for power in range(255):
        exp[power] = exp[power + 255] = value
        log[value] = power
        value = value << 1 ^ (0x11D if value & 0x80 else 0)
    return exp, log


_EXP, _LOG = _tables()


class TooManyErrors(ValueError):
    """A code word is damaged beyond what its parity can repair."""


def _multiply(a: int, b: int) -> int:
    return _EXP[_LOG[a] + _LOG[b]] if a and b else 0


@cache
def _by(factor: int) -> bytes:
    """Return the table that multiplies bytes by `factor`."""
    return bytes(_multiply(factor, byte) for byte in range(256))


@cache
def _generator(roots: int) -> tuple[int, ...]:
    """Return the coefficients of the generator polynomial below the leading 1, highest power first."""
    poly = [1]
    for root in range(roots):
        shifted = [*poly, 0]
        for index, value in enumerate(poly):
            shifted[index + 1] ^= _multiply(value, _EXP[root])
        poly = shifted
    return tuple(poly[1:])


def parity(columns: Iterable[bytes | bytearray | memoryview | None], roots: int, words: int) -> list[bytes]:
    """Return the `roots` parity columns of `words` code words.

    Args:
        columns: The 255 - roots message columns in order, each `words` bytes; None for zeros.
        roots: Parity bytes of a word.
        words: Number of code words.
    """
    tables = [_by(factor) for factor in _generator(roots)]
    state = [0] * roots
    for column in columns:
        feedback = state[0] if column is None else state[0] ^ int.from_bytes(column, "little")
        if not feedback:
            state = [*state[1:], 0]
            continue
        data = feedback.to_bytes(words, "little")
        products = [int.from_bytes(data.translate(table), "little") for table in tables]
        state = [a ^ b for a, b in zip([*state[1:], 0], products, strict=True)]
    return [value.to_bytes(words, "little") for value in state]


def syndromes(columns: Sequence[bytes | bytearray | memoryview], roots: int) -> list[bytes]:
    """Return the `roots` syndromes of every code word, as columns; all are zeros where nothing is damaged.

    Args:
        columns: All 255 columns in order, message first.
        roots: Parity bytes of a word.
    """
    words = len(columns[0])
    numbers = [int.from_bytes(column, "little") for column in columns]
    found: list[bytes] = []
    for root in range(roots):
        table = _by(_EXP[root])
        value = 0
        for number in numbers:
            if value and root:
                value = int.from_bytes(value.to_bytes(words, "little").translate(table), "little")
            value ^= number
        found.append(value.to_bytes(words, "little"))
    return found


def _evaluate(poly: Sequence[int], at: int) -> int:
    """Return the value of a polynomial, lowest power first."""
    value = 0
    for coefficient in reversed(poly):
        value = _multiply(value, at) ^ coefficient
    return value


@cache
def _erasure_locator(powers: tuple[int, ...]) -> tuple[int, ...]:
    poly = [1]
    for power in powers:
        longer = [*poly, 0]
        for index, value in enumerate(poly):
            longer[index + 1] ^= _multiply(value, _EXP[power])
        poly = longer
    return tuple(poly)


def _locator(syndrome: Sequence[int], erased: tuple[int, ...]) -> tuple[int, ...]:
    """Return the polynomial that locates errors and erasures, lowest power first (Berlekamp and Massey)."""
    roots = len(syndrome)
    current = list(_erasure_locator(erased)) + [0] * (roots + 1 - len(erased))
    current = current[: roots + 1]
    before, length = list(current), len(erased)
    for step in range(len(erased), roots):
        discrepancy = 0
        for index in range(step + 1):
            discrepancy ^= _multiply(current[index], syndrome[step - index])
        before = [0, *before[:-1]]
        if not discrepancy:
            continue
        longer = [a ^ _multiply(discrepancy, b) for a, b in zip(current, before, strict=True)]
        if 2 * length <= step + len(erased):
            length = step + 1 + len(erased) - length
            inverse = _EXP[255 - _LOG[discrepancy]]
            before = [_multiply(value, inverse) for value in current]
        current = longer
    while len(current) > 1 and not current[-1]:
        current.pop()
    return tuple(current)


_SEARCHED: dict[tuple[int, ...], tuple[int, ...]] = {}
_MOST_SEARCHED = 4096


def _powers(locator: tuple[int, ...]) -> tuple[int, ...]:
    """Return the powers that a locator locates, as many as its degree.

    A damaged block gives the same locator for all its words: results are kept.
    """
    found = _SEARCHED.get(locator)
    if found is None:
        found = tuple(power for power in range(WORD) if not _evaluate(locator, _EXP[255 - power]))
        if len(_SEARCHED) >= _MOST_SEARCHED:
            _SEARCHED.clear()
        _SEARCHED[locator] = found
    if len(found) != len(locator) - 1:
        raise TooManyErrors
    return found


def correct(syndrome: Sequence[int], erasures: Iterable[int] = ()) -> dict[int, int]:
    """Return what to exclusive-or into a code word, by position (0: its first message byte).

    Args:
        syndrome: Its syndromes.
        erasures: Positions known to be damaged.

    Raises:
        TooManyErrors: It cannot be repaired.
    """
    if not any(syndrome):
        return {}
    roots = len(syndrome)
    erased = tuple(WORD - 1 - position for position in erasures)
    if len(erased) > roots:
        raise TooManyErrors
    locator = _locator(syndrome, erased)
    powers = _powers(locator)
    if 2 * len(powers) - len(erased) > roots:
        raise TooManyErrors
    evaluator = [0] * roots
    for index, value in enumerate(locator):
        for other in range(roots - index):
            evaluator[index + other] ^= _multiply(value, syndrome[other])
    derivative = [value if index % 2 == 0 else 0 for index, value in enumerate(locator[1:])]
    fixes: dict[int, int] = {}
    for power in powers:
        inverse = _EXP[255 - power]
        below = _evaluate(derivative, inverse)
        if not below:
            raise TooManyErrors
        above = _multiply(_evaluate(evaluator, inverse), _EXP[power])
        value = _multiply(above, _EXP[255 - _LOG[below]])
        if value:
            fixes[WORD - 1 - power] = value
    return fixes
