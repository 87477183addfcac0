"""Guest kernels as data: what each name means, and what a prepared one consists of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "BUSYBOX_SUITE",
    "EARLY",
    "INITRAMFS",
    "KEPT",
    "RECIPES",
    "Extra",
    "GuestKernel",
    "Recipe",
]


@dataclass(frozen=True)
class GuestKernel:
    """A kernel on disk, ready to boot.

    Attributes:
        name: What it was asked for as: a name of `RECIPES`, "host", or a path.
        machine: "uml" or "qemu".
        release: What `uname -r` says in the guest.
        image: `linux.uml`, executable on this machine, or an uncompressed vmlinux.
        modules: Folder with kernel/..., uncompressed modules, modules.dep and modules.alias; the guest's
            /lib/modules/<release>.
        early: Modules to load at once, in this order.
        busybox: Static busybox: the guest's modprobe, and the shell of the initramfs.
        initramfs: Initial file system of a "qemu" kernel, None for "uml".
    """

    name: str
    machine: str
    release: str
    image: Path
    modules: Path
    early: tuple[Path, ...]
    busybox: Path
    initramfs: Path | None

    def to_json(self, base: Path) -> dict[str, Any]:
        """Return the fields for a manifest, with paths relative to `base` (all must lie below it)."""
        return {
            "name": self.name,
            "machine": self.machine,
            "release": self.release,
            "image": str(self.image.relative_to(base)),
            "modules": str(self.modules.relative_to(base)),
            "early": [str(path.relative_to(base)) for path in self.early],
            "busybox": str(self.busybox.relative_to(base)),
            "initramfs": str(self.initramfs.relative_to(base)) if self.initramfs else None,
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any], base: Path) -> GuestKernel:
        """Return the kernel of a manifest whose paths are relative to `base`."""
        return cls(
            name=str(fields["name"]),
            machine=str(fields["machine"]),
            release=str(fields["release"]),
            image=base / fields["image"],
            modules=base / fields["modules"],
            early=tuple(base / path for path in fields["early"]),
            busybox=base / fields["busybox"],
            initramfs=base / fields["initramfs"] if fields["initramfs"] else None,
        )


@dataclass(frozen=True)
class Extra:
    """A module and what it is built from.

    Attributes:
        module: Its name.
        folder: Where its source lies in the kernel's tree; the headers there and below come along.
        parts: Its C files, without suffix.
    """

    module: str
    folder: str
    parts: tuple[str, ...]


_EXTRAS: Final = (
    Extra("dm-dust", "drivers/md", ("dm-dust",)),
    Extra("dm-clone", "drivers/md", ("dm-clone-target", "dm-clone-metadata")),
    Extra("dm-ebs", "drivers/md", ("dm-ebs-target",)),
)


@dataclass(frozen=True)
class Recipe:
    """Where a distribution keeps a kernel.

    Attributes:
        machine: "uml" or "qemu".
        suite: The Debian release, by the name its archive has.
        line: The kernel version the name promises, such as "6.12"; a package of another line is not taken.
        package: Package with the kernel. For "qemu" the one that depends on the current kernel's package.
        headers: Package that depends on the current kernel's headers, "" if nothing is built from source.
        source: Package with the kernel's source, "" if nothing is built from source.
        extras: Modules to build from that source if the distribution leaves them out.
    """

    machine: str
    suite: str
    line: str
    package: str
    headers: str = ""
    source: str = ""
    extras: tuple[Extra, ...] = ()


def _debian(suite: str, line: str) -> Recipe:
    return Recipe(
        "qemu",
        suite,
        line,
        "linux-image-amd64",
        headers="linux-headers-amd64",
        source=f"linux-source-{line}",
        extras=_EXTRAS,
    )


RECIPES: Final[dict[str, Recipe]] = {
    "uml-6.1": Recipe("uml", "bookworm", "6.1", "user-mode-linux"),
    "uml-6.12": Recipe("uml", "trixie", "6.12", "user-mode-linux"),
    "uml-7.2": Recipe("uml", "sid", "7.2", "user-mode-linux"),
    "debian-6.1": _debian("bookworm", "6.1"),
    "debian-6.12": _debian("trixie", "6.12"),
}
"""Kernels that a distribution offers, by the names users type."""

BUSYBOX_SUITE: Final = "bookworm"
"""Where a static busybox comes from for kernels that are not a distribution's."""

EARLY: Final = ("overlay", "loop", "dm-mod")
"""Modules every guest starts with; a kernel has each as a module or built in."""

INITRAMFS: Final = ("virtio_pci", "virtio_console", "9p", "9pnet_virtio", "virtio-rng")
"""Modules that a QEMU guest needs to reach the host's files, its line and entropy."""

KEPT: Final = (
    "arch/*/crypto/*",
    "block/*",
    "crypto/*",
    "drivers/block/*",
    "drivers/char/hw_random/virtio-rng",
    "drivers/char/virtio_console",
    "drivers/md/*",
    "drivers/scsi/device_handler/*",
    "drivers/scsi/scsi_debug",
    "drivers/scsi/sd_mod",
    "drivers/virtio/*",
    "fs/9p/*",
    "fs/btrfs/*",
    "fs/erofs/*",
    "fs/ext2/*",
    "fs/ext4/*",
    "fs/f2fs/*",
    "fs/fat/*",
    "fs/fuse/*",
    "fs/nls/*",
    "fs/overlayfs/*",
    "fs/squashfs/*",
    "fs/xfs/*",
    "lib/*",
    "net/9p/*",
    "security/keys/*",
)
"""Modules kept of a kernel's tree (below kernel/, without suffix); what they depend on comes along."""
