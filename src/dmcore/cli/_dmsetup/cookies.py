"""The verbs about udev's cookies: semaphores that udev's rules count down. Source: lvm2, libdm/libdm-common.c."""

from __future__ import annotations

import errno
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dmcore.cli._dmsetup.failed import Failed
from dmcore.cli._dmsetup.options import cookie
from dmcore.errors import IoctlError
from dmcore.kernel.sysv import Semaphore

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dmcore.cli._dmsetup.session import Session

__all__ = ["complete", "complete_all", "cookies", "create", "find", "flags", "release"]

_MAGIC = 0x0D4D
_FLAGS = (
    "DISABLE_DM_RULES", "DISABLE_SUBSYSTEM_RULES", "DISABLE_DISK_RULES", "DISABLE_OTHER_RULES", "LOW_PRIORITY",
    "DISABLE_LIBRARY_FALLBACK", "PRIMARY_SOURCE",
)  # fmt: skip
_TRIES = 64
_SECONDS = 180.0
_WHY = {
    errno.ENOENT: "Could not find notification semaphore identified by cookie value {0} (0x{0:x})",
    errno.EACCES: "No permission to access notificaton semaphore identified by cookie value {0} (0x{0:x})",
}


class _Entry(NamedTuple):
    """A semaphore of a cookie."""

    key: int
    id: int
    used: int
    changed: int


def _entries() -> Iterator[_Entry]:
    try:
        text = Path("/proc/sysvipc/sem").read_text(encoding="ascii")
    except OSError as error:
        raise Failed(f"semctl: SEM_INFO failed: {error.strerror}") from None
    for line in text.splitlines()[1:]:
        fields = list(map(int, line.split()))
        key = fields[0] & 0xFFFFFFFF
        if key >> 16 == _MAGIC:
            yield _Entry(key, fields[1], fields[8], fields[9])


def find(number: int) -> Semaphore:
    """Return the semaphore of a cookie that somebody made.

    Raises:
        Failed: There is none, or no permission.
    """
    if number >> 16 != _MAGIC:
        raise Failed(
            f"Could not continue to access notification semaphore identified by cookie value {number} (0x{number:x}). "
            "Incorrect cookie prefix."
        )
    try:
        return Semaphore.find(number)
    except IoctlError as error:
        usual = "Failed to access notification semaphore identified by cookie value {0} (0x{0:x}): "
        text = _WHY.get(error.errno or 0, usual + str(error.strerror))
        raise Failed(text.format(number)) from None


def create(session: Session, _arguments: Sequence[str]) -> None:
    """Make a cookie and print it; print nothing where no udevd runs."""
    if not session.syncs:
        return
    import secrets  # noqa: PLC0415 - only where udev runs

    semaphore = Semaphore()
    for _ in range(_TRIES):
        try:
            semaphore.create(_MAGIC << 16 | (secrets.randbelow(0xFFFF) + 1))
            break
        except IoctlError as error:
            if error.errno == errno.ENOSPC:
                reason = (
                    "Limit for the maximum number of semaphores reached. You can check and set the limits in "
                )
                raise Failed(f"{reason}/proc/sys/kernel/sem.") from None
            if error.errno != errno.EEXIST:
                raise Failed(f"Failed to create notification semaphore: {error.strerror}") from None
    else:
        raise Failed("Failed to create notification semaphore: all keys that were tried are taken")
    semaphore.add(1)
    semaphore.keep()
    sys.stdout.write(f"0x{semaphore.key:08X}\n")


def release(session: Session, arguments: Sequence[str]) -> None:
    """Wait until udev has handled what was done under a cookie, and remove it."""
    number = cookie(arguments[0]) if arguments else session.transaction
    if not number:
        raise Failed("No udev transaction cookie given.")
    if not session.syncs:
        return
    semaphore = find(number)
    try:
        semaphore.add(-1)
        if not semaphore.wait_for_zero(_SECONDS):
            raise Failed(f"dmcore: udev did not handle all of it within {_SECONDS:g} s")
    except IoctlError as error:
        if error.errno != errno.EIDRM:
            raise Failed(
                "Failed to set a proper state for notification semaphore identified by cookie value "
                f"{number} (0x{number:x}) to initialize waiting for incoming notifications."
            ) from None
    finally:
        semaphore.remove()


def flags(_session: Session, arguments: Sequence[str]) -> None:
    """Print what the upper half of a cookie tells udev's rules, as assignments for them."""
    bits = cookie(arguments[0]) >> 16
    for index in range(16):
        if bits & 1 << index:
            if index >= 8:
                name = f"DM_SUBSYSTEM_UDEV_FLAG{index - 8}"
            elif index < len(_FLAGS):
                name = f"DM_UDEV_{_FLAGS[index]}_FLAG"
            else:
                name = f"DM_UDEV_FLAG{index}"
            sys.stdout.write(f"{name}='1'\n")


def complete(session: Session, arguments: Sequence[str]) -> None:
    """Count a cookie down by one: what udev's rules call when they are done with an event."""
    number = cookie(arguments[0])
    sys.stdout.write(f"DM_COOKIE_COMPLETED=0x{number:<10x}\n")
    base = number & 0xFFFF
    if not base or not session.syncs:
        return
    key = base | _MAGIC << 16
    try:
        find(key).add(-1)
    except IoctlError as error:
        why = "incorrect semaphore state" if error.errno == errno.EAGAIN else error.strerror
        raise Failed(
            f"semop failed for cookie 0x{key:x}: {why}",
            f"Could not signal waiting process using notification semaphore identified by cookie value {key} (0x{key:x})",
        ) from None


def _asked(age: int) -> bool:
    """Ask whether to go on; the end of the input means no."""
    older = f"older than {age} minutes " if age else ""
    sys.stderr.write(
        f"WARNING: This operation will destroy all semaphores {older}with keys that have a prefix {_MAGIC} (0x{_MAGIC:x}).\n"
    )
    while True:
        sys.stdout.write("Do you really want to continue? [y/n]: ")
        sys.stdout.flush()
        line = sys.stdin.readline()
        answers = [letter for letter in line.lower() if letter in "yn"]
        if answers:
            return answers[-1] == "y"
        if not line:
            sys.stdout.write("\n")
            return False


def complete_all(session: Session, arguments: Sequence[str]) -> None:
    """Remove the semaphores of all cookies, or those older than so many minutes: whoever waits for them goes on."""
    match = re.match(r"\s*\+?([0-9]+)", arguments[0] if arguments else "0", re.ASCII)
    if match is None:
        raise Failed("Failed to read age_in_minutes parameter.")
    age = int(match[1])
    if not session.options.has("yes") and not _asked(age):
        sys.stdout.write(f"Semaphores with keys prefixed by {_MAGIC} (0x{_MAGIC:x}) NOT destroyed.\n")
        return
    removed = skipped = 0
    for entry in _entries():
        if max(entry.used, entry.changed) + age * 60 > time.time():
            skipped += 1
            continue
        try:
            Semaphore.find(entry.key).remove()
            removed += 1
        except IoctlError as error:
            sys.stderr.write(
                f"Could not cleanup notification semaphore with semid {entry.id} and cookie value "
                f"{entry.key} (0x{entry.key:x}): {error.strerror}\n"
            )
    sys.stdout.write(
        f"{removed} semaphores with keys prefixed by {_MAGIC} (0x{_MAGIC:x}) destroyed. {skipped} skipped.\n"
    )


def cookies(_session: Session, _arguments: Sequence[str]) -> None:
    """List the semaphores of all cookies."""
    sys.stdout.write("Cookie       Semid      Value      Last semop time           Last change time\n")
    for entry in _entries():
        try:
            value = Semaphore.find(entry.key).value
        except IoctlError as error:
            sys.stderr.write(
                f"semid {entry.id}: sem_ctl failed for cookie 0x{entry.key:x}: {error.strerror}\n"
            )
            continue
        used, changed = time.ctime(entry.used), time.ctime(entry.changed)
        sys.stdout.write(f"0x{entry.key:<10x} {entry.id:<10} {value:<10} {used}  {changed}\n")
