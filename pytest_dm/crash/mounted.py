"""Crash states mounted for real: what a machine does with a disk that comes up again after a power cut."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dmcore.crash.checkers import Problem
from dmcore.errors import DmError, IoctlError
from dmcore.kernel.block import BlockFile
from dmcore.kernel.loop import LoopDevice
from dmcore.kernel.mount import mount, mounts, unmount
from pytest_dm.devices.mount import open_files
from pytest_dm.runtime import check_tool

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from pathlib import Path

    from dmcore.crash.checkers import Masked
    from dmcore.crash.ext import Ext
    from pytest_dm.runtime import Runtime

__all__ = ["MountedFileSystem"]

_TOOL_TIMEOUT = 120.0
_UNMOUNT_SECONDS = 5.0
_POLL = 0.005

_VERIFY: dict[str, tuple[str, ...]] = {
    "ext2": (),
    "ext3": ("e2fsck", "-fn"),
    "ext4": ("e2fsck", "-fn"),
    "xfs": ("xfs_repair", "-n", "-f"),
    "btrfs": ("btrfs", "check", "--readonly"),
    "f2fs": ("fsck.f2fs", "--dry-run"),
    "vfat": (),
}
"""The read-only check of a recovered file system; ext2 and vfat have errors after a crash by design."""

_SUPER_BLOCKS = {
    "ext2": ((1024, 2048),),
    "ext3": ((1024, 2048),),
    "ext4": ((1024, 2048),),
    "btrfs": ((64 << 10, 68 << 10),),
}

_NOISE = re.compile(
    r"^(\s*$|e2fsck [0-9.]+ \(|Pass [0-9]|Phase [0-9]|\s+- |No modify flag|Opening filesystem|Checking filesystem|"
    r"UUID:|\[[0-9]/[0-9]\]|.*WARNING: Filesystem still has errors)"
)
_COMPLAINT = re.compile(
    r"EXT4-fs (error|\(.*\): (error|failed))|XFS \(.*\): .*([Cc]orrupt|Internal error|[Ff]ailed)|"
    r"BTRFS (error|critical)|F2FS-fs \(.*\): (?!invalid crc).*([Cc]orrupt|[Ii]nvalid|[Ff]ail|[Ii]nconsistent)"
)
"""Not of the checkpoint that was being written, whose place is known and which the older one stands in for
(fs/f2fs/checkpoint.c, get_checkpoint_version)."""


class MountedFileSystem:
    """A file system of the kernel: it recovers by being mounted, and is checked by its own tool.

    * ext3, ext4: mount (the journal is replayed, orphans are cleared), unmount, `e2fsck -fn`.
    * ext2, vfat: mount; they have no journal, and the tool's complaints are expected.
    * xfs: mount, unmount, `xfs_repair -n`, which refuses a log that is not replayed.
    * btrfs: `btrfs check --readonly` before, mount, unmount, and the same again: the check does not replay the log tree.
    * f2fs: mount, unmount, `fsck.f2fs --dry-run`.

    What the kernel's log says of corruption meanwhile is a finding, too.

    Attributes:
        name: The file system.
        options: Mount options.
        atomic: Where its super block is: no file system recovers from one of which a part was written.
        evict: Called when a check has left files open: ends the process it ran in.
    """

    def __init__(self, runtime: Runtime, name: str, options: str, block_size: int) -> None:
        self.name = name
        self.options = options
        self.atomic: Sequence[tuple[int, int]] = _SUPER_BLOCKS.get(name, ())
        self.evict: Callable[[], None] = lambda: None
        self._mark = 0
        self._runtime = runtime
        self._block_size = block_size
        self._folder = runtime.new_folder("crash-states")
        self._loop: LoopDevice | None = None
        self._ext: Ext | None = None
        self._inode: tuple[int, int, int] = (0, 0, 0)
        # Xfs mounts no two of the same uuid, and the recorded one may still be mounted.
        self._all_options = ",".join(filter(None, (options, "nouuid" if name == "xfs" else "")))
        self._tool = _VERIFY[name]
        if self._tool:
            self._tool = (str(check_tool(self._tool[0])), *self._tool[1:])

    def recover(self, image: Path, /) -> Problem | None:
        """Mount and unmount, as a machine does that comes up again."""
        if self.name == "btrfs" and (problem := self.verify(image)):
            return problem
        try:
            with self._mounted(image):
                pass
        except _DidNotMount as failure:
            return failure.problem
        return self._complained()

    def verify(self, image: Path, /) -> Problem | None:
        """Run the file system's own read-only check."""
        if not self._tool:
            return None
        try:
            done = subprocess.run(
                [*self._tool, str(image)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                timeout=_TOOL_TIMEOUT, check=False, env={**os.environ, "LC_ALL": "C", "E2FSCK_CONFIG": os.devnull},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return Problem("fs", f"{self._tool[0]} ran longer than {_TOOL_TIMEOUT:g} s")
        if not done.returncode:
            return None
        text = done.stdout.decode(errors="replace")
        said = next((line.strip() for line in text.splitlines() if not _NOISE.match(line)), "no word")
        name = os.path.basename(self._tool[0])  # noqa: PTH119 - a word
        return Problem("fs", f"{name} exited with {done.returncode}: {said}")

    def masked(self, image: Path, /) -> Sequence[Masked]:
        """Return the super block's times and counters, and the journal, of ext3 and ext4; nothing for others."""
        if self.name not in ("ext3", "ext4"):
            return ()
        from dmcore.crash.ext import Ext  # noqa: PLC0415 - knows the layout

        self._ext = Ext(self.name)
        return self._ext.masked(image)

    def foresee(self, image: Path, /) -> Sequence[tuple[int, bytes]] | None:
        """Return what replaying the journal of ext3 and ext4 will write; None where only the kernel knows."""
        unreplayed = {"noload", "norecovery"} & set(self.options.split(","))
        return None if self._ext is None or unreplayed else self._ext.foresee(image)

    def explain(self, image: Path, writes: Sequence[tuple[int, bytes]], /) -> list[str]:
        """Say what blocks of ext2, ext3, ext4, xfs and btrfs are for; of others nobody knows."""
        if self.name in ("ext2", "ext3", "ext4"):
            from dmcore.crash.ext import Ext  # noqa: PLC0415 - knows the layout

            return Ext(self.name).explain(image, writes)
        if self.name == "xfs":
            from dmcore.crash import xfs_layout  # noqa: PLC0415 - knows the layout

            return xfs_layout.explain(image, writes)
        if self.name == "btrfs":
            from dmcore.crash import btrfs_layout  # noqa: PLC0415 - knows the layout

            return btrfs_layout.explain(image, writes)
        return [""] * len(writes)

    @property
    def _mountpoint(self) -> Path:
        """This process' own: the workers of an exploration mount at the same time."""
        return self._folder / str(os.getpid())

    @contextmanager
    def opened(self, image: Path, /) -> Generator[Path]:
        """Give where a recovered image is mounted."""
        with self._mounted(image):
            yield self._mountpoint

    @contextmanager
    def _mounted(self, image: Path) -> Generator[None]:
        path = self._attached(image)
        self._mountpoint.mkdir(exist_ok=True)
        self._mark = self._runtime.log.mark()
        try:
            mount(path, self._mountpoint, self.name, self._all_options)
        except IoctlError as error:
            lines = [line for line in self._runtime.log.since(self._mark) if self.name in line.lower()]
            said = f": {lines[-1]}" if lines else ""
            name = errno.errorcode.get(error.errno or 0, "")
            raise _DidNotMount(Problem("fs", f"cannot be mounted ({name}){said}")) from error
        try:
            yield
        finally:
            self._unmount()

    def _complained(self) -> Problem | None:
        """Return what the kernel said of corruption since the last mount."""
        for line in self._runtime.log.since(self._mark):
            if _COMPLAINT.search(line):
                return Problem("fs", f"the kernel says: {line}")
        return None

    def _unmount(self) -> None:
        """Unmount, ending what still uses the mount; bounded.

        Raises:
            IoctlError: EBUSY: somebody else uses it, see `detail`.
        """
        deadline = time.monotonic() + _UNMOUNT_SECONDS
        evicted = False
        while True:
            try:
                unmount(self._mountpoint)
            except IoctlError as error:
                if error.errno != errno.EBUSY:
                    raise
                if not evicted:
                    evicted = True
                    self.evict()
                elif time.monotonic() > deadline:
                    users = "\n".join(f"open: {line}" for line in open_files(self._mountpoint))
                    unmount(self._mountpoint, lazy=True)
                    raise IoctlError(errno.EBUSY, "umount", str(self._mountpoint), users) from error
                else:
                    time.sleep(_POLL)
            else:
                return

    def _attached(self, image: Path) -> Path:
        """Return the loop device on the image, whose cache knows nothing of what the image was before."""
        status = image.stat()
        inode = (status.st_dev, status.st_ino, os.getpid())
        if self._loop is None or inode != self._inode:
            if self._loop is not None and self._inode[2] == os.getpid():
                self._loop.detach()
            self._loop = LoopDevice.attach(image, block_size=self._block_size, direct_io=False)
            self._inode = inode
            self._runtime.noisy.add(self._loop.path.name)
        with BlockFile(self._loop.path, direct=False, readonly=True) as file:
            file.drop_caches()
        return self._loop.path

    def close(self) -> None:
        """Free the loop device; unmount what a killed worker left."""
        for mounted in mounts():
            if mounted.target.parent == self._folder:
                unmount(mounted.target, lazy=True)
        if self._loop is not None and self._inode[2] == os.getpid():
            self._loop.detach()
        self._loop = None
        if self._folder.is_dir():
            shutil.rmtree(self._folder)


class _DidNotMount(DmError):
    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.reason)
        self.problem = problem
