"""Hashes by the names that the kernel's crypto interface gives them."""

from __future__ import annotations

import errno
import hashlib
import os
import zlib
from typing import TYPE_CHECKING, Any, Protocol

from dmcore.errors import SpecError, Unsupported
from dmcore.formats.crc32c import crc32c, crc32c_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

__all__ = ["Hash", "digest_size", "digests", "hash_named", "new_hash"]

_MANY = 8

_HASHLIB = {
    "md5": "md5", "sha1": "sha1", "sha224": "sha224", "sha256": "sha256", "sha384": "sha384", "sha512": "sha512",
    "sha3-224": "sha3_224", "sha3-256": "sha3_256", "sha3-384": "sha3_384", "sha3-512": "sha3_512", "sm3": "sm3",
    "rmd160": "ripemd160",
}  # fmt: skip
_WIDE = {f"blake2b-{bits}": bits // 8 for bits in (160, 256, 384, 512)}
_NARROW = {f"blake2s-{bits}": bits // 8 for bits in (128, 160, 224, 256)}


class Hash(Protocol):
    """A hash on its way, as those of hashlib."""

    @property
    def digest_size(self) -> int:
        """Bytes of the digest."""
        ...

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        """Go on with `data`."""
        ...

    def digest(self) -> bytes:
        """Return the digest of all so far."""
        ...

    def copy(self) -> Self:
        """Return another one that stands where this one does."""
        ...


class _Crc32:
    """CRC-32 in the kernel's way: it begins with `seed`, 0 by default, and nothing is inverted at the end."""

    digest_size = 4

    def __init__(self, state: int = 0) -> None:
        self._state = state

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        self._state = zlib.crc32(data, self._state ^ 0xFFFFFFFF) ^ 0xFFFFFFFF

    def digest(self) -> bytes:
        return self._state.to_bytes(4, "little")

    def copy(self) -> _Crc32:
        return _Crc32(self._state)


class _Crc32c:
    """CRC-32C as everybody has it."""

    digest_size = 4

    def __init__(self, state: int = 0xFFFFFFFF) -> None:
        self._state = state

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        self._state = crc32c(data, self._state)

    def digest(self) -> bytes:
        return (self._state ^ 0xFFFFFFFF).to_bytes(4, "little")

    def copy(self) -> _Crc32c:
        return _Crc32c(self._state)

    def many(self, heads: Sequence[bytes], data: bytes | bytearray | memoryview, step: int) -> list[bytes]:
        """Return the digests of blocks, all at once."""
        import numpy as np

        blocks = np.frombuffer(data, np.uint8).reshape(-1, step)
        first = np.frombuffer(b"".join(heads), np.uint8).reshape(len(blocks), -1)
        found = ~crc32c_rows(np.concatenate([first, blocks], axis=1), self._state)
        return [each.tobytes() for each in found.astype("<u4")]


class _XxHash64:
    """xxHash64, whose key is the seed; the digest is little-endian in the kernel."""

    digest_size = 8

    def __init__(self, state: Any) -> None:
        self._state = state

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        self._state.update(data)

    def digest(self) -> bytes:
        return bytes(self._state.digest()[::-1])

    def copy(self) -> _XxHash64:
        return _XxHash64(self._state.copy())


def _checksum(name: str, key: bytes | None) -> Hash | None:
    """Return a checksum, whose key is what it begins with."""
    size = {"crc32": 4, "crc32c": 4, "xxhash64": 8}.get(name)
    if size is None:
        return None
    if key is not None and len(key) != size:
        raise SpecError("key", f"({len(key)} bytes)", f"{name} takes one of {size} bytes")
    seed = None if key is None else int.from_bytes(key, "little")
    if name == "crc32":
        return _Crc32(seed or 0)
    if name == "crc32c":
        return _Crc32c(0xFFFFFFFF if seed is None else seed)
    try:
        import xxhash  # noqa: PLC0415 - wanted for this hash only
    except ImportError:
        raise Unsupported("xxhash64", "the package xxhash is not installed", "pip install xxhash") from None
    return _XxHash64(xxhash.xxh64(seed=seed or 0))


def hash_named(name: str) -> Callable[[], Hash]:
    """Return what makes a hash without a key.

    Raises:
        Unsupported: Python has none of that name.
    """
    if name in _WIDE:
        return lambda: hashlib.blake2b(digest_size=_WIDE[name])
    if name in _NARROW:
        return lambda: hashlib.blake2s(digest_size=_NARROW[name])
    python = _HASHLIB.get(name)
    if python is None or python not in hashlib.algorithms_available:
        raise Unsupported(f"the hash {name}", "Python's hashlib does not have it", "use a kernel")
    return lambda: hashlib.new(python, usedforsecurity=False)


def new_hash(name: str, key: bytes | None = None) -> Hash:
    """Return a hash that has seen nothing yet.

    Args:
        name: As in a table: "sha256", "crc32c", "hmac(sha256)", "xxhash64" ...
        key: Of an hmac, of any length; a checksum's seed.

    Raises:
        OSError: ENOKEY as in the kernel: an hmac without a key.
        SpecError: A key for a hash that takes none, or of a wrong length.
        Unsupported: There is no such hash here.
    """
    if (checksum := _checksum(name, key)) is not None:
        return checksum
    if name.startswith("hmac(") and name.endswith(")"):
        inner = hash_named(name[5:-1])
        if key is None:
            raise OSError(errno.ENOKEY, os.strerror(errno.ENOKEY))
        import hmac  # noqa: PLC0415 - a tenth of what importing this module costs

        return hmac.new(key, digestmod=inner)  # type: ignore[arg-type]
    made = hash_named(name)()
    if key is not None and name in (_WIDE | _NARROW):
        keyed = hashlib.blake2b if name in _WIDE else hashlib.blake2s
        return keyed(key=key, digest_size=made.digest_size)
    if key is not None:
        raise SpecError("key", f"({len(key)} bytes)", f"{name} takes none")
    return made


def digest_size(name: str) -> int:
    """Return the bytes of a digest; of an hmac, those of the hash inside."""
    inner = name[5:-1] if name.startswith("hmac(") and name.endswith(")") else name
    return new_hash(inner).digest_size


def digests(
    begun: Hash, heads: Sequence[bytes], data: bytes | bytearray | memoryview, step: int
) -> list[bytes]:
    """Return the digest of each `step` bytes of `data` behind its own head, all heads of one length."""
    if isinstance(begun, _Crc32c) and len(heads) >= _MANY:
        return begun.many(heads, data, step)
    found: list[bytes] = []
    for number, head in enumerate(heads):
        hasher = begun.copy()
        hasher.update(head)
        hasher.update(data[number * step : (number + 1) * step])
        found.append(hasher.digest())
    return found
