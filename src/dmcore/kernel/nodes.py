"""Device nodes under /dev/mapper, for systems where no udev makes them.

Names are spelled as libdevmapper does: bytes outside its white list become `\\xNN` (libdm/libdm-common.c, mangle_string).
"""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from dmcore.abi.dm import encode_text
from dmcore.errors import IoctlError

if TYPE_CHECKING:
    from dmcore.abi.devt import DevT

__all__ = ["FOLDER", "is_node", "make_node", "node_path", "remove_node"]

FOLDER = Path("/dev/mapper")

_MANGLED = re.compile(rb"(?P<kept>\\x[0-9a-fA-F]{2})|[^0-9A-Za-z#+.:=@_-]")


def node_path(name: str) -> Path:
    """Return the path of a device's node: /dev/mapper/NAME, unusual bytes as `\\xNN`.

    A `\\xNN` that is in the name already stays, as with dmsetup, whose names in the kernel are mangled.
    """
    raw = _MANGLED.sub(lambda match: match["kept"] or b"\\x%02x" % match[0][0], encode_text(name))
    return FOLDER / raw.decode("ascii")


def is_node(path: Path, dev: DevT) -> bool:
    """Whether `path` is, or links to, the block device node of `dev`."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISBLK(found.st_mode) and found.st_rdev == dev.rdev


def make_node(name: str, dev: DevT) -> Path:
    """Make the block device node of `name`, mode 0600, and return its path.

    A node or link of that name that leads elsewhere is stale, since the kernel's names are unique, and is replaced.

    Raises:
        IoctlError: mknod(2) failed, or something that is no device node is in the way; nothing was changed.
    """
    path = node_path(name)
    try:
        try:
            os.mknod(path, stat.S_IFBLK | 0o600, dev.rdev)
        except FileNotFoundError:
            path.parent.mkdir(mode=0o755, exist_ok=True)
            os.mknod(path, stat.S_IFBLK | 0o600, dev.rdev)
        except FileExistsError:
            if is_node(path, dev):
                return path
            kind = path.lstat().st_mode
            if not (stat.S_ISBLK(kind) or stat.S_ISLNK(kind)):
                raise
            path.unlink()
            os.mknod(path, stat.S_IFBLK | 0o600, dev.rdev)
    except OSError as error:
        raise IoctlError(error.errno or errno.EIO, "mknod", name, f"{path}, block device {dev}") from error
    return path


def remove_node(name: str, dev: DevT | None = None) -> None:
    """Remove the node of `name`, if there is one; with `dev`, only if it still is that device's.

    Raises:
        IoctlError: unlink(2) failed.
    """
    path = node_path(name)
    if dev is not None and not is_node(path, dev):
        return
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise IoctlError(error.errno or errno.EIO, "unlink", name, str(path)) from error
