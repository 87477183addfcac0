"""What one process holds for all its tests: the control node, the folder of backing files, the kernel's features."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from dmcore.errors import SpecError, Unsupported
from dmcore.kernel.control import Control
from dmcore.owner import PREFIX, Owner
from pytest_dm.backend import find_tool

if TYPE_CHECKING:
    from collections.abc import Callable

    from dmcore.target import Features, Target
    from pytest_dm.factory import Dm

__all__ = ["KEPT", "Runtime", "backing_roots", "check_tool", "package_of"]

KEPT = "kept"
"""File in a backing folder that tells the next run's sweep to leave its owner's devices alone."""

_PACKAGES = {
    "mkfs.ext4": "e2fsprogs", "mkfs.ext3": "e2fsprogs", "mkfs.ext2": "e2fsprogs", "e2fsck": "e2fsprogs",
    "debugfs": "e2fsprogs", "tune2fs": "e2fsprogs", "mkfs.xfs": "xfsprogs", "xfs_repair": "xfsprogs",
    "mkfs.btrfs": "btrfs-progs", "btrfs": "btrfs-progs", "mkfs.f2fs": "f2fs-tools", "mkfs.vfat": "dosfstools",
    "dmsetup": "dmsetup", "losetup": "mount", "fio": "fio", "sqlite3": "sqlite3",
}  # fmt: skip
"""Debian's package for a program; another distribution's is mostly called the same."""


def backing_roots() -> tuple[Path, ...]:
    """Return the folders that may hold backing files, the preferred one (a tmpfs) first."""
    shared = Path("/dev/shm")  # noqa: S108 - our folder in it is made with a fresh name and mode 0700
    candidates = (shared, Path(tempfile.gettempdir()))
    return tuple(path for path in candidates if path.is_dir() and os.access(path, os.W_OK))


def package_of(program: str) -> str:
    """Return Debian's package for a program, the program's own name if it is not known."""
    return _PACKAGES.get(program, program)


def check_tool(name: str) -> Path:
    """Return a program's path.

    Raises:
        Unsupported: It is not installed; says the package.
    """
    path = find_tool(name)
    if path is None:
        hint = f"apt-get install {package_of(name)}" if name in _PACKAGES else f"install {name}"
        raise Unsupported(name, "there is no such program on this machine", hint)
    return path


class Runtime:
    """The kernel as tests use it; made at the first test that needs a device, closed at the session's end.

    Attributes:
        owner: This process, as names of devices say it.
        control: The control node.
        log: The kernel log.
        roots: The factories that are in use.
        problems: Leftovers of a killed session that could not be removed.
        noisy: Names of devices that crash states were mounted from, thousands of times.
    """

    def __init__(self) -> None:
        self.owner = Owner.current()
        self.control = Control()
        self.log = self.control.log
        self.roots: list[Dm] = []
        self.problems: list[str] = []
        self.noisy: set[str] = set()
        self._numbers = itertools.count(1)
        self._folder: Path | None = None
        self._corrupts_reads: bool | None = None

    @property
    def folder(self) -> Path:
        """Folder of our backing files and mount points, on a tmpfs if there is one; made when first asked for."""
        if self._folder is None:
            self._folder = Path(
                tempfile.mkdtemp(prefix=f"{PREFIX}-{self.owner.tag}-", dir=backing_roots()[0])
            )
        return self._folder

    def new_file(self, size: int, label: str) -> Path:
        """Make a sparse file of `size` bytes.

        Raises:
            SpecError: A label that is no part of a file's name.
            OSError: No space, or too large for the file system; nothing is left.
        """
        if not label or "/" in label or "\0" in label:
            raise SpecError("label", label, "a part of a file's name, without '/'")
        path = self.folder / f"{next(self._numbers)}-{label}.img"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, size)
        except OSError:
            path.unlink()
            raise
        finally:
            os.close(fd)
        return path

    def new_folder(self, label: str) -> Path:
        """Make an empty folder, for a mount point."""
        path = self.folder / f"{next(self._numbers)}-{label}"
        path.mkdir(mode=0o700)
        return path

    def features(self, *kinds: type[Target]) -> Features:
        """Return what this kernel's targets of these kinds (all without any) can do; each is probed once."""
        from dmcore.kernel.probe import features  # noqa: PLC0415 - probing loads tables

        return features(self.control, kinds or None)

    def corrupts_reads(self, probe: Callable[[], bool]) -> bool:
        """Return whether this kernel's flakey corrupts reads, as `probe` found at its first call."""
        if self._corrupts_reads is None:
            self._corrupts_reads = probe()
        return self._corrupts_reads

    def target_version(self, name: str) -> tuple[int, int, int]:
        """Return a target's version, loading its module.

        Raises:
            Unsupported: The kernel has no such target.
        """
        return self.control.target_version(name)

    def lacks(self, need: str) -> Unsupported | None:
        """Return what is missing for a target, "target.feature" or program; None if it is there.

        Raises:
            SpecError: No kernel has that feature of the target.
        """
        from dmcore.registry import targets  # noqa: PLC0415 - loads every target

        word = need.removeprefix("dm-")
        name, _, feature = word.partition(".")
        known = targets()
        if feature and name in known and word not in known[name].features:
            raise SpecError(
                "needs", need, f"no such feature; there are: {', '.join(known[name].features) or 'none'}"
            )
        try:
            if name in known:
                self.target_version(name)
                if feature and word not in self.features(known[name]):
                    have = f"{name} of kernel {os.uname().release} lacks it"
                    return Unsupported(need, have, "pytest --dm-kernel=uml-7.2")
            else:
                check_tool(need)
        except Unsupported as missing:
            return missing
        return None

    def is_noise(self, line: str) -> bool:
        """Whether a line of the kernel's log is about one of the many mounts of crash states."""
        return any(
            f"({name})" in line or f" {name} " in line or line.startswith(f"{name}:") for name in self.noisy
        )

    def keep(self) -> None:
        """Tell the sweep of the next run to leave what is there now."""
        (self.folder / KEPT).touch()

    @property
    def kept(self) -> bool:
        """Whether devices of a failed test were kept."""
        return self._folder is not None and (self._folder / KEPT).exists()

    def close(self) -> None:
        """Close the control node and remove the folder, unless a failed test's devices were kept."""
        self.control.close()
        if self._folder is not None and not self.kept:
            shutil.rmtree(self._folder)
