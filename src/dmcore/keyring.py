"""Keys in the kernel's keyrings, for dm-crypt: tables name them, and hold no key themselves.

    with keyring.lent(os.urandom(64)) as key, Device.create(control, "disk", Table.of(Crypt(key=key, ...), n)):
        ...

The kernel copies the key when it loads the table.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
from typing import TYPE_CHECKING

from dmcore.errors import KeyMissing, KeyringError, KeyUnusable
from dmcore.kernel.keyring import (
    TYPES,
    Keyring,
    add_key,
    describe,
    find,
    invalidate,
    revoke,
    set_timeout,
    unlink,
)
from dmcore.targets._key import Key, KeyringKey

if TYPE_CHECKING:
    from collections.abc import Generator

_GONE = frozenset({errno.EACCES, errno.ENOKEY, errno.EKEYREVOKED, errno.EKEYEXPIRED})

__all__ = [
    "TYPES",
    "Keyring",
    "add_key",
    "describe",
    "find",
    "invalidate",
    "lent",
    "revoke",
    "set_timeout",
    "unlink",
]


@contextlib.contextmanager
def lent(
    payload: bytes | bytearray | Key, *, kind: str = "logon", description: str = ""
) -> Generator[KeyringKey]:
    """Have a key in this thread's keyring during the block, and give what a crypt target takes for it.

    It is revoked and unlinked at the end, whatever happens; devices that were made with it go on. Tables that name it
    must be loaded by the thread that entered the block.

    Args:
        payload: The key, 1..32767 bytes.
        kind: "logon", which nobody can read back, or "user".
        description: Its name; by default one that is used once.

    Raises:
        SpecError: A bad argument.
        Unsupported: The kernel has no keyrings.
        KeyringError: It cannot be added.
    """
    secret = payload.reveal() if isinstance(payload, Key) else payload
    name = description or f"dmcore:{secrets.token_hex(8)}"
    named = KeyringKey(len(secret), kind, name)
    serial = add_key(kind, name, secret)
    try:
        yield named
    finally:
        _end(serial)


def _end(serial: int) -> None:
    """Revoke and unlink a key; one that somebody took out of the keyring meanwhile is not ours to revoke (EACCES)."""
    try:
        revoke(serial)
    except KeyringError as error:
        if error.errno not in _GONE:
            raise
    finally:
        with contextlib.suppress(KeyMissing, KeyUnusable):
            unlink(serial)
