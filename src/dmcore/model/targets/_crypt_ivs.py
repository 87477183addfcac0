"""How dm-crypt makes the IV of a unit, and what some generators do to its data besides.

Sources: drivers/md/dm-crypt.c (crypt_iv_*_gen, crypt_iv_*_post, crypt_iv_*_ctr).
"""

from __future__ import annotations

import secrets
import zlib
from typing import TYPE_CHECKING

import numpy as np

from dmcore.errors import SpecError
from dmcore.model.targets._crypt_blocks import Block
from dmcore.model.targets._crypt_diffuse import diffuse, md5_state, undiffuse

if TYPE_CHECKING:
    from dmcore.model.targets._crypt_blocks import Octets, Words
    from dmcore.model.targets._crypt_modes import Mode

__all__ = ["Iv", "make_iv"]

_U = np.uint64


def _little(numbers: Words, size: int) -> Octets:
    """Return numbers as 64 bits, lowest byte first, in the first bytes of IVs."""
    words = np.zeros((len(numbers), -(-size // 8)), np.uint64)
    words[:, 0] = numbers
    return words.view(np.uint8)[:, :size]


def _big(numbers: Words, size: int) -> Octets:
    """Return numbers as 64 bits, highest byte first, in the last bytes of IVs."""
    iv = np.zeros((len(numbers), size), np.uint8)
    iv[:, -8:] = numbers[:, None].view(np.uint8)[:, ::-1]
    return iv


class Iv:
    """A generator. The base makes "plain64", which "essiv" is too: there the cipher encrypts it.

    Units are `(units, bytes)`; `numbers` are those of the units as the IV counts them.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def generate(self, numbers: Words, data: Octets, *, encrypt: bool) -> Octets:
        """Return the IVs, `(units, size)`."""
        del data, encrypt
        return _little(numbers, self.size)

    def before(self, numbers: Words, data: Octets, *, encrypt: bool) -> Octets:
        """Return what goes into the cipher instead of `data`, which is left as it is."""
        del numbers, encrypt
        return data

    def after(self, numbers: Words, data: Octets, *, encrypt: bool) -> None:
        """Change what came out of the cipher."""


class _Plain(Iv):
    def generate(self, numbers: Words, data: Octets, *, encrypt: bool) -> Octets:
        """Return 32 bits of the number."""
        del data, encrypt
        return _little(numbers & _U(0xFFFFFFFF), self.size)


class _Plain64be(Iv):
    def generate(self, numbers: Words, data: Octets, *, encrypt: bool) -> Octets:
        """Return the number, highest byte first, at the end."""
        del data, encrypt
        return _big(numbers, self.size)


class _Null(Iv):
    def generate(self, numbers: Words, data: Octets, *, encrypt: bool) -> Octets:
        """Return zeros."""
        del data, encrypt
        return np.zeros((len(numbers), self.size), np.uint8)


class _Random(Iv):
    def generate(self, numbers: Words, data: Octets, *, encrypt: bool) -> Octets:
        """Return random bytes; never from the stack's repeatable chance, which would encrypt twice with one IV."""
        del data, encrypt
        return np.frombuffer(secrets.token_bytes(len(numbers) * self.size), np.uint8).reshape(-1, self.size)


class _Benbi(Iv):
    """The number of the unit's first block, counted in blocks of 512 bytes' worth, from 1 on."""

    def __init__(self, size: int, block: int) -> None:
        super().__init__(size)
        self._shift = _U(9 - (block.bit_length() - 1))

    def generate(self, numbers: Words, data: Octets, *, encrypt: bool) -> Octets:
        del data, encrypt
        return _big((numbers << self._shift) + _U(1), self.size)


class _Eboiv(Iv):
    """What the cipher makes of a block of zeros whose IV is the unit's place in bytes."""

    def __init__(self, size: int, unit: int, mode: Mode) -> None:
        super().__init__(size)
        if mode.block != size:
            raise SpecError("cipher", "eboiv", f"needs an IV of one block, not {size} and {mode.block} bytes")
        self._unit = _U(unit)
        self._mode = mode

    def generate(self, numbers: Words, data: Octets, *, encrypt: bool) -> Octets:
        del data, encrypt
        places = _little(numbers * self._unit, self.size).view(np.uint64)
        zeros = np.zeros((len(numbers), 1, self._mode.words), np.uint64)
        out = np.empty_like(zeros)
        self._mode.encrypt(zeros, places, out)
        return out.view(np.uint8).reshape(-1, self.size)


class _Elephant(_Eboiv):
    """Eboiv, and Microsoft's diffuser around the cipher."""

    def __init__(self, size: int, unit: int, mode: Mode, key: bytes) -> None:
        super().__init__(size, unit, mode)
        self._cipher = Block("aes", key)

    def _sector_key(self, numbers: Words) -> Words:
        places = np.zeros((len(numbers), 2, 2), np.uint64)
        places[:, :, 0] = (numbers * self._unit)[:, None]
        places.view(np.uint8)[:, 1, 15] = 0x80
        return self._cipher.encrypt(places).reshape(-1, 1, 4)

    def before(self, numbers: Words, data: Octets, *, encrypt: bool) -> Octets:
        """Mix the sector key in and diffuse."""
        if not encrypt:
            return data
        mixed = data.view(np.uint64).reshape(len(data), -1, 4) ^ self._sector_key(numbers)
        return diffuse(mixed.view(np.uint8).reshape(data.shape))

    def after(self, numbers: Words, data: Octets, *, encrypt: bool) -> None:
        if encrypt:
            return
        clear = undiffuse(data).view(np.uint64).reshape(len(data), -1, 4) ^ self._sector_key(numbers)
        data[:] = clear.view(np.uint8).reshape(data.shape)


class _Lmk(Iv):
    """loop-AES: a hash of all but the first block, of the plaintext; reading has it only afterwards."""

    def __init__(self, size: int, seed: bytes) -> None:
        super().__init__(size)
        self._seed = seed

    def _hash(self, numbers: Words, data: Octets) -> Octets:
        tail = np.empty((len(numbers), 4), np.uint32)
        tail[:, 0] = numbers & _U(0xFFFFFFFF)
        tail[:, 1] = numbers >> _U(32) & _U(0x00FFFFFF) | _U(0x80000000)
        tail[:, 2:] = (4024, 0)
        seed = np.broadcast_to(np.frombuffer(self._seed, np.uint8), (len(numbers), len(self._seed)))
        return md5_state(np.hstack((seed, data[:, 16:], tail.view(np.uint8))))[:, : self.size]

    def generate(self, numbers: Words, data: Octets, *, encrypt: bool) -> Octets:
        """Return the hash to encrypt with, zeros to decrypt with."""
        return self._hash(numbers, data) if encrypt else np.zeros((len(numbers), self.size), np.uint8)

    def after(self, numbers: Words, data: Octets, *, encrypt: bool) -> None:
        if not encrypt:
            data[:, : self.size] ^= self._hash(numbers, data)


class _Tcw(Iv):
    """Old TrueCrypt: the number in a seed for an IV, and a pattern over the ciphertext."""

    def __init__(self, size: int, extra: bytes) -> None:
        super().__init__(size)
        self._seed = np.frombuffer(extra[:size], np.uint8)
        self._whitening = np.frombuffer(extra[size : size + 16], np.uint8)

    def _doubled(self, numbers: Words, size: int) -> Octets:
        return np.tile(numbers[:, None].view(np.uint8), (1, -(-size // 8)))[:, :size]

    def generate(self, numbers: Words, data: Octets, *, encrypt: bool) -> Octets:
        del data, encrypt
        return self._seed ^ self._doubled(numbers, self.size)

    def _whitened(self, numbers: Words, data: Octets) -> Octets:
        mixed = self._whitening ^ self._doubled(numbers, 16)
        words = mixed.reshape(-1, 4)
        sums = [zlib.crc32(word.tobytes(), 0xFFFFFFFF) ^ 0xFFFFFFFF for word in words]
        crc = np.array(sums, np.uint32).reshape(-1, 4)
        pattern = np.stack((crc[:, 0] ^ crc[:, 3], crc[:, 1] ^ crc[:, 2]), axis=1).view(np.uint64)
        return (data.view(np.uint64) ^ pattern).view(np.uint8)

    def before(self, numbers: Words, data: Octets, *, encrypt: bool) -> Octets:
        """Take the pattern off what is decrypted."""
        return data if encrypt else self._whitened(numbers, data)

    def after(self, numbers: Words, data: Octets, *, encrypt: bool) -> None:
        if encrypt:
            data[:] = self._whitened(numbers, data)


def make_iv(name: str, size: int, unit: int, *, mode: Mode | None, block: int, extra: bytes) -> Iv:
    """Return a generator.

    Args:
        name: One of `dmcore.targets.crypt.IVS`.
        size: Bytes of an IV.
        unit: Bytes of a unit.
        mode: The cipher under its first key; None for one that authenticates.
        block: Bytes that the cipher calls its block size.
        extra: The part of the key that is for the generator.
    """
    if name in {"eboiv", "elephant"}:
        if mode is None:
            raise SpecError("cipher", name, "does not go with a cipher that authenticates")
        return _Eboiv(size, unit, mode) if name == "eboiv" else _Elephant(size, unit, mode, extra)
    if name == "benbi":
        return _Benbi(size, block)
    if name == "lmk":
        return _Lmk(size, extra[:16].ljust(64, b"\0") if extra else b"")
    if name == "tcw":
        return _Tcw(size, extra)
    plain = {"plain": _Plain, "plain64be": _Plain64be, "null": _Null, "random": _Random}
    return plain.get(name, Iv)(size)
