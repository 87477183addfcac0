"""A mounted file system of a test."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from dmcore.errors import DmError, IoctlError
from dmcore.kernel.mount import mount, unmount
from pytest_dm.devices.base import let_go
from pytest_dm.runtime import check_tool

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from pytest_dm.devices.base import Disk

__all__ = ["MKFS_TIMEOUT", "Mount", "make_filesystem", "open_files"]

MKFS_TIMEOUT = 120.0
"""Seconds that a mkfs may take."""

_FIRST_TRY = 0.2
_UNMOUNT_POLL = 0.02

_QUIET = {
    "btrfs": ("-q", "-f"),
    "ext2": ("-q", "-F"),
    "ext3": ("-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"),
    "ext4": ("-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"),
    "f2fs": ("-q", "-f"),
    "vfat": (),
    "xfs": ("-q", "-f", "-K"),
}
"""Options that make each mkfs quiet, willing and complete: nothing is left for the kernel to write in the background."""


def make_filesystem(disk: Disk, fs: str, *options: str, timeout: float = MKFS_TIMEOUT) -> None:
    """Make a file system on `disk` with the distribution's own program.

    Args:
        disk: The device.
        fs: Its kind; the program is `mkfs.FS`.
        *options: More arguments of the program, before the device.
        timeout: Seconds it may take.

    Raises:
        Unsupported: The program is not installed; says the package.
        DmError: It failed or took too long; with what it printed.
    """
    program = check_tool(f"mkfs.{fs}")
    command = [str(program), *_QUIET.get(fs, ()), *options, str(disk.path)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=timeout, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        message = f"{' '.join(command)}: still running after {timeout:g} s"
        raise DmError(message) from error
    if done.returncode:
        message = f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout}{done.stderr}".rstrip()
        raise DmError(message)


def open_files(folder: Path) -> list[str]:
    """Return "pid: path" for every file below `folder` that a process we may look at has open or as its folder."""
    found: list[str] = []
    prefix = f"{folder}/"
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            links = [process / "cwd", *(process / "fd").iterdir()]
        except OSError:  # it ended, or is not ours to look at
            continue
        for link in links:
            try:
                target = os.readlink(link)  # noqa: PTH115 - the text, also of files that are deleted
            except OSError:
                continue
            if target == str(folder) or target.startswith(prefix):
                found.append(f"{process.name}: {target}")
    return found


class Mount:
    """A file system on a disk of a test, mounted; as a `with` block, unmounted at the end.

    Attributes:
        disk: The device.
        mountpoint: Where it is mounted.
        fs: The file system.
        options: Mount options, as for mount(8) -o.
        mounted: Whether it is mounted now.
    """

    def __init__(self, disk: Disk, mountpoint: Path, fs: str, options: str = "") -> None:
        self.disk = disk
        self.mountpoint = mountpoint
        self.fs = fs
        self.options = options
        self.mounted = False
        self.mount()
        disk.mounts.append(self)

    def mount(self) -> None:
        """Mount it; the journal is replayed if there is one. Does nothing if it is mounted.

        Raises:
            IoctlError: The kernel refused; nothing is mounted.
        """
        if not self.mounted:
            mount(self.disk.path, self.mountpoint, self.fs, self.options)
            self.mounted = True

    def unmount(self, timeout: float = 5.0) -> None:
        """Unmount it, waiting up to `timeout` seconds while files on it are open. Does nothing if it is not mounted.

        Raises:
            IoctlError: EBUSY: still in use, by the files in `detail`; it stays mounted.
        """
        if not self.mounted:
            return
        deadline = time.monotonic() + timeout
        patient: float | None = time.monotonic() + min(timeout, _FIRST_TRY)
        while True:
            try:
                unmount(self.mountpoint)
            except IoctlError as error:
                if error.errno != errno.EBUSY:
                    raise
                if patient is not None and time.monotonic() > patient:
                    patient = None
                    let_go()
                elif time.monotonic() > deadline:
                    users = "\n".join(f"open: {line}" for line in open_files(self.mountpoint))
                    raise IoctlError(errno.EBUSY, "umount", str(self.mountpoint), users) from error
                time.sleep(_UNMOUNT_POLL)
            else:
                self.mounted = False
                return

    def remount(self) -> None:
        """Unmount and mount again: nothing of it is cached any more."""
        self.unmount()
        self.mount()

    def drop_caches(self) -> None:
        """Drop clean cached file data and metadata, so that the next read asks the device.

        The kernel has this only for the whole machine (/proc/sys/vm/drop_caches): harmless, but others read again too.
        """
        Path("/proc/sys/vm/drop_caches").write_text("3\n", encoding="ascii")

    def describe(self) -> str:
        """Return what is mounted where."""
        state = "mounted on" if self.mounted else "not mounted; was on"
        return f"{self.disk.path}: {self.fs} {state} {self.mountpoint}{f' ({self.options})' if self.options else ''}"

    def close(self) -> None:
        """Unmount it and remove the mount point; a busy one goes out of sight and is freed with its last open file.

        Raises:
            IoctlError: EBUSY: it was still in use, by the files in `detail`.
        """
        if self in self.disk.mounts:
            self.disk.mounts.remove(self)
        try:
            self.unmount()
        except IoctlError:
            unmount(self.mountpoint, lazy=True)
            self.mounted = False
            raise
        finally:
            if not self.mounted and self.mountpoint.is_dir():
                self.mountpoint.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unmount()

    def __repr__(self) -> str:
        return f"<Mount {self.describe()}>"
