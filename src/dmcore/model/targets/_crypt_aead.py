"""Ciphers that authenticate a unit: GCM, ChaCha20-Poly1305, and encrypt-then-MAC.

Sources: crypto/{gcm,authenc,chacha20poly1305,essiv}.c, and drivers/md/dm-crypt.c (crypt_convert_block_aead): what is
authenticated besides the data are the unit's sector in its line, as 64 bits, and the IV.
"""

from __future__ import annotations

import hmac
from abc import ABC, abstractmethod

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from dmcore.errors import SpecError
from dmcore.formats.hashes import digest_size, new_hash
from dmcore.model.targets._crypt_blocks import Block, bad_key, digest, unsupported
from dmcore.model.targets._crypt_modes import make_mode, split_name

__all__ = ["Aead", "make_aead"]


class Aead(ABC):
    """A cipher that authenticates, under one key.

    Attributes:
        iv_size: Bytes of the IV.
        block: Bytes that the kernel calls its block size.
        tag_sizes: Bytes that a tag may have.
    """

    iv_size: int
    block: int = 1
    tag_sizes: range | tuple[int, ...]

    @abstractmethod
    def encrypt(self, sector: bytes, iv: bytes, data: bytes, size: int) -> bytes:
        """Return the ciphertext of a unit and a tag of `size` bytes behind it."""

    @abstractmethod
    def decrypt(self, sector: bytes, iv: bytes, data: bytes, tag: bytes) -> bytes | None:
        """Return the plaintext of a unit; None if it is not authentic."""


class _Gcm(Aead):
    iv_size = 12
    tag_sizes = (4, 8, 12, 13, 14, 15, 16)

    def __init__(self, key: bytes) -> None:
        if len(key) not in {16, 24, 32}:
            raise bad_key("gcm(aes)", len(key), (16, 24, 32))
        self._key = key
        self._gcm = AESGCM(key)

    def encrypt(self, sector: bytes, iv: bytes, data: bytes, size: int) -> bytes:
        return self._gcm.encrypt(iv, data, sector + iv)[: len(data) + size]

    def decrypt(self, sector: bytes, iv: bytes, data: bytes, tag: bytes) -> bytes | None:
        mode = modes.GCM(iv, tag, min_tag_length=4)
        decryptor = Cipher(algorithms.AES(self._key), mode).decryptor()
        decryptor.authenticate_additional_data(sector + iv)
        try:
            return decryptor.update(data) + decryptor.finalize()
        except InvalidTag:
            return None


class _ChaChaPoly(Aead):
    iv_size = 12
    tag_sizes = (16,)

    def __init__(self, key: bytes) -> None:
        if len(key) != 32:
            raise bad_key("rfc7539(chacha20,poly1305)", len(key), (32,))
        self._cipher = ChaCha20Poly1305(key)

    def encrypt(self, sector: bytes, iv: bytes, data: bytes, size: int) -> bytes:
        del size
        return self._cipher.encrypt(iv, data, sector + iv)

    def decrypt(self, sector: bytes, iv: bytes, data: bytes, tag: bytes) -> bytes | None:
        try:
            return self._cipher.decrypt(iv, data + tag, sector + iv)
        except InvalidTag:
            return None


class _Authenc(Aead):
    """Another cipher, and an HMAC over what is to be authenticated and the ciphertext."""

    def __init__(self, hash_name: str, cipher: str, key: bytes, mac_size: int | None) -> None:
        most = digest_size(hash_name)
        mac = most if mac_size is None else mac_size
        if len(key) < mac:
            raise SpecError(
                "key", f"<{len(key)} bytes>", f"has no room for {mac} bytes of the key of hmac({hash_name})"
            )
        self._mode = make_mode(cipher, key[: len(key) - mac])
        self._mac = new_hash(f"hmac({hash_name})", key[len(key) - mac :])
        self.iv_size, self.block = self._mode.iv_size, self._mode.block
        self.tag_sizes = range(1, most + 1)

    def _tag(self, sector: bytes, iv: bytes, data: bytes, size: int) -> bytes:
        mac = self._mac.copy()
        mac.update(sector + iv + data)
        return mac.digest()[:size]

    def _through(self, data: bytes, iv: bytes, *, encrypt: bool) -> bytes:
        shape = (1, -1, self._mode.words)
        source = np.frombuffer(data, np.uint64).reshape(shape)
        out = np.empty_like(source)
        start = np.frombuffer(iv, np.uint64).reshape(1, -1)
        (self._mode.encrypt if encrypt else self._mode.decrypt)(source, start, out)
        return out.tobytes()

    def encrypt(self, sector: bytes, iv: bytes, data: bytes, size: int) -> bytes:
        result = self._through(data, iv, encrypt=True)
        return result + self._tag(sector, iv, result, size)

    def decrypt(self, sector: bytes, iv: bytes, data: bytes, tag: bytes) -> bytes | None:
        if not hmac.compare_digest(self._tag(sector, iv, data, len(tag)), tag):
            return None
        return self._through(data, iv, encrypt=False)


class _Essiv(Aead):
    """Another one, whose IV is encrypted before everything else, where it is authenticated too."""

    def __init__(self, inner: Aead, cipher: Block) -> None:
        self._inner = inner
        self._cipher = cipher
        self.iv_size, self.block, self.tag_sizes = inner.iv_size, inner.block, inner.tag_sizes

    def _iv(self, iv: bytes) -> bytes:
        return self._cipher.encrypt(np.frombuffer(iv, np.uint64)).tobytes()

    def encrypt(self, sector: bytes, iv: bytes, data: bytes, size: int) -> bytes:
        return self._inner.encrypt(sector, self._iv(iv), data, size)

    def decrypt(self, sector: bytes, iv: bytes, data: bytes, tag: bytes) -> bytes | None:
        return self._inner.decrypt(sector, self._iv(iv), data, tag)


def make_aead(name: str, key: bytes, mac_size: int | None) -> Aead:
    """Return what the crypto API's name of an aead means, under a key.

    Args:
        name: Such as "gcm(aes)" or "authenc(hmac(sha256),xts(aes))".
        key: The whole key; of "authenc" the last bytes are the HMAC's.
        mac_size: How many of them; None for as many as its digest has.

    Raises:
        Unsupported: An algorithm that no library here offers.
        SpecError: A key of a wrong size; it is not shown.
    """
    template, parts = split_name(name)
    if name == "gcm(aes)":
        return _Gcm(key)
    if name == "rfc7539(chacha20,poly1305)":
        return _ChaChaPoly(key)
    if template == "authenc" and len(parts) == 2:
        mac, hashes = split_name(parts[0])
        if mac == "hmac" and len(hashes) == 1:
            return _Authenc(hashes[0], parts[1], key, mac_size)
    if template == "essiv" and len(parts) == 2 and parts[0].startswith("authenc("):
        inner = make_aead(parts[0], key, mac_size)
        cipher_name = split_name(split_name(parts[0])[1][1])[1][0]
        cipher = Block(cipher_name, digest(parts[1], key))
        return _Essiv(inner, cipher)
    raise unsupported(name)
