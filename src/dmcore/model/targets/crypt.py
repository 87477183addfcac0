"""crypt: encrypted below, clear above.

Sources: drivers/md/dm-crypt.c (crypt_ctr, crypt_map, crypt_integrity_ctr, get_max_request_sectors, crypt_message,
crypt_preresume, crypt_io_hints).
"""

from __future__ import annotations

import errno
import re
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from dmcore.errors import DmError, KeyMissing, SpecError
from dmcore.model.block import fault
from dmcore.model.target import Area, ModelTarget
from dmcore.model.targets._crypt_engine import Engine
from dmcore.targets.crypt import Crypt, Key, KeyringKey
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dmcore.model.target import Context

__all__ = ["MODEL"]

_PIECE = 1 << 20
"""Bytes that kernels write at once, and read at once with tags (BIO_MAX_VECS pages)."""
_NEW_PIECE = 1 << 17
"""The same, and for every read, in kernels that have "crypt.integrity_key_size", which came with it."""
_KEYRING = re.compile(r":([0-9]+):([a-z]+):(\S+)", re.ASCII)


class _Crypt(ModelTarget[Crypt]):
    def __init__(self, target: Crypt, context: Context) -> None:
        super().__init__(target, context)
        (self._dev,) = self.lower
        self._suspended = False
        self._valid = False
        self._size = len(target.key) if isinstance(target.key, Key) else target.key.size
        self._shown: Key | KeyringKey = target.key
        self._engine = self._set_key(target.key)
        self._tags = self._check_below()
        new = "crypt.integrity_key_size" in context.features
        whole = max(target.sector_size, self._dev.block_size)
        self._write_piece = max(whole, _NEW_PIECE if new else _PIECE)
        self._read_piece = max(whole, _NEW_PIECE) if new else _PIECE if self._tags else 0
        self._room = bytearray()

    def _check_below(self) -> int:
        """Return the bytes of a tag below; 0 where none are used."""
        tags, dev = self.target.tags, self._dev
        if tags is None or not (tags.aead or self._engine.stored_iv):
            return 0
        have = dev.tag_size
        fits = have >= tags.size if "crypt.integrity_key_size" in self.context.features else have == tags.size
        if not fits:
            reason = f"{dev.word or 'the device'} below keeps {have or 'no'} bytes of tags; it must be an integrity device"
            raise SpecError("tags", tags.size, f"{reason} without internal_hash and with tags of that size")
        if dev.tag_interval != self.target.sector_size:
            reason = f"the tags of {dev.word or 'the device'} below are for {dev.tag_interval} bytes each"
            raise SpecError("sector_size", self.target.sector_size, reason)
        return have

    # -- keys --------------------------------------------------------------------------------------------------------

    def _set_key(self, key: Key | KeyringKey) -> Engine:
        self._valid = False
        engine = Engine(self.target, self._payload(key))
        self._shown, self._valid = key, True
        return engine

    def _payload(self, key: Key | KeyringKey) -> bytes:
        if isinstance(key, Key):
            return key.reveal()
        name = f"{key.type}:{key.description}"
        given = self.context.keys.get(name, self.context.keys.get(key.description))
        if given is None:
            why = f"{name}: give its payload as keys={{'{name}': ...}}; a model looks into no keyring of the kernel, and none gives a logon key away"
            raise KeyMissing(errno.ENOKEY, "look-up", why)
        if len(given) != key.size:
            raise SpecError("key", str(key), f"the payload of that name has {len(given)} bytes")
        return bytes(given)

    def params(self) -> str:
        """Return the TABLE text with the key that is set now: zeros after `key wipe`."""
        cipher, _, *rest = super().params().split(" ")
        key = str(self._shown) if isinstance(self._shown, KeyringKey) else self._shown.reveal().hex() or "-"
        return " ".join([cipher, key, *rest])

    def message(self, words: list[str]) -> str:
        """Take `key set <key>` and `key wipe`, while suspended."""
        verbs = [word.lower() for word in words[:2]]
        if verbs[:1] != ["key"] or len(words) < 2 or not self._suspended:
            raise fault(errno.EINVAL)
        if verbs[1] == "wipe" and len(words) == 2:
            self._valid, self._shown = False, Key(bytes(self._size))
        elif verbs[1] == "set" and len(words) == 3:
            self._take(words[2])
        else:
            raise fault(errno.EINVAL)
        return ""

    def _take(self, word: str) -> None:
        match = _KEYRING.fullmatch(word)
        try:
            if match is not None:
                key: Key | KeyringKey = KeyringKey(int(match[1]), match[2], match[3])
                size = int(match[1])
            else:
                size = 0 if word == "-" else len(word) // 2
                key = Key(bytes.fromhex("" if word == "-" else word[: size * 2]))
            if size != self._size:
                raise fault(errno.EINVAL)
            self._engine = self._set_key(key)
        except (ValueError, DmError) as error:
            if isinstance(error, OSError):
                raise
            raise fault(errno.EINVAL) from None

    def preresume(self) -> None:
        """Refuse without a key: EAGAIN."""
        if not self._valid:
            raise fault(errno.EAGAIN)

    def resume(self) -> None:
        """Take no keys any more."""
        self._suspended = False

    def postsuspend(self) -> None:
        """Take keys."""
        self._suspended = True

    # -- what it stands on -------------------------------------------------------------------------------------------

    @property
    def areas(self) -> Iterable[Area]:
        """The part that is used."""
        return (Area(self._dev, self.target.start, self.context.length),)

    @property
    def block_size(self) -> int:
        """Bytes that are encrypted at once."""
        return self.target.sector_size

    @property
    def discards(self) -> bool:
        """Whether they are allowed, and the device below takes them."""
        return self.target.allow_discards and self._dev.discards

    def discard(self, sector: int, count: int) -> None:
        """Discard below."""
        self._dev.discard(self.target.start + sector, count)

    # -- requests ----------------------------------------------------------------------------------------------------

    def _scratch(self, length: int) -> memoryview:
        if len(self._room) < length:
            self._room = bytearray(length)
        return memoryview(self._room)[:length]

    def readinto(self, sector: int, buffer: memoryview, flags: int) -> None:
        """Read below and decrypt; EILSEQ for what is not authentic."""
        unit = self.target.sector_size // SECTOR
        if sector % unit or len(buffer) % self.target.sector_size:
            raise fault(errno.EIO)

        self.context.clock.together(
            partial(self._read, sector + part.start // SECTOR, buffer[part], flags)
            for part in _pieces(len(buffer), self._read_piece)
        )

    def _read(self, sector: int, buffer: memoryview, flags: int) -> None:
        below = self.target.start + sector
        room = buffer if self._engine.in_place and not self._tags else self._scratch(len(buffer))
        if not self._tags:
            self._dev.readinto(below, room, flags)
            self._engine.decrypt(sector, room, buffer)
            return
        tags = np.empty((len(buffer) // self.target.sector_size, self._tags), np.uint8)
        self._dev.readinto_tagged(below, room, tags.data.cast("B"), flags)
        if self._engine.tag_size:
            self._engine.unseal(sector, room, buffer, tags)
        else:
            self._engine.decrypt(sector, room, buffer, tags[:, : self._engine.stored_iv])

    def write(self, sector: int, data: memoryview, flags: int) -> None:
        """Encrypt and write below."""
        unit = self.target.sector_size // SECTOR
        if sector % unit or len(data) % self.target.sector_size:
            raise fault(errno.EIO)

        self.context.clock.together(
            partial(self._write, sector + part.start // SECTOR, data[part], flags)
            for part in _pieces(len(data), self._write_piece)
        )

    def _write(self, sector: int, data: memoryview, flags: int) -> None:
        below = self.target.start + sector
        room = self._scratch(len(data))
        if not self._tags:
            self._engine.encrypt(sector, data, room)
            self._dev.write(below, room, flags)
            return
        tags = np.zeros((len(data) // self.target.sector_size, self._tags), np.uint8)
        if self._engine.tag_size:
            self._engine.seal(sector, data, room, tags)
        else:
            self._engine.encrypt(sector, data, room, tags[:, : self._engine.stored_iv])
        self._dev.write_tagged(below, room, tags.data.cast("B"), flags)

    def close(self) -> None:
        """Forget the last data."""
        self._room = bytearray()


def _pieces(length: int, most: int) -> Iterator[slice]:
    """Cut `length` bytes into pieces of `most` (0: one)."""
    step = most or length
    return (slice(at, min(at + step, length)) for at in range(0, length, step))


MODEL = _Crypt
