"""Waiting for udev: the cookies of libdevmapper, SysV semaphores that udev's rules count down.

A uevent of a dm device can carry a number (`event_nr` of the request). The rule 95-dm-notify.rules then runs
`dmsetup udevcomplete NUMBER`, which takes one off the semaphore with the key 0x0d4d0000 + (NUMBER & 0xffff). The upper
half of the number is for the rules. Source: lvm2, libdm/libdm-common.c (dm_task_set_cookie, dm_udev_wait).
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from dmcore.errors import IoctlError, SpecError
from dmcore.owner import Owner

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from dmcore.kernel.sysv import Semaphore

__all__ = ["PRIVATE", "PUBLIC", "Cookie", "abandoned", "running", "transaction"]

_PRIMARY_SOURCE = 0x40
PUBLIC = _PRIMARY_SOURCE
"""Flags for the rules: treat the device as any other."""
PRIVATE = _PRIMARY_SOURCE | 0x02 | 0x04 | 0x08
"""Flags for the rules: make nodes only; no probing for file systems, no links by content, nothing that opens it."""

_SOCKET = Path("/run/udev/control")
_RULE = "95-dm-notify.rules"
_RULES = ("/etc/udev/rules.d", "/run/udev/rules.d", "/usr/lib/udev/rules.d", "/lib/udev/rules.d")
_KEY = 0x0D4D0000
_KEY_TRIES = 64
_FULL = frozenset({errno.ENOSPC, errno.ENOSYS, errno.ENOMEM})


_SEMAPHORES = Path("/proc/sysvipc/sem")
_MARK = 0x3D4D
_DIGIT = 15
_NUMBERS = (3, 2, 3)
"""Notes, of 15 bits each, that pid namespace, pid and start of a cookie's owner take."""
_NOTES = 1 + sum(_NUMBERS)
_UNSIGNED_FOR = 60.0
"""Seconds after which a cookie of ours without its owner's name is one that nobody will sign any more."""


def running() -> bool:
    """Whether a udevd listens in this system that has device-mapper's rules, so that a cookie would be completed."""
    try:
        found = _SOCKET.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False
    return _listens(found.st_ino, found.st_ctime_ns) and _has_rules()


@cache
def _listens(_inode: int, _changed: int) -> bool:
    """Whether somebody serves the control socket; asked once per socket."""
    import socket  # noqa: PLC0415 - only where there is such a node

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as probe:
        return probe.connect_ex(os.fspath(_SOCKET)) in {0, errno.EAGAIN}


@cache
def _has_rules() -> bool:
    """Whether the rule file that udev reads, the first of that name, has content (a link to /dev/null masks it)."""
    for folder in _RULES:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return bool((Path(folder) / _RULE).read_bytes().strip())
    return False


class Cookie:
    """Counts the uevents of one transaction that udev has not handled yet. Made by `transaction`.

    Attributes:
        flags: What the rules are told.
    """

    def __init__(self, semaphore: Semaphore, flags: int) -> None:
        self.flags = flags
        self._semaphore = semaphore

    @property
    def works(self) -> bool:
        """Whether there is a semaphore; where the system has none left, requests go without a cookie."""
        return self._semaphore.key != 0

    def begin(self) -> int:
        """Expect one more uevent and return the number to send with its request (0: no cookie)."""
        if not self.works:
            return 0
        self._semaphore.add(1)
        return self.flags << 16 | self._semaphore.key & 0xFFFF

    def cancel(self) -> None:
        """Expect one uevent less: the request made none."""
        if self.works:
            self._semaphore.add(-1)

    def wait(self, timeout: float) -> bool:
        """Wait until udev has handled all; False if it has not after `timeout` seconds, or there is no cookie."""
        return self.works and self._semaphore.wait_for_zero(timeout)


def _fill(semaphore: Semaphore) -> None:
    """Make the semaphore under a free key; leave it unmade where the system has none left."""
    import secrets  # noqa: PLC0415 - only where udev runs

    notes = _notes(Owner.current())
    for _ in range(_KEY_TRIES):
        try:
            semaphore.create(_KEY | (secrets.randbelow(0xFFFF) + 1), notes)
        except IoctlError as error:
            if error.errno in _FULL:
                return
            if error.errno != errno.EEXIST:
                raise
        else:
            return
    raise IoctlError(errno.EEXIST, "semget", "udev cookie", f"{_KEY_TRIES} keys are all taken")


def _notes(owner: Owner) -> list[int]:
    """Return what is kept with a cookie's semaphore, to tell whose it is."""
    notes = [_MARK]
    for number, digits in zip((owner.space, owner.pid, owner.start), _NUMBERS, strict=True):
        notes += [number >> _DIGIT * digit & (1 << _DIGIT) - 1 for digit in range(digits)]
    return notes


def _owner(notes: tuple[int, ...]) -> Owner | None:
    """Return who signed so; None if nobody did yet."""
    if notes[0] != _MARK:
        return None
    left = iter(notes[1:])
    numbers = [sum(next(left) << _DIGIT * digit for digit in range(digits)) for digits in _NUMBERS]
    return Owner.of_this_boot(*numbers)


def abandoned() -> Iterator[Semaphore]:
    """Yield the semaphores of transactions whose process was killed in them; those of dmsetup and others are not told.

    Sets of our size under a cookie's key; libdevmapper's hold one semaphore.
    """
    try:
        rows = _SEMAPHORES.read_text(encoding="ascii").splitlines()[1:]
    except FileNotFoundError:  # a kernel without SysV semaphores
        return
    from dmcore.kernel.sysv import Semaphore  # noqa: PLC0415 - loads ctypes

    for row in rows:
        key, _, _, count, *_, changed = map(int, row.split())
        if key & 0xFFFF0000 != _KEY or count != 1 + _NOTES:
            continue
        try:
            semaphore = Semaphore.find(key)
            owner = _owner(semaphore.notes(_NOTES))
        except IoctlError as error:
            if error.errno in {errno.ENOENT, errno.EINVAL, errno.EIDRM, errno.EACCES}:  # gone, or not ours
                continue
            raise
        if not owner.alive() if owner else time.time() - changed > _UNSIGNED_FOR:
            yield semaphore


@contextlib.contextmanager
def transaction(flags: int = PRIVATE) -> Generator[Cookie]:
    """Give a cookie for the requests of the block; its semaphore is removed at the end, whatever happens.

    A uevent that udev handles after that finds no semaphore; its rule takes that as done.

    Args:
        flags: `PRIVATE`, `PUBLIC`, or other bits of DM_UDEV_* (libdevmapper.h).
    """
    if not 0 <= flags < 1 << 16:
        raise SpecError("flags", flags, "16 bits")
    from dmcore.kernel.sysv import Semaphore  # noqa: PLC0415 - loads ctypes, which only udev systems need

    semaphore = Semaphore()
    try:
        _fill(semaphore)
        yield Cookie(semaphore, flags)
    finally:
        semaphore.remove()
