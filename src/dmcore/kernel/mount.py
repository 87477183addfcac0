"""mount(2) and umount2(2), without a mount(8) process.

Sources: fs/namespace.c (path_mount, path_umount, do_mount option parsing is the file system's own).
"""

from __future__ import annotations

import ctypes
import os
import re
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path
from typing import TYPE_CHECKING

from dmcore.errors import IoctlError, SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MountFlags", "Mounted", "mount", "mounts", "parse_options", "sync_filesystem", "unmount"]

_OCTAL = re.compile(r"\\([0-7]{3})")


class MountFlags(IntFlag):
    """MS_* bits of mount(2)."""

    RDONLY = 1
    NOSUID = 2
    NODEV = 4
    NOEXEC = 8
    SYNCHRONOUS = 16
    REMOUNT = 32
    DIRSYNC = 128
    NOATIME = 1024
    NODIRATIME = 2048
    RELATIME = 1 << 21
    STRICTATIME = 1 << 24
    LAZYTIME = 1 << 25


_SET = {
    "ro": MountFlags.RDONLY, "nosuid": MountFlags.NOSUID, "nodev": MountFlags.NODEV, "noexec": MountFlags.NOEXEC,
    "sync": MountFlags.SYNCHRONOUS, "remount": MountFlags.REMOUNT, "dirsync": MountFlags.DIRSYNC,
    "noatime": MountFlags.NOATIME, "nodiratime": MountFlags.NODIRATIME, "relatime": MountFlags.RELATIME,
    "strictatime": MountFlags.STRICTATIME, "lazytime": MountFlags.LAZYTIME,
}  # fmt: skip
_CLEAR = {
    "rw": MountFlags.RDONLY, "suid": MountFlags.NOSUID, "dev": MountFlags.NODEV, "exec": MountFlags.NOEXEC,
    "async": MountFlags.SYNCHRONOUS, "atime": MountFlags.NOATIME, "diratime": MountFlags.NODIRATIME,
}  # fmt: skip

_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8


@dataclass(frozen=True, slots=True)
class Mounted:
    """One line of /proc/self/mounts.

    Attributes:
        source: The device, or what the file system calls it.
        target: Where it is mounted.
        fstype: The file system.
        options: The options in force.
    """

    source: str
    target: Path
    fstype: str
    options: str


def parse_options(text: str) -> tuple[MountFlags, str]:
    """Split mount(8)-style options into the flags of mount(2) and the file system's own data."""
    flags = MountFlags(0)
    data: list[str] = []
    for word in filter(None, text.split(",")):
        if word in _SET:
            flags |= _SET[word]
        elif word in _CLEAR:
            flags &= ~_CLEAR[word]
        elif word != "defaults":
            data.append(word)
    return flags, ",".join(data)


def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def mount(
    source: str | os.PathLike[str], target: str | os.PathLike[str], fstype: str, options: str = ""
) -> None:
    """Mount a file system.

    Args:
        source: The block device node.
        target: An existing folder.
        fstype: The kernel's name for the file system; its module is loaded on demand.
        options: As for mount(8) -o; what mount(8) itself handles (loop, noauto, user) is not known here.

    Raises:
        SpecError: NUL in a name, or options longer than the page the kernel takes.
        IoctlError: The kernel refused: ENODEV = no such file system, EINVAL = bad super block or options, EIO ...;
            nothing is mounted. The kernel log often says more.
    """
    flags, data = parse_options(options)
    words = (os.fsencode(source), os.fsencode(target), os.fsencode(fstype), os.fsencode(data))
    for field, word in zip(("source", "target", "fstype", "options"), words, strict=True):
        if b"\0" in word:
            raise SpecError(field, word, "NUL cannot stand in a mount argument")
    if len(words[3]) >= 4096:
        raise SpecError("options", options, "the kernel takes less than 4096 bytes")
    if _library().mount(*words[:3], ctypes.c_ulong(flags), words[3] or None):
        code = ctypes.get_errno()
        raise IoctlError(
            code, "mount", os.fspath(source), f"on {target}, type {fstype}, options {options or '-'}"
        )


def unmount(target: str | os.PathLike[str], *, lazy: bool = False) -> None:
    """Unmount what is mounted at `target`.

    Args:
        target: The mount point.
        lazy: Take it out of sight at once and free it when its last user is gone (MNT_DETACH).

    Raises:
        IoctlError: EBUSY = files in use; EINVAL = not a mount point.
    """
    flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)
    if _library().umount2(os.fsencode(target), flags):
        raise IoctlError(ctypes.get_errno(), "umount", os.fspath(target))


def sync_filesystem(path: str | os.PathLike[str]) -> None:
    """Write back and flush the file system that `path` is on: syncfs(2).

    Raises:
        IoctlError: The write-back failed: EIO, ENOSPC.
        OSError: No such path.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _library().syncfs(fd):
            raise IoctlError(ctypes.get_errno(), "syncfs", os.fspath(path))
    finally:
        os.close(fd)


def _unescape(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def mounts() -> Iterator[Mounted]:
    """Yield what is mounted in this mount namespace, in mount order."""
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        source, target, fstype, options = line.split(" ")[:4]
        yield Mounted(_unescape(source), Path(_unescape(target)), fstype, options)
