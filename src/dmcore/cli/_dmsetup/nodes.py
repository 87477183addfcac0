"""Nodes in /dev/mapper, where no udevd looks after them. Source: lvm2, libdm/libdm-common.c (_add_dev_node and others)."""

from __future__ import annotations

import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dmcore.cli._dmsetup.failed import Failed

if TYPE_CHECKING:
    from dmcore.abi.devt import DevT
    from dmcore.cli._dmsetup.options import Options

__all__ = ["Nodes"]


def _warn(text: str) -> None:
    sys.stderr.write(f"{text}\n")


@dataclass(frozen=True, slots=True)
class Nodes:
    """The folder of the nodes.

    Attributes:
        folder: Where they are; /dev/mapper unless $DM_DEV_DIR says otherwise.
        uid: Owner of new nodes.
        gid: Their group.
        mode: Their permissions.
        checking: Say so when udev should have done what is done here.
    """

    folder: Path
    uid: int
    gid: int
    mode: int
    checking: bool

    @classmethod
    def of(cls, options: Options, *, checking: bool) -> Nodes:
        """Return the nodes as options and environment want them."""
        parent = os.environ.get("DM_DEV_DIR") or "/dev"
        if not parent.startswith("/"):
            raise Failed("Invalid DM_DEV_DIR environment variable value.")
        return cls(Path(parent) / "mapper", options.uid, options.gid, options.mode, checking)

    def path(self, name: str) -> Path:
        """Return the node's path for the kernel's spelling of a name."""
        return self.folder / name

    def add(self, name: str, dev: DevT) -> None:
        """Make the node; one that is this device's already is left as it is.

        Raises:
            Failed: Something else is in the way, or mknod(2) fails.
        """
        path = self.path(name)
        try:
            found = path.stat()
        except OSError:
            if self.checking:
                _warn(f"{path} not set up by udev: Falling back to direct node creation.")
        else:
            if not stat.S_ISBLK(found.st_mode):
                raise Failed(f"A non-block device file at '{path}' is already present")
            if found.st_rdev == dev.rdev:
                return
        try:
            path.parent.mkdir(mode=0o755, exist_ok=True)
            path.unlink(missing_ok=True)
            os.mknod(path, stat.S_IFBLK | 0o600, dev.rdev)
            os.chown(path, self.uid, self.gid)
            path.chmod(self.mode)
        except OSError as error:
            raise Failed(f"{path}: mknod for {name} failed: {error.strerror}") from None

    def remove(self, name: str) -> None:
        """Remove the node, if there is one."""
        path = self.path(name)
        if self.checking and path.is_symlink():
            _warn(f"Node {path} was not removed by udev. Falling back to direct node removal.")
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise Failed(f"Unable to unlink device node for '{name}': {error.strerror}") from None

    def rename(self, old: str, new: str) -> None:
        """Move the node to the new name, over a stale one."""
        source, target = self.path(old), self.path(new)
        try:
            if target.exists() and not stat.S_ISBLK(target.stat().st_mode):
                raise Failed(f"A non-block device file at '{target}' is already present")
            if source.is_symlink() or source.exists():
                source.replace(target)
        except OSError as error:
            raise Failed(f"Unable to rename device node from '{old}' to '{new}': {error.strerror}") from None

    def names(self) -> list[str]:
        """Return the names of all nodes but the control node."""
        try:
            return sorted(entry.name for entry in self.folder.iterdir() if entry.name != "control")
        except OSError as error:
            raise Failed(f"{self.folder}: opendir failed: {error.strerror}") from None
