"""The initial file system of a QEMU guest: just enough to mount the host's root over 9p and start its Python."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["HOST_TAG", "INIT", "MESSAGE_BYTES", "Node", "archive", "contents"]

HOST_TAG: Final = "hostroot"
"""9p tag of the host's root."""

MESSAGE_BYTES: Final = 512000
"""msize of the 9p mounts."""

INIT: Final = """\
#!/busybox sh
# Started by the kernel; the words of its command line after -- are the program to run on the host's root.
b=/busybox
fail() { $b echo "dmvm-init: failed: $*"; $b sync; $b reboot -f; }
$b mount -t proc proc /proc && $b mount -t sysfs sys /sys && $b mount -t devtmpfs dev /dev || fail system folders
for module in $($b cat /modules.list); do $b insmod /modules/$module || fail module $module; done
$b mount -t 9p -o MOUNT_OPTIONS HOST_TAG /host || fail mounting the root of the host
$b umount /sys && $b umount /proc && $b umount /dev || fail leaving
while [ $# -gt 0 ] && [ "${1#/}" = "$1" ]; do shift; done # words of the kernel's that it does not know
exec $b switch_root /host "$@"
"""
"""The first program: loads modules, mounts the host's root, and goes there."""


@dataclass(frozen=True)
class Node:
    """A file of a cpio archive.

    Attributes:
        path: Its path, without leading slash.
        mode: Type and permission bits, as in stat.
        data: Content of a regular file, target of a symbolic link.
        device: Major and minor of a device node.
    """

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def archive(nodes: Iterable[Node]) -> bytes:
    """Return a cpio archive in the "newc" format (Documentation/driver-api/early-userspace/buffer-format.rst).

    The same nodes give the same bytes: owner root, time 0, inode numbers counted from 1.
    """
    parts: list[bytes] = []
    trailer = Node("TRAILER!!!", 0)
    for number, node in enumerate((*nodes, trailer), 1):
        name = node.path.encode() + b"\0"
        links = 2 if stat.S_ISDIR(node.mode) else 1
        inode = 0 if node is trailer else number
        fields = (inode, node.mode, 0, 0, links, 0, len(node.data), 0, 0, *node.device, len(name), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        parts += [_padded(header + name), _padded(node.data)]
    return b"".join(parts)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def contents(busybox: bytes, modules: Sequence[tuple[str, bytes]]) -> list[Node]:
    """Return the nodes of a guest's initramfs.

    Args:
        busybox: A static busybox.
        modules: Name and image of each module to load, in order.
    """
    options = f"trans=virtio,version=9p2000.L,ro,cache=loose,msize={MESSAGE_BYTES}"
    init = INIT.replace("MOUNT_OPTIONS", options).replace("HOST_TAG", HOST_TAG)
    folders = [Node(name, stat.S_IFDIR | 0o755) for name in ("dev", "proc", "sys", "host", "modules")]
    listed = "".join(f"{name}.ko\n" for name, _ in modules)
    return [
        *folders,
        Node("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
        Node("busybox", stat.S_IFREG | 0o755, busybox),
        Node("init", stat.S_IFREG | 0o755, init.encode()),
        Node("modules.list", stat.S_IFREG | 0o644, listed.encode()),
        *(Node(f"modules/{name}.ko", stat.S_IFREG | 0o644, image) for name, image in modules),
    ]
