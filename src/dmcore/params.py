"""Words of kernel text: the only place that splits, quotes and converts them.

The kernel's own rules: `dm_split_args` (drivers/md/dm-table.c) for words, `sscanf`-style numbers that wrap,
`kstrto*` numbers that do not, and `dm_read_arg` for numbers with a range.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dmcore.errors import ParseError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["U32_MAX", "U64_MAX", "Tokens", "masked", "quote", "split_words"]

U32_MAX = 2**32 - 1
U64_MAX = 2**64 - 1

_SPACE = b" \t\n\v\f\r\xa0"
_BACKSLASH = ord("\\")
_QUOTED = re.compile(rb"[ \t\n\v\f\r\xa0\\]")
_DIGITS = re.compile(r"[0-9]+")
_CRYPT = frozenset({"crypt", "inlinecrypt"})
_WITHOUT_KEYS = frozenset({
    "cache", "clone", "delay", "dust", "ebs", "era", "error", "flakey", "linear", "log-writes", "mirror", "multipath",
    "raid", "snapshot", "snapshot-merge", "snapshot-origin", "striped", "switch", "thin", "thin-pool", "unstriped", "vdo",
    "verity", "writecache", "zero", "zoned",
})  # fmt: skip
_KEYED = frozenset({"internal_hash", "journal_crypt", "journal_mac"})
_LONG_HEX = re.compile("[0-9a-fA-F]{24}")
_KEY_LIKE = re.compile("(?:.*:)?[0-9a-fA-F]{24,}", re.DOTALL)
_MANY_DIGITS = 4000
"""Digits that `int` converts without complaint."""


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _text(raw: bytes | bytearray) -> str:
    return raw.decode("utf-8", "surrogateescape")


def split_words(text: str) -> list[str]:
    """Split as the kernel does: at runs of white space; a backslash takes the next byte as it is and goes.

    The kernel sees the bytes of the text and takes 0xA0 for white space, which is a part of "\u00e0" in UTF-8: what is
    left of such a character are bytes as `surrogateescape` writes them. A backslash at the very end stays. An empty
    word cannot be written.
    """
    raw = _raw(text)
    if b"\\" not in raw and b"\xa0" not in raw:
        return [_text(word) for word in raw.split()]
    words: list[str] = []
    word = bytearray()
    escaped = False
    for byte in raw:
        if escaped:
            word.append(byte)
            escaped = False
        elif byte == _BACKSLASH:
            escaped = True
        elif byte in _SPACE:
            if word:
                words.append(_text(word))
                word.clear()
        else:
            word.append(byte)
    if escaped:
        word.append(_BACKSLASH)
    if word:
        words.append(_text(word))
    return words


def quote(word: str) -> str:
    """Return `word` so that `split_words` (and the kernel) reads it back as one word.

    Raises:
        ValueError: An empty word, or one with NUL: the kernel's text cannot hold them.
    """
    if not word or "\0" in word:
        message = f"{word!r} cannot be a word of kernel text"
        raise ValueError(message)
    return _escaped(word)


def _escaped(word: str) -> str:
    return _text(_QUOTED.sub(lambda match: b"\\" + match[0], _raw(word)))


def _key_in_place(word: str) -> str:
    return f"<{len(word) // 2}-byte-key>"


def _masked_word(target: str, index: int, word: str) -> str:
    """Return the word of a target's parameters, or what stands for it if it holds a key."""
    if target in _CRYPT:
        keyring = word.startswith(":") and word.count(":") >= 3
        if (index == 1 and word != "-" and not keyring) or _LONG_HEX.search(word):
            return _key_in_place(word)
    elif target == "integrity":
        name, *rest = word.split(":", 2)
        if name.lower() in _KEYED and len(rest) == 2:
            return f"{name}:{rest[0]}:{_key_in_place(rest[1])}"
        if _LONG_HEX.search(word):
            return _key_in_place(word)
    elif _KEY_LIKE.fullmatch(word):
        return _key_in_place(word)
    return word


def masked(target: str, params: str) -> str:
    """Return parameters of a table line, right or wrong, fit to be shown: `<32-byte-key>` stands for each key.

    Neither this library nor the kernel takes such a word for a key. Names of keys in a kernel keyring stay. Of a target
    that is not known here, a misspelled "crypt" for instance, words that look like keys are not shown.

    Args:
        target: Kernel name of the target.
        params: Its parameters; those of targets without keys come back as they are.
    """
    if target in _WITHOUT_KEYS:
        return params
    words = split_words(params)
    shown = [_masked_word(target, index, word) for index, word in enumerate(words)]
    return params if shown == words else " ".join(map(_escaped, shown))


class Tokens:
    """A cursor over the words of one text; every failure names the word and its position, and shows no key."""

    def __init__(self, text: str, *, target: str = "") -> None:
        self.text = text
        self.target = target
        self._words = split_words(text)
        self._index = 0

    def __len__(self) -> int:
        """How many words are left."""
        return len(self._words) - self._index

    def __iter__(self) -> Iterator[str]:
        while len(self):
            yield self.word("a word")

    @property
    def left(self) -> tuple[str, ...]:
        """The words not yet taken."""
        return tuple(self._words[self._index :])

    def error(self, expected: str, *, back: int = 0) -> ParseError:
        """Return the error for the current word (`back`=1: the one just taken)."""
        index = self._index - back
        word = self._words[index] if index < len(self._words) else None
        text = masked(self.target, self.text)
        if text != self.text and word is not None:
            word = split_words(text)[index]
        return ParseError(text, index, word, expected, self.target)

    def peek(self) -> str | None:
        """Return the current word without taking it; None at the end."""
        return self._words[self._index] if len(self) else None

    def word(self, expected: str) -> str:
        """Take one word, whatever it is."""
        if not len(self):
            raise self.error(expected)
        word = self._words[self._index]
        self._index += 1
        return word

    def keyword(self, *choices: str) -> str:
        """Take one of `choices`, in any case (`strcasecmp`); returns it as spelled in `choices`."""
        expected = " or ".join(choices)
        word = self.word(expected)
        for choice in choices:
            if choice.lower() == word.lower():
                return choice
        raise self.error(expected, back=1)

    def _number(self, word: str, expected: str) -> int:
        if not _DIGITS.fullmatch(word):
            raise self.error(expected, back=1)
        value = 0
        for start in range(0, len(word), _MANY_DIGITS):
            piece = word[start : start + _MANY_DIGITS]
            value = value * 10 ** len(piece) + int(piece)
        return value

    def wrapping(self, expected: str, *, bits: int = 64) -> int:
        """Take a number as `sscanf("%u"/"%llu")` does: decimal digits, blanks before them; it wraps at 2^`bits`.

        A number that does not fit 64 bits is an error: old kernels wrap it, new ones take 2^64-1 for it.
        """
        value = self._number(self.word(expected).lstrip(" \t\n\v\f\r"), expected)
        if value > U64_MAX:
            raise self.error(f"{expected} (kernels differ on numbers of more than 64 bits)", back=1)
        return value % (1 << bits)

    def strict(self, expected: str, *, bits: int = 32) -> int:
        """Take a number as `kstrtouint`/`kstrtoull` base 10 do: a `+` before and a newline behind it are allowed.

        A value too large is an error.
        """
        word = self.word(expected).removeprefix("+").removesuffix("\n")
        value = self._number(word, expected)
        if value >= 1 << bits:
            raise self.error(f"{expected} (at most {bits} bits)", back=1)
        return value

    def signed(self, expected: str, low: int = -(2**31), high: int = 2**31 - 1) -> int:
        """Take a number as `kstrtoint` base 10 does, which may be below 0, then within `low`..`high`."""
        word = self.word(expected)
        digits = word[1:] if word[:1] in {"+", "-"} else word
        value = self._number(digits.removesuffix("\n"), expected) * (-1 if word[0] == "-" else 1)
        if not low <= value <= high:
            raise self.error(f"{expected} ({low}..{high})", back=1)
        return value

    def ranged(self, expected: str, low: int, high: int) -> int:
        """Take a number as `dm_read_arg` does: `wrapping` in 32 bits, then within `low`..`high`."""
        value = self.wrapping(expected, bits=32)
        if not low <= value <= high:
            raise self.error(f"{expected} ({low}..{high})", back=1)
        return value

    def done(self) -> None:
        """Raise ParseError if a word is left."""
        if len(self):
            raise self.error("the end")
