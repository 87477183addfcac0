"""What dm-crypt computes: the key cut into its parts, units encrypted and decrypted, many at once.

Sources: drivers/md/dm-crypt.c (crypt_setkey, crypt_subkey_size, crypt_convert_block_skcipher, crypt_convert_block_aead).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import numpy as np

from dmcore.errors import SpecError
from dmcore.model.block import fault
from dmcore.model.targets._crypt_aead import make_aead
from dmcore.model.targets._crypt_blocks import BLOCKS, block_size
from dmcore.model.targets._crypt_ivs import Iv, make_iv
from dmcore.model.targets._crypt_modes import make_mode, split_name
from dmcore.targets.crypt import Cipher
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from dmcore.model.targets._crypt_aead import Aead
    from dmcore.model.targets._crypt_blocks import Octets, Words
    from dmcore.model.targets._crypt_modes import Mode
    from dmcore.targets.crypt import Crypt

__all__ = ["Engine"]

_CHUNK = 1 << 20
"""Bytes that are converted at once: less pays for calls of numpy, more takes memory. Threads were slower: half of it holds the GIL."""
_TCW_WHITENING = 16


def _innermost(name: str) -> str:
    template, parts = split_name(name)
    return _innermost(parts[0]) if parts else template


class _Ciphers:
    """Ciphers under their keys, and the IV's generator."""

    def __init__(self, cipher: Cipher, keys: list[bytes], extra: bytes, unit: int) -> None:
        self.modes: list[Mode] = [make_mode(cipher.name, key) for key in keys]
        first = self.modes[0]
        self.iv_size = max(first.iv_size, 8) if first.iv_size else 0
        self.iv: Iv | None = None
        if cipher.iv is not None and self.iv_size:
            self.iv = make_iv(cipher.iv, self.iv_size, unit, mode=first, block=first.block, extra=extra)


class Engine:
    """A crypt line under one key.

    Attributes:
        iv_size: Bytes of an IV; 0 without.
        stored_iv: How many of them are kept in tags: all with "random", else none.
        tag_size: Bytes of an authentication tag; 0 without.

    Raises:
        Unsupported: An algorithm that no library here offers.
        SpecError: A key or a tag of a wrong size; keys are not shown.
    """

    def __init__(self, target: Crypt, key: bytes) -> None:
        self._cipher = cipher = Cipher.parse(target.cipher)
        self._unit = target.sector_size
        self._step = target.sector_size // SECTOR
        self._offset = target.iv_offset
        self._shift = np.uint64((self._step.bit_length() - 1) if target.iv_large_sectors else 0)
        self.stored_iv = self.tag_size = 0
        self._aead: Aead | None = None
        if target.tags is not None and target.tags.aead:
            self._make_aead(target, key)
        else:
            self._keys, self._extra = _split_key(cipher, key)
            self._ciphers = _Ciphers(cipher, self._keys, self._extra, self._unit)
            self._iv = self._ciphers.iv
            self.iv_size = self._ciphers.iv_size
        if cipher.iv == "random":
            self.stored_iv = self.iv_size
        if target.tags is not None:
            self._check_tags(target.tags.size)

    def _make_aead(self, target: Crypt, key: bytes) -> None:
        cipher = self._cipher
        if cipher.iv in {"lmk", "eboiv", "elephant"}:
            raise SpecError(
                "cipher", target.cipher, f"{cipher.iv} does not go with a cipher that authenticates"
            )
        extra = b""
        if cipher.iv == "tcw":
            probe = make_aead(cipher.name, key, target.integrity_key_size)
            key, extra = _cut(key, probe.iv_size + _TCW_WHITENING)
        self._aead = make_aead(cipher.name, key, target.integrity_key_size)
        self.iv_size = max(self._aead.iv_size, 8) if self._aead.iv_size else 0
        self._iv = None
        if cipher.iv is not None and self.iv_size:
            self._iv = make_iv(
                cipher.iv, self.iv_size, self._unit, mode=None, block=self._aead.block, extra=extra
            )

    def _check_tags(self, size: int) -> None:
        left = size - self.stored_iv
        if self._aead is not None:
            if left not in self._aead.tag_sizes:
                most = max(self._aead.tag_sizes)
                reason = (
                    f"less {self.stored_iv} for the IV, {left} are no tag of this cipher (at most {most})"
                )
                raise SpecError("tags", size, reason)
            self.tag_size = left
        elif left < 0:
            raise SpecError("tags", size, f"have no room for an IV of {self.iv_size} bytes")

    # -- without authentication --------------------------------------------------------------------------------------

    @property
    def in_place(self) -> bool:
        """Whether `decrypt` may write where it reads."""
        return self._aead is None and len(self._keys) == 1 and self._ciphers.modes[0].in_place

    def encrypt(self, sector: int, data: memoryview, out: memoryview, ivs: Octets | None = None) -> None:
        """Encrypt whole units from `sector` of the line on into `out`; write the IVs used to `ivs`, if it is there."""
        self._convert(sector, data, out, ivs, encrypt=True)

    def decrypt(self, sector: int, data: memoryview, out: memoryview, ivs: Octets | None = None) -> None:
        """Decrypt whole units from `sector` of the line on into `out`, with `ivs` if they are there."""
        self._convert(sector, data, out, ivs, encrypt=False)

    def _convert(
        self, sector: int, data: memoryview, out: memoryview, ivs: Octets | None, *, encrypt: bool
    ) -> None:
        for at in range(0, len(data), _CHUNK):
            end = min(at + _CHUNK, len(data))
            some = None if ivs is None else ivs[at // self._unit : end // self._unit]
            self._chunk(sector + at // SECTOR, data[at:end], out[at:end], some, encrypt=encrypt)

    def _numbers(self, sector: int, count: int) -> tuple[Words, Words]:
        """Return what chooses a unit's key, and what its IV counts."""
        first = np.uint64((sector + self._offset) % 2**64)
        numbers = np.arange(count, dtype=np.uint64) * np.uint64(self._step) + first
        return numbers, numbers >> self._shift

    def _chunk(
        self, sector: int, data: memoryview, out: memoryview, ivs: Octets | None, *, encrypt: bool
    ) -> None:
        ciphers = self._ciphers
        units = len(data) // self._unit
        chosen, numbers = self._numbers(sector, units)
        source = np.frombuffer(data, np.uint8).reshape(units, -1)
        result = np.frombuffer(out, np.uint8).reshape(units, -1)
        if ciphers.iv is None:
            iv = np.zeros((units, ciphers.iv_size), np.uint8)
        else:
            if self.stored_iv and ivs is not None and not encrypt:
                iv = ivs
            else:
                iv = ciphers.iv.generate(numbers, source, encrypt=encrypt)
                if ivs is not None:
                    ivs[:] = iv
            source = ciphers.iv.before(numbers, source, encrypt=encrypt)
        shape = (units, -1, ciphers.modes[0].words)
        blocks, starts = source.view(np.uint64).reshape(shape), np.ascontiguousarray(iv).view(np.uint64)
        into = result.view(np.uint64).reshape(shape)
        if len(ciphers.modes) == 1:
            mode = ciphers.modes[0]
            (mode.encrypt if encrypt else mode.decrypt)(blocks, starts, into)
        else:
            self._by_keys(chosen, blocks, starts, into, encrypt=encrypt)
        if ciphers.iv is not None:
            ciphers.iv.after(numbers, result, encrypt=encrypt)

    def _by_keys(self, chosen: Words, blocks: Words, starts: Words, into: Words, *, encrypt: bool) -> None:
        ciphers = self._ciphers
        number = chosen & np.uint64(len(ciphers.modes) - 1)
        for index in np.unique(number):
            mode, mine = ciphers.modes[int(index)], number == index
            part = blocks[mine]
            some = np.empty_like(part)
            (mode.encrypt if encrypt else mode.decrypt)(part, np.ascontiguousarray(starts[mine]), some)
            into[mine] = some

    # -- with authentication -----------------------------------------------------------------------------------------

    def seal(self, sector: int, data: memoryview, out: memoryview, tags: Octets) -> None:
        """Encrypt units into `out`, and write their tags and stored IVs, `(units, bytes)`."""
        assert self._aead is not None
        size, unit = self.tag_size, self._unit
        tags[:] = 0
        for at, iv in enumerate(self._ivs(sector, tags, encrypt=True)):
            here = slice(at * unit, (at + 1) * unit)
            number = (sector + at * self._step).to_bytes(8, "little")
            sealed = self._aead.encrypt(number, iv, bytes(data[here]), size)
            out[here] = sealed[:unit]
            tags[at, :size] = np.frombuffer(sealed[unit:], np.uint8)

    def unseal(self, sector: int, data: memoryview, out: memoryview, tags: Octets) -> None:
        """Decrypt units into `out`; EILSEQ if one is not authentic."""
        assert self._aead is not None
        size, unit = self.tag_size, self._unit
        for at, iv in enumerate(self._ivs(sector, tags, encrypt=False)):
            here = slice(at * unit, (at + 1) * unit)
            number = (sector + at * self._step).to_bytes(8, "little")
            clear = self._aead.decrypt(number, iv, bytes(data[here]), tags[at, :size].tobytes())
            if clear is None:
                raise fault(errno.EILSEQ)
            out[here] = clear

    def _ivs(self, sector: int, tags: Octets, *, encrypt: bool) -> list[bytes]:
        """Return the IVs of the units that `tags` are for; stored ones are read from it, or put there."""
        count = len(tags)
        _, numbers = self._numbers(sector, count)
        stored = tags[:, self.tag_size : self.tag_size + self.stored_iv]
        if self._iv is None:
            made = np.zeros((count, self.iv_size), np.uint8)
        elif self.stored_iv and not encrypt:
            made = stored
        else:
            made = self._iv.generate(numbers, np.empty((count, 0), np.uint8), encrypt=encrypt)
            if self.stored_iv:
                stored[:] = made
        return [iv.tobytes() for iv in made]


def _cut(key: bytes, extra: int) -> tuple[bytes, bytes]:
    if len(key) <= extra:
        raise SpecError("key", f"<{len(key)} bytes>", f"must have more than {extra} bytes")
    return key[: len(key) - extra], key[len(key) - extra :]


def _split_key(cipher: Cipher, key: bytes) -> tuple[list[bytes], bytes]:
    """Return the keys for the sectors in turn, and the part for the IV's generator."""
    extra = b""
    if cipher.iv == "lmk" and len(key) % cipher.keys:
        key, extra = _cut(key, len(key) // (cipher.keys + 1))
    elif cipher.iv == "tcw":
        name = _innermost(cipher.name)
        key, extra = _cut(key, (block_size(name) if name in BLOCKS else 16) + _TCW_WHITENING)
    elif cipher.iv == "elephant":
        key, extra = _cut(key, len(key) // 2)
    size = len(key) // cipher.keys
    return [key[size * at : size * (at + 1)] for at in range(cipher.keys)], extra
