"""Every error of the library. Each says what went wrong, where, and what to do about it."""

from __future__ import annotations

import errno as errno_names
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "AbiError",
    "DeviceBusy",
    "DeviceMissing",
    "DmError",
    "FormatError",
    "IoctlError",
    "KeyMissing",
    "KeyUnusable",
    "KeyringError",
    "LeakError",
    "ParseError",
    "SpecError",
    "TableRejected",
    "ToolFailed",
    "Unsupported",
    "VmBootFailed",
    "VmError",
    "VmLost",
    "VmTimeout",
    "WrongPassphrase",
]


class DmError(Exception):
    """Base of every error raised on purpose by dmcore, dmvm and the plugin."""


class SpecError(DmError, ValueError):
    """A value was refused before any I/O: the kernel would refuse it, or it means nothing.

    Attributes:
        field: Name of the parameter as the API spells it.
        value: What was given.
        reason: What is wrong with it, and what would be right.
    """

    def __init__(self, field: str, value: object, reason: str) -> None:
        super().__init__(field, value, reason)
        self.field = field
        self.value = value
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.field}={self.value!r}: {self.reason}"


class ParseError(DmError, ValueError):
    """Kernel text (a table line, a status, a reply) that does not parse.

    Attributes:
        text: The whole text.
        index: Which word (0-based) is wrong; equal to the number of words if one is missing.
        word: That word, or None where it is missing.
        expected: What should stand there.
        target: Target whose grammar it is, if known.
    """

    def __init__(self, text: str, index: int, word: str | None, expected: str, target: str = "") -> None:
        super().__init__(text, index, word, expected, target)
        self.text = text
        self.index = index
        self.word = word
        self.expected = expected
        self.target = target

    def __str__(self) -> str:
        where = (
            f"word {self.index + 1} is {self.word!r}"
            if self.word is not None
            else f"word {self.index + 1} is missing"
        )
        of = f" of {self.target}" if self.target else ""
        return f"{where}{of}, expected {self.expected}, in {self.text!r}"


class AbiError(DmError):
    """The kernel's reply does not have the layout this library knows; please report it with the kernel's version.

    Attributes:
        offset: Byte of the reply where it stops making sense.
    """

    def __init__(self, message: str, offset: int = 0) -> None:
        super().__init__(f"{message} (at byte {offset} of the reply)")
        self.offset = offset


class FormatError(DmError, ValueError):
    """Bytes on a disk that do not have the format they should have: not such a disk, cut off, or damaged.

    Attributes:
        what: What is wrong.
        offset: Byte of the disk or file where it stops making sense.
    """

    def __init__(self, what: str, offset: int) -> None:
        super().__init__(what, offset)
        self.what = what
        self.offset = offset

    def __str__(self) -> str:
        return f"{self.what} (at byte {self.offset})"


class WrongPassphrase(DmError):
    """No keyslot of an encrypted image opens with what was given.

    Attributes:
        slots: Numbers of the keyslots that were tried.
    """

    def __init__(self, slots: Sequence[int]) -> None:
        super().__init__(tuple(slots))
        self.slots = tuple(slots)

    def __str__(self) -> str:
        tried = ", ".join(map(str, self.slots)) or "none"
        return f"no keyslot opens with this passphrase (tried: {tried})"


class IoctlError(DmError, OSError):
    """The kernel refused a request.

    Attributes:
        errno: The error number (as on every OSError).
        command: The command's kernel name, such as "DM_TABLE_LOAD".
        device: Name, uuid or number that the request was for ("" if none).
        detail: More of the request worth seeing (the table, the message), without secrets.
        kernel_log: Kernel log lines written since the request; the reason of a rejected table is only there.
    """

    def __init__(
        self, errno: int, command: str, device: str = "", detail: str = "", kernel_log: Sequence[str] = ()
    ) -> None:
        super().__init__(errno, os.strerror(errno))
        self.command = command
        self.device = device
        self.detail = detail
        self.kernel_log = tuple(kernel_log)

    def __str__(self) -> str:
        name = errno_names.errorcode.get(self.errno or 0, str(self.errno))
        head = f"{self.command}{f' on {self.device}' if self.device else ''}: {name} ({self.strerror})"
        lines = [head, *(f"  request: {line}" for line in self.detail.splitlines())]
        return "\n".join([*lines, *(f"  kernel: {line}" for line in self.kernel_log)])

    def __reduce__(self) -> tuple[type[IoctlError], tuple[object, ...]]:
        return type(self), (self.errno, self.command, self.device, self.detail, self.kernel_log)


class DeviceBusy(IoctlError):
    """EBUSY: somebody holds the device open, or the name or uuid is taken."""


class DeviceMissing(IoctlError):
    """ENXIO: no device of that name, uuid or number."""


class TableRejected(IoctlError):
    """A table was not accepted at load or resume; `kernel_log` says why."""


class KeyringError(DmError, OSError):
    """The kernel refused to do something with a key of a keyring.

    Attributes:
        errno: The error number.
        command: The system call.
        key: Type and description of the key, or its number; never its payload.
    """

    def __init__(self, errno: int, command: str, key: str) -> None:
        super().__init__(errno, os.strerror(errno))
        self.command = command
        self.key = key

    def __str__(self) -> str:
        name = errno_names.errorcode.get(self.errno or 0, str(self.errno))
        return f"{self.command} of key {self.key}: {name} ({self.strerror})"

    def __reduce__(self) -> tuple[type[KeyringError], tuple[object, ...]]:
        return type(self), (self.errno, self.command, self.key)


class KeyMissing(KeyringError):
    """ENOKEY: there is no such key, or not in that keyring (ENOENT)."""


class KeyUnusable(KeyringError):
    """The key was revoked (EKEYREVOKED), has expired (EKEYEXPIRED) or is rejected (EKEYREJECTED)."""


class ToolFailed(DmError):
    """A program of the distribution that does the work failed.

    Attributes:
        command: Its words; what it got on standard input is not among them.
        status: Its exit status, negative for a signal; None if it did not end in time.
        output: What it printed.
    """

    def __init__(self, command: Sequence[str], status: int | None, output: str) -> None:
        super().__init__(tuple(command), status, output)
        self.command = tuple(command)
        self.status = status
        self.output = output

    def __str__(self) -> str:
        how = "did not end" if self.status is None else f"exit status {self.status}"
        return f"{' '.join(self.command)}: {how}\n{self.output}".rstrip()


class Unsupported(DmError):
    """This machine or kernel cannot do it. The plugin turns this into a skip, or an error with --dm-require.

    Attributes:
        need: What is needed ("dm-dust", "root", "mkfs.xfs").
        have: What is there instead.
        hint: The one command or change that would help ("" if there is none).
    """

    def __init__(self, need: str, have: str, hint: str = "") -> None:
        super().__init__(need, have, hint)
        self.need = need
        self.have = have
        self.hint = hint

    def __str__(self) -> str:
        return f"needs {self.need}; {self.have}{f' -- {self.hint}' if self.hint else ''}"


class VmError(DmError):
    """A guest could not be made or was lost.

    Attributes:
        console: End of the guest's console, the last lines it wrote.
    """

    def __init__(self, message: str, console: str = "") -> None:
        super().__init__(message, console)
        self.message = message
        self.console = console

    def __str__(self) -> str:
        return (
            f"{self.message}\n--- end of the guest's console ---\n{self.console}"
            if self.console
            else self.message
        )


class VmBootFailed(VmError):
    """The guest did not come up, after one more try."""


class VmLost(VmError):
    """The guest panicked, oopsed, was killed, or its line went silent."""


class VmTimeout(VmError):
    """The guest ran longer than its deadline and was killed."""


class LeakError(DmError):
    """Devices, loops, mounts or files of ours were still there after teardown.

    Attributes:
        left: What is left, one line each.
    """

    def __init__(self, left: Sequence[str]) -> None:
        super().__init__(tuple(left))
        self.left = tuple(left)

    def __str__(self) -> str:
        return "left behind after teardown: " + ", ".join(self.left)
