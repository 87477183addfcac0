"""Crypt: an encrypted disk whose key can be taken away."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dmcore import targets
from dmcore.errors import SpecError
from dmcore.table import Table
from dmcore.targets.crypt import Key, KeyringKey, SetKey, WipeKey
from dmcore.units import SECTOR
from pytest_dm.devices.base import DmDevice

if TYPE_CHECKING:
    from collections.abc import Generator

    from pytest_dm.devices.base import Disk
    from pytest_dm.factory import Dm

__all__ = ["Crypt"]


class Crypt(DmDevice):
    """A disk that is encrypted below: `lower` holds what an offline reader would see.

    Attributes:
        key: The key; text never shows its bytes.
        lower: The disk with the encrypted data.
    """

    def __init__(
        self,
        maker: Dm,
        lower: Disk,
        *,
        cipher: str,
        key: bytes | Key | KeyringKey | None,
        words: dict[str, Any],
    ) -> None:
        if key is None:
            key = os.urandom(64 if "xts" in cipher else 32)
        self.key = Key(key) if isinstance(key, bytes) else key
        sector = words.get("sector_size", SECTOR) // SECTOR
        length = lower.size // SECTOR - words.get("start", 0)
        length -= length % sector
        if length < sector:
            raise SpecError(
                "start", words.get("start", 0), f"{lower.name} has {lower.size // SECTOR} sectors"
            )
        value = targets.Crypt(cipher=cipher, key=self.key, dev=lower.ref, **words)
        super().__init__(maker, Table.of(value, length), label="crypt", lower=lower)

    @contextmanager
    def locked(self) -> Generator[None]:
        """Hold I/O back and wipe the key from the kernel inside the block; it comes back at the end.

        As `cryptsetup luksSuspend` does. Do no I/O to the device inside the block from the thread that is to leave it.
        """
        self.device.suspend()
        try:
            self.device.send(WipeKey())
            yield
        finally:
            self.device.send(SetKey(self.key))
            self.device.resume()

    def set_key(self, key: Key) -> None:
        """Go on with another key: what was written with the old one decrypts to noise."""
        with self.device.suspended():
            self.device.send(SetKey(key))
        self.key = key
        self.forget_cached()
