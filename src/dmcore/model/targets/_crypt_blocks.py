"""Block ciphers by the kernel crypto API's names, over arrays: what the `cryptography` library offers, its old ones included."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from cryptography.hazmat.decrepit.ciphers import algorithms as decrepit
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from dmcore.errors import SpecError, Unsupported
from dmcore.formats.hashes import hash_named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cryptography.hazmat.primitives.ciphers import CipherContext
    from numpy.typing import NDArray

    Words: TypeAlias = NDArray[np.uint64]
    Octets: TypeAlias = NDArray[np.uint8]

__all__ = ["BLOCKS", "Block", "bad_key", "block_size", "digest", "unsupported"]


def _single_des(key: bytes) -> Any:
    return decrepit.TripleDES(key * 3)


_BLOCKS: dict[str, tuple[Callable[[bytes], Any], int, Iterable[int]]] = {
    "aes": (algorithms.AES, 16, (16, 24, 32)),
    "camellia": (decrepit.Camellia, 16, (16, 24, 32)),
    "sm4": (algorithms.SM4, 16, (16,)),
    "seed": (decrepit.SEED, 16, (16,)),
    "des3_ede": (decrepit.TripleDES, 8, (24,)),
    "des": (_single_des, 8, (8,)),
    "blowfish": (decrepit.Blowfish, 8, range(4, 57)),
    "cast5": (decrepit.CAST5, 8, range(5, 17)),
}
BLOCKS = tuple(_BLOCKS)
"""Names of the block ciphers that are there."""


def block_size(name: str) -> int:
    """Return the bytes of a block of one of `BLOCKS`."""
    return _BLOCKS[name][1]


def unsupported(what: str) -> Unsupported:
    """Return the error for an algorithm that no library here offers."""
    return Unsupported(
        f"the algorithm {what}",
        f"it is not supported here; block ciphers are {', '.join(BLOCKS)}",
        "load the table on a kernel: pytest --dm-vm",
    )


def bad_key(name: str, size: int, allowed: Iterable[int]) -> SpecError:
    """Return the error for a key of a wrong size; no part of it is shown."""
    sizes = [*allowed]
    shown = ", ".join(map(str, sizes)) if len(sizes) < 5 else f"{sizes[0]}..{sizes[-1]}"
    return SpecError("key", f"<{size} bytes>", f"{name} takes {shown} bytes")


def digest(name: str, data: bytes) -> bytes:
    """Return the hash of `data` by the kernel's name of the algorithm; Unsupported if it is not there."""
    state = hash_named(name)()
    state.update(data)
    return state.digest()


class Block:
    """A block cipher under one key: ECB over whole arrays. Contexts are made once: making one costs 50 us.

    Attributes:
        size: Bytes of a block.
    """

    def __init__(self, name: str, key: bytes) -> None:
        if name not in _BLOCKS:
            raise unsupported(name)
        make, self.size, sizes = _BLOCKS[name]
        if len(key) not in sizes:
            raise bad_key(name, len(key), sizes)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old ciphers are why this module is there
            self._cipher = Cipher(make(key), modes.ECB())  # noqa: S305 - the modes are built on it
        self._encryptor = self._cipher.encryptor()
        self._decryptor = self._cipher.decryptor()

    def encrypt_into(self, data: Words, out: Words | Octets) -> None:
        """Encrypt whole blocks into `out`, which may be `data`. Room for a block more saves a call."""
        self._into(self._encryptor, data, out)

    def decrypt_into(self, data: Words, out: Words | Octets) -> None:
        """Decrypt whole blocks into `out`, which may be `data`. Room for a block more saves a call."""
        self._into(self._decryptor, data, out)

    def _into(self, context: CipherContext, data: Words, out: Words | Octets) -> None:
        source, result = data.data.cast("B"), out.data.cast("B")
        if len(result) >= len(source) + self.size:
            context.update_into(source, result)
            return
        # `update_into` wants room for a block, less a byte, behind what it puts out.
        most = len(source) - self.size
        if most > 0:
            context.update_into(source[:most], result)
        result[most:] = context.update(source[most:])

    def encrypt(self, data: Words) -> Words:
        """Return the encryption of an array of whole blocks, in its shape."""
        out = np.empty(data.nbytes + self.size, np.uint8)
        self.encrypt_into(np.ascontiguousarray(data), out)
        return out[: data.nbytes].view(np.uint64).reshape(data.shape)

    def decrypt(self, data: Words) -> Words:
        """Return the decryption of an array of whole blocks, in its shape."""
        out = np.empty(data.nbytes + self.size, np.uint8)
        self.decrypt_into(np.ascontiguousarray(data), out)
        return out[: data.nbytes].view(np.uint64).reshape(data.shape)
