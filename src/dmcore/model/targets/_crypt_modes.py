"""Modes of ciphers over many units at once: arrays of `(units, blocks, words of a block)`, an IV for each unit.

Sources: crypto/{ecb,cbc,ctr,xts,lrw,essiv,pcbc}.c for what a mode's key and IV are.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from dmcore.model.targets._crypt_blocks import BLOCKS, Block, bad_key, block_size, digest, unsupported
from dmcore.model.targets._crypt_tweaks import MOST_BLOCKS, Tweaks, doubled

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from dmcore.model.targets._crypt_blocks import Octets, Words

__all__ = ["Mode", "make_mode", "split_name"]


class Mode(ABC):
    """A cipher in a mode under one key (an skcipher of the kernel). Not for use by two threads at once.

    Attributes:
        iv_size: Bytes of the IV, 0 for none.
        block: Bytes that the kernel calls its block size; 1 for a stream.
        words: 64-bit words of the block cipher's block, the last axis of the arrays.
        in_place: Whether `out` may be `data`.
    """

    iv_size: int
    block: int
    words: int = 2
    in_place: bool = False

    @abstractmethod
    def encrypt(self, data: Words, iv: Words, out: Words) -> None:
        """Encrypt units into `out`; all arrays are contiguous."""

    @abstractmethod
    def decrypt(self, data: Words, iv: Words, out: Words) -> None:
        """Decrypt units into `out`; all arrays are contiguous."""


class _Null(Mode):
    iv_size, block, words = 0, 1, 1
    in_place = True

    def encrypt(self, data: Words, iv: Words, out: Words) -> None:
        del iv
        out[:] = data

    decrypt = encrypt


class _OfBlocks(Mode):
    """Base of the modes of a block cipher; keeps room for what its ECB puts out."""

    def __init__(self, cipher: Block) -> None:
        self.cipher = cipher
        self.iv_size = self.block = cipher.size
        self.words = cipher.size // 8
        self._room = np.empty(0, np.uint8)

    def _scratch(self, like: Words) -> tuple[Octets, Words]:
        """Return room for the blocks of an array and one more, and its view in that array's shape."""
        need = like.nbytes + self.cipher.size
        if len(self._room) < need:
            self._room = np.empty(need, np.uint8)
        room = self._room[:need]
        return room, room[: like.nbytes].view(np.uint64).reshape(like.shape)


class _Ecb(_OfBlocks):
    in_place = True

    def __init__(self, cipher: Block) -> None:
        super().__init__(cipher)
        self.iv_size = 0

    def encrypt(self, data: Words, iv: Words, out: Words) -> None:
        del iv
        self.cipher.encrypt_into(data, out)

    def decrypt(self, data: Words, iv: Words, out: Words) -> None:
        del iv
        self.cipher.decrypt_into(data, out)


def _as_items(array: Words) -> NDArray[Any]:
    """Return `(units, blocks)` items, a block each, so that numpy copies them as one."""
    return array.view(np.complex128 if array.shape[2] == 2 else np.uint64)[:, :, 0]


class _Cbc(_OfBlocks):
    def __init__(self, cipher: Block) -> None:
        super().__init__(cipher)
        self._turned = np.empty(0, np.uint64)

    def encrypt(self, data: Words, iv: Words, out: Words) -> None:
        """One block of every unit after the other; blocks that go together lie together meanwhile."""
        units, blocks, words = data.shape
        if len(self._turned) < data.size + words:
            self._turned = np.empty(data.size + words, np.uint64)
        turned = self._turned[: data.size].reshape(blocks, units, words)
        items = _as_items(turned).T
        np.copyto(items, _as_items(data))
        last, step = iv, units * words
        for at, each in enumerate(turned):
            np.bitwise_xor(last, each, out=each)
            self.cipher.encrypt_into(each, self._turned[at * step :])
            last = each
        np.copyto(_as_items(out), items)

    def decrypt(self, data: Words, iv: Words, out: Words) -> None:
        """Mix all blocks with those before them in one go, and then put right what begins a unit: rows cost more."""
        self.cipher.decrypt_into(data, out)
        first = out[:, 0] ^ iv
        behind, before = out.reshape(-1)[self.words :], data.reshape(-1)[: -self.words]
        np.bitwise_xor(behind, before, out=behind)
        out[:, 0] = first


class _Pcbc(_OfBlocks):
    def encrypt(self, data: Words, iv: Words, out: Words) -> None:
        room, last = self._scratch(iv)
        last[:] = iv
        for block in range(data.shape[1]):
            np.bitwise_xor(last, data[:, block], out=last)
            self.cipher.encrypt_into(last, room)
            out[:, block] = last
            np.bitwise_xor(last, data[:, block], out=last)

    def decrypt(self, data: Words, iv: Words, out: Words) -> None:
        room, result = self._scratch(data)
        self.cipher.decrypt_into(data, room)
        last = iv
        for block in range(data.shape[1]):
            np.bitwise_xor(result[:, block], last, out=out[:, block])
            last = out[:, block] ^ data[:, block]


class _Ctr(_OfBlocks):
    """The counter is the whole block, its last byte the lowest."""

    def __init__(self, cipher: Block) -> None:
        super().__init__(cipher)
        self.block = 1

    def encrypt(self, data: Words, iv: Words, out: Words) -> None:
        room, stream = self._scratch(data)
        counter = stream.view(">u8")
        count = np.arange(data.shape[1], dtype=np.uint64)
        lowest = iv[:, -1:].view(">u8").astype(np.uint64) + count
        counter[:, :, -1] = lowest
        if self.words == 2:
            high = iv[:, :1].view(">u8").astype(np.uint64)
            counter[:, :, 0] = high + (lowest < count)
        self.cipher.encrypt_into(stream, room)
        np.bitwise_xor(data, stream, out=out)

    decrypt = encrypt


class _Tweaked(_OfBlocks):
    """Each block is mixed with a tweak of its own before the cipher and behind it."""

    in_place = True

    @abstractmethod
    def _tweaked(self, iv: Words, units: int, blocks: int) -> Words:
        """Return the tweak of every block of every unit."""

    def _do(self, data: Words, iv: Words, out: Words, *, encrypt: bool) -> None:
        tweaks = self._tweaked(iv, *data.shape[:2])
        np.bitwise_xor(data, tweaks, out=out)
        (self.cipher.encrypt_into if encrypt else self.cipher.decrypt_into)(out, out)
        np.bitwise_xor(out, tweaks, out=out)

    def encrypt(self, data: Words, iv: Words, out: Words) -> None:
        self._do(data, iv, out, encrypt=True)

    def decrypt(self, data: Words, iv: Words, out: Words) -> None:
        self._do(data, iv, out, encrypt=False)


class _Xts(_Tweaked):
    def __init__(self, cipher: Block, tweak: Block) -> None:
        super().__init__(cipher)
        self._tweak = tweak
        self._tweaks: Tweaks | None = None

    def _tweaked(self, iv: Words, units: int, blocks: int) -> Words:
        """Return `E(iv) * x^block` for every block of every unit."""
        row = min(-(-blocks // 8) * 8, MOST_BLOCKS)
        rows = -(-blocks // row)
        first = self._tweak.encrypt(iv)
        if rows > 1:
            first = _far(first, rows, row)
        if self._tweaks is None or self._tweaks.blocks != row or units * rows > self._tweaks.rows:
            self._tweaks = Tweaks(units * rows, row)
        tweaks = self._tweaks(first.reshape(-1, 2)).reshape(units, rows * row, 2)
        return tweaks if blocks == rows * row else tweaks[:, :blocks]


def _far(first: Words, rows: int, row: int) -> Words:
    """Return `(units, rows, 2)` words: each tweak, and it times x^row, x^2row ..."""
    made = np.empty((len(first), rows, 2), np.uint64)
    made[:, 0] = first
    for number in range(1, rows):
        last = made[:, number - 1]
        for _ in range(row // 32):
            last = doubled(last, 32)
        made[:, number] = last
    return made


class _Lrw(_Tweaked):
    """Tweak of block i: K2 * i in GF(2^128) with the first bit the highest power; the IV is the number of the first block."""

    def __init__(self, cipher: Block, tweak: bytes) -> None:
        super().__init__(cipher)
        number = int.from_bytes(tweak, "big")
        powers: list[int] = []
        for _ in range(128):
            powers.append(number)
            number = (number << 1) & (2**128 - 1) ^ (0x87 if number >> 127 else 0)
        self._powers = np.frombuffer(b"".join(power.to_bytes(16, "big") for power in powers), np.uint64)
        self._powers = self._powers.reshape(128, 2)

    def _tweaked(self, iv: Words, units: int, blocks: int) -> Words:
        count = np.arange(blocks, dtype=np.uint64)
        low = iv[:, 1:].view(">u8").astype(np.uint64) + count
        high = iv[:, :1].view(">u8").astype(np.uint64) + (low < count)
        tweaks = np.zeros((units, blocks, 2), np.uint64)
        for bit in range(128):
            word = low if bit < 64 else high
            mask = np.uint64(0) - (word >> np.uint64(bit % 64) & np.uint64(1))
            if mask.any():
                tweaks ^= mask[:, :, None] & self._powers[bit]
        return tweaks


class _Essiv(Mode):
    """Another mode, whose IV is encrypted first."""

    def __init__(self, inner: Mode, cipher: Block) -> None:
        self.inner = inner
        self.cipher = cipher
        self.iv_size, self.block, self.words = inner.iv_size, inner.block, inner.words
        self.in_place = inner.in_place

    def encrypt(self, data: Words, iv: Words, out: Words) -> None:
        self.inner.encrypt(data, self.cipher.encrypt(iv), out)

    def decrypt(self, data: Words, iv: Words, out: Words) -> None:
        self.inner.decrypt(data, self.cipher.encrypt(iv), out)


class _ChaCha20(Mode):
    """The IV is a 32-bit counter and the nonce; the counter goes on from 0 without a carry (lib/crypto/chacha.c)."""

    iv_size, block = 16, 1

    def __init__(self, key: bytes) -> None:
        if len(key) != 32:
            raise bad_key("chacha20", len(key), (32,))
        self._key = key

    def encrypt(self, data: Words, iv: Words, out: Words) -> None:
        for unit, start, result in zip(data, iv, out, strict=True):
            text, first = unit.tobytes(), start.tobytes()
            room = (2**32 - int.from_bytes(first[:4], "little")) * 64
            made = self._run(text[:room], first)
            if room < len(text):
                made += self._run(text[room:], bytes(4) + first[4:])
            result[:] = np.frombuffer(made, np.uint64).reshape(unit.shape)

    def _run(self, text: bytes, first: bytes) -> bytes:
        return Cipher(algorithms.ChaCha20(self._key, first), None).encryptor().update(text)

    decrypt = encrypt


def split_name(name: str) -> tuple[str, list[str]]:
    """Return the template and its arguments: `("authenc", ["hmac(sha256)", "xts(aes)"])`, without any for a plain name."""
    match = re.fullmatch(r"([^(),]+)\((.*)\)", name)
    if match is None:
        return name, []
    parts, depth = [""], 0
    for letter in match[2]:
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return match[1], parts


def _cipher_of(name: str) -> str:
    """Return the innermost block cipher of a name."""
    template, parts = split_name(name)
    return _cipher_of(parts[0]) if parts else template


def make_mode(name: str, key: bytes) -> Mode:
    """Return what the crypto API's name of an skcipher means, under a key.

    Raises:
        Unsupported: An algorithm that no library here offers.
        SpecError: A key of a wrong size; it is not shown.
    """
    template, parts = split_name(name)
    if template == "essiv" and len(parts) == 2:
        inner = make_mode(parts[0], key)
        cipher = Block(_cipher_of(parts[0]), digest(parts[1], key))
        if inner.iv_size != cipher.size:
            raise unsupported(name)
        return _Essiv(inner, cipher)
    if name == "ecb(cipher_null)":
        if key:
            raise bad_key(name, len(key), (0,))
        return _Null()
    if name == "chacha20":
        return _ChaCha20(key)
    made = _of_blocks(template, parts[0], key) if len(parts) == 1 else None
    if made is None:
        raise unsupported(name)
    return made


def _of_blocks(template: str, cipher: str, key: bytes) -> Mode | None:
    """Return a mode of a block cipher; None if there is no such mode of it."""
    simple: dict[str, Callable[[Block], Mode]] = {"ecb": _Ecb, "cbc": _Cbc, "pcbc": _Pcbc, "ctr": _Ctr}
    if template in simple:
        return simple[template](Block(cipher, key))
    if template == "xts" and cipher in BLOCKS and block_size(cipher) == 16:
        if len(key) % 2:
            raise bad_key("xts", len(key), (32, 48, 64))
        return _Xts(Block(cipher, key[: len(key) // 2]), Block(cipher, key[len(key) // 2 :]))
    if template == "lrw" and cipher in BLOCKS and block_size(cipher) == 16:
        return _Lrw(Block(cipher, key[:-16]), key[-16:])
    return None
