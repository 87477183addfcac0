"""The kernel's keyrings: system calls add_key(2) and keyctl(2).

Sources: security/keys/keyctl.c, security/keys/user_defined.c (logon_vet_description), include/uapi/linux/keyctl.h.
Needs no privilege; a kernel without CONFIG_KEYS answers ENOSYS.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
from enum import IntEnum

from dmcore.errors import KeyMissing, KeyringError, KeyUnusable, SpecError, Unsupported
from dmcore.kernel.libc import LIBC

__all__ = ["TYPES", "Keyring", "add_key", "describe", "find", "invalidate", "revoke", "set_timeout", "unlink"]

TYPES = ("logon", "user", "encrypted", "trusted")
"""Types of keys that dm targets take. "encrypted" and "trusted" are made from a command, by the kernel."""

_MOST_PAYLOAD = 32767
_MOST_DESCRIPTION = 4095
_SECONDS_MAX = (1 << 32) - 1
_GENERIC = {"add_key": 217, "keyctl": 219}
_NUMBERS = {
    "x86_64": {"add_key": 248, "keyctl": 250},
    "i386": {"add_key": 286, "keyctl": 288},
    "i686": {"add_key": 286, "keyctl": 288},
    "armv7l": {"add_key": 309, "keyctl": 311},
    "ppc64le": {"add_key": 269, "keyctl": 271},
    "s390x": {"add_key": 278, "keyctl": 280},
    "aarch64": _GENERIC,
    "riscv64": _GENERIC,
    "loongarch64": _GENERIC,
}
_REVOKE, _DESCRIBE, _UNLINK, _SEARCH, _SET_TIMEOUT, _INVALIDATE = 3, 6, 9, 10, 15, 21
_KINDS = {
    errno.ENOKEY: KeyMissing,
    errno.EKEYREVOKED: KeyUnusable,
    errno.EKEYEXPIRED: KeyUnusable,
    errno.EKEYREJECTED: KeyUnusable,
}


class Keyring(IntEnum):
    """The keyrings that every process has, and whose keys the kernel looks for in this order."""

    THREAD = -1
    """Of this thread alone; it goes with the thread."""
    PROCESS = -2
    """Of this process; threads that were there before it was first used have one of their own."""
    SESSION = -3
    """Of the login session and all that it started."""
    USER = -4
    """Of the user."""
    USER_SESSION = -5
    """The user's own session keyring."""


def _number(call: str) -> int:
    machine = os.uname().machine
    if ctypes.sizeof(ctypes.c_void_p) == 4 and machine in {"x86_64", "aarch64"}:
        machine = {"x86_64": "i386", "aarch64": "armv7l"}[machine]
    if machine not in _NUMBERS:
        raise Unsupported(f"{call}(2)", f"its number on {machine} is not known here")
    return _NUMBERS[machine][call]


def _call(name: str, subject: str, *arguments: object) -> int:
    LIBC.syscall.restype = ctypes.c_long
    result = int(LIBC.syscall(ctypes.c_long(_number(name.partition(" ")[0])), *arguments))
    if result >= 0:
        return result
    number = ctypes.get_errno()
    if number == errno.ENOSYS:
        raise Unsupported("kernel keyrings", f"kernel {os.uname().release} has none (CONFIG_KEYS)")
    raise _KINDS.get(number, KeyringError)(number, name, subject)


def _keyctl(name: str, operation: int, subject: str, *arguments: object) -> int:
    return _call(f"keyctl {name}", subject, ctypes.c_int(operation), *arguments)


def _serial(value: int) -> ctypes.c_int:
    if not -(1 << 31) <= value < 1 << 31:
        raise SpecError("key", value, "a key's number has 32 bits")
    return ctypes.c_int(value)


def _check(kind: str, description: str) -> None:
    if kind not in TYPES:
        raise SpecError("kind", kind, f"one of {', '.join(TYPES)}")
    if not 0 < len(os.fsencode(description)) <= _MOST_DESCRIPTION or "\0" in description:
        raise SpecError("description", description, f"1..{_MOST_DESCRIPTION} bytes without NUL")
    if kind == "logon" and not re.match(r"[^:]+:", description):
        raise SpecError(
            "description", description, "a logon key's begins with a service and a colon, as 'dmcore:one'"
        )


def add_key(kind: str, description: str, payload: bytes | bytearray, keyring: int = Keyring.THREAD) -> int:
    """Put a key into a keyring and return its number; one of the same type and description there is replaced.

    Nothing shows the payload: no error, and our own copy is wiped before this returns.

    Args:
        kind: One of `TYPES`. A "logon" key can be used, but never be read back.
        description: Its name, 1..4095 bytes; for "logon" with a service and a colon at its start. A name that shall
            stand in a crypt table has no white space.
        payload: 1..32767 bytes; for "encrypted" and "trusted" the command that makes it ("new 32", "load ...").
        keyring: A `Keyring`, or the number of one.

    Raises:
        SpecError: A bad argument.
        Unsupported: The kernel has no keyrings, or no keys of that type.
        KeyringError: EDQUOT for too many keys of the user, ENOMEM, EINVAL for a command that makes no key, and others;
            nothing was added.
    """
    _check(kind, description)
    if not isinstance(payload, (bytes, bytearray)):  # pyright: ignore[reportUnnecessaryIsInstance] - from callers without types
        raise SpecError("payload", "(not shown)", f"must be bytes, not {type(payload).__name__}")
    if not 0 < len(payload) <= _MOST_PAYLOAD:
        raise SpecError("payload", "(not shown)", f"1..{_MOST_PAYLOAD} bytes, not {len(payload)}")
    copy = bytearray(payload)
    try:
        return _call(
            "add_key",
            f"{kind}:{description}",
            ctypes.c_char_p(kind.encode()),
            ctypes.c_char_p(os.fsencode(description)),
            (ctypes.c_char * len(copy)).from_buffer(copy),
            ctypes.c_size_t(len(copy)),
            _serial(keyring),
        )
    except (KeyMissing, KeyringError) as error:
        if error.errno in {errno.ENOKEY, errno.ENODEV} and kind in {"encrypted", "trusted"}:
            raise Unsupported(
                f"keys of type {kind}",
                f"kernel {os.uname().release} makes none ({error.strerror})",
                f"modprobe {kind}-keys",
            ) from None
        raise
    finally:
        copy[:] = bytes(len(copy))


def find(kind: str, description: str, keyring: int = Keyring.THREAD) -> int:
    """Return the number of a key in a keyring or those linked below it.

    Raises:
        KeyMissing: There is none.
        KeyUnusable: It was revoked or has expired.
    """
    _check(kind, description)
    return _keyctl(
        "search",
        _SEARCH,
        f"{kind}:{description}",
        _serial(keyring),
        ctypes.c_char_p(kind.encode()),
        ctypes.c_char_p(os.fsencode(description)),
        ctypes.c_int(0),
    )


def describe(key: int) -> str:
    """Return the kernel's description of a key: `TYPE;UID;GID;PERMISSIONS;NAME`, never its payload.

    Raises:
        KeyMissing: No such key.
        KeyUnusable: It was revoked or has expired.
    """
    room = 256
    while True:
        buffer = ctypes.create_string_buffer(room)
        need = _keyctl("describe", _DESCRIBE, str(key), _serial(key), buffer, ctypes.c_size_t(room))
        if need <= room:
            return os.fsdecode(buffer.value)
        room = need


def revoke(key: int) -> None:
    """Make a key unusable for everybody; whoever asks for it gets KeyUnusable, and the kernel collects it in time.

    A dm-crypt device that was made with it has its own copy and goes on; a table that names it is refused with ENOKEY.

    Raises:
        KeyMissing: No such key.
        KeyringError: EACCES without permission.
    """
    _keyctl("revoke", _REVOKE, str(key), _serial(key))


def unlink(key: int, keyring: int = Keyring.THREAD) -> None:
    """Take a key out of a keyring; one that is in no other is gone.

    Raises:
        KeyMissing: No such key, or it is not in that keyring (ENOENT).
    """
    try:
        _keyctl("unlink", _UNLINK, str(key), _serial(key), _serial(keyring))
    except KeyringError as error:
        if error.errno == errno.ENOENT:
            raise KeyMissing(errno.ENOENT, error.command, error.key) from None
        raise


def invalidate(key: int) -> None:
    """Take a key out of every keyring at once.

    Raises:
        KeyMissing: No such key.
    """
    _keyctl("invalidate", _INVALIDATE, str(key), _serial(key))


def set_timeout(key: int, seconds: int) -> None:
    """Let a key expire by itself, 0 for never.

    Raises:
        KeyMissing: No such key.
    """
    if not 0 <= seconds <= _SECONDS_MAX:
        raise SpecError("seconds", seconds, f"0..{_SECONDS_MAX}")
    _keyctl("set_timeout", _SET_TIMEOUT, str(key), _serial(key), ctypes.c_uint(seconds))
