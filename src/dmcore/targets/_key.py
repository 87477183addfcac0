"""Keys in table words: values that no text shows."""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dmcore import validate
from dmcore.errors import SpecError

if TYPE_CHECKING:
    from dmcore.params import Tokens

__all__ = ["Key", "KeyringKey", "decode_hex"]

_MOST_PAYLOAD = 32767
_KEYRING = re.compile(r":(?P<size>[0-9]+):(?P<type>[a-z]+):(?P<description>.+)", re.ASCII | re.DOTALL)
_TYPES = ("logon", "user", "encrypted", "trusted")
_NOT_SHOWN = "(not shown)"


class Key:
    """Bytes of a key. `repr`, `str` and errors tell their number only; `reveal` and a target's `encode` give them.

    Args:
        value: The key, any number of bytes; none for a cipher without key.

    Raises:
        SpecError: Not bytes; the value is not shown.
    """

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        if not isinstance(value, (bytes, bytearray)):  # pyright: ignore[reportUnnecessaryIsInstance] - from callers without types
            raise SpecError("key", _NOT_SHOWN, f"must be bytes, not {type(value).__name__}")
        self._value = bytes(value)

    def __len__(self) -> int:
        """Bytes of the key."""
        return len(self._value)

    def reveal(self) -> bytes:
        """Return the bytes."""
        return self._value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Key):
            return NotImplemented
        return hmac.compare_digest(self._value, other.reveal())

    def __hash__(self) -> int:
        return hash((Key, self._value))

    def __repr__(self) -> str:
        return f"Key(<{len(self)} bytes>)"

    def __reduce__(self) -> tuple[type[Key], tuple[bytes]]:
        return Key, (self._value,)


@dataclass(frozen=True, slots=True)
class KeyringKey:
    """A key in a kernel keyring of the process that loads the table; the kernel copies it at the load.

    Attributes:
        size: Bytes of the key, 1..32767; its payload must have as many (EINVAL).
        type: "logon", "user", "encrypted" or "trusted"; the last two where the kernel has them.
        description: Its name, without white space. ENOKEY if there is none of that name.

    Raises:
        SpecError: A value the kernel would refuse.
    """

    size: int
    type: str
    description: str

    def __post_init__(self) -> None:
        validate.integer("size", self.size, 1, _MOST_PAYLOAD, "bytes")
        if self.type not in _TYPES:
            raise SpecError("type", self.type, f"must be one of {', '.join(_TYPES)}")
        validate.instance("description", self.description, str, "'volume:7'")
        if not self.description or re.search(r"[\s\\\0\xa0]", self.description):
            raise SpecError(
                "description", self.description, "must be a word without white space and backslash"
            )

    def __str__(self) -> str:
        return f":{self.size}:{self.type}:{self.description}"

    @classmethod
    def decode(cls, tokens: Tokens) -> KeyringKey:
        """Take one word, `:<size>:<type>:<description>`."""
        match = _KEYRING.fullmatch(tokens.word("a key"))
        size = int(match["size"][-20:]) if match else 0
        if match is None or match["type"] not in _TYPES or not 1 <= size <= _MOST_PAYLOAD:
            raise tokens.error(":<size>:<logon, user, encrypted or trusted>:<description>", back=1)
        return cls(size, match["type"], match["description"])


def decode_hex(word: str) -> Key | None:
    """Return the key that hex digits say, None if they are not pairs of hex digits."""
    if not re.fullmatch(r"(?:[0-9a-fA-F]{2})+", word, re.ASCII):
        return None
    return Key(bytes.fromhex(word))
