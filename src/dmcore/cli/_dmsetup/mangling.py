r"""Names and uuids with bytes that udev does not stand: in the kernel they are spelled `\xNN`.

Source: lvm2, libdm/libdm-common.c (mangle_string, unmangle_string).
"""

from __future__ import annotations

import re

from dmcore.abi.dm import decode_text, encode_text
from dmcore.cli._dmsetup.failed import Failed

__all__ = ["mangle", "unmangle"]

_PLAIN = frozenset(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz#+-.:=@_")
_CODE = re.compile(rb"\\x([0-9a-fA-F]{2})")


def _check_once(text: str, what: str, mode: str) -> None:
    if mode == "auto" and "\\x5cx" in text:
        raise Failed(
            f'The {what} "{text}" seems to be mangled more than once. This is not allowed in auto mode.'
        )


def mangle(text: str, what: str, mode: str, limit: int) -> str:
    r"""Return the kernel's spelling of a name or uuid.

    Args:
        text: As typed.
        what: "name", "new name" or "UUID", for errors.
        mode: "hex" spells every odd byte `\xNN`, backslashes too; "auto" takes what has `\xNN` already as it is;
            "none" is taken for "auto".
        limit: Most bytes that the kernel keeps.

    Raises:
        Failed: With "auto", a mixture of spelled and odd bytes; or the spelling is too long.
    """
    _check_once(text, what, mode)
    raw = encode_text(text)
    automatic = mode != "hex"
    found = bytearray()
    spelled: bool | None = None
    index = 0
    while index < len(raw):
        byte = raw[index]
        step = 1
        if automatic and raw[index : index + 2] == b"\\x":
            if len(raw) - index < 4 or spelled:
                raise _mixed(text, what)
            found += raw[index : index + 4]
            spelled, step = False, 4
        elif byte in _PLAIN:
            found.append(byte)
        else:
            if automatic and spelled is False:
                raise _mixed(text, what)
            found += b"\\x%02x" % byte
            spelled = True
        index += step
    if len(found) > limit:
        raise Failed(f'Mangled form of the {what} too long for "{text}".')
    return decode_text(bytes(found))


def _mixed(text: str, what: str) -> Failed:
    device = {"name": "device name", "new name": "new device name"}.get(what, "device uuid")
    return Failed(
        f'The {what} "{text}" contains mixed mangled and unmangled characters or it\'s already mangled improperly.',
        f'Failed to mangle {device} "{text}".',
    )


def unmangle(text: str) -> str:
    r"""Return a kernel's name or uuid with each `\xNN` as the byte that it stands for.

    dmsetup fails where a name has odd bytes that are not spelled so; here they stay as they are.
    """
    if "\\x" not in text:
        return text
    return decode_text(_CODE.sub(lambda match: bytes([int(match[1], 16)]), encode_text(text)))
