"""What one process holds for all its tests: a kernel's devices or models of them, and the folder of backing files."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from dmcore.errors import SpecError, Unsupported
from dmcore.owner import PREFIX, Owner
from pytest_dm.backend import find_tool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from types import TracebackType
    from typing import ClassVar, Self

    from dmcore.abi.dm import DeviceInfo
    from dmcore.kernel.control import Control
    from dmcore.ref import Ref
    from dmcore.table import Table
    from dmcore.target import Features, Message, Requirement, Status, Target
    from pytest_dm.devices.base import Disk
    from pytest_dm.devices.log_writes import LogWrites
    from pytest_dm.devices.loop import Loop
    from pytest_dm.factory import Dm

__all__ = [
    "KEPT",
    "BareDevice",
    "BareLoop",
    "KernelLog",
    "OpenDisk",
    "Runtime",
    "backing_roots",
    "check_tool",
    "package_of",
]

R = TypeVar("R")
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


class OpenDisk(Protocol):
    """An open device: `dmcore.kernel.block.BlockFile` on a kernel."""

    @property
    def block_size(self) -> int:
        """Unit of offsets and lengths in bytes."""
        ...

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    def fileno(self) -> int:
        """Return the file descriptor."""
        ...

    def read(self, offset: int, length: int, /) -> bytes:
        """Return `length` bytes from `offset`."""
        ...

    def write(self, offset: int, data: bytes | bytearray | memoryview, /) -> None:
        """Write all of `data` at `offset`."""
        ...

    def flush(self) -> None:
        """Make completed writes durable."""
        ...

    def discard(self, offset: int, length: int, /) -> None:
        """Discard a range."""
        ...

    def write_zeroes(self, offset: int, length: int, /) -> None:
        """Zero a range."""
        ...

    def drop_caches(self) -> None:
        """Write back and drop the page cache."""
        ...

    def forget_cached(self) -> None:
        """Drop the clean page cache."""
        ...

    def close(self) -> None:
        """Close."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


class BareLoop(Protocol):
    """A disk on a file: `dmcore.kernel.loop.LoopDevice` on a kernel."""

    direct_io: bool

    @property
    def ref(self) -> Ref:
        """The disk as a table names it."""
        ...

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    @property
    def block_size(self) -> int:
        """Logical block size in bytes."""
        ...

    def detach(self) -> None:
        """Let go of the file."""
        ...


class BareDevice(Protocol):
    """A dm device: `dmcore.kernel.device.Device` on a kernel, which has more."""

    name: str
    uuid: str

    @property
    def ref(self) -> Ref:
        """The device as a table names it."""
        ...

    def info(self) -> DeviceInfo:
        """Return its state."""
        ...

    def wait(self, event_nr: int | None = None, *, timeout: float = 10.0) -> int:
        """Wait until the event number differs from `event_nr`, and return it."""
        ...

    def suspend(self, *, noflush: bool = False, lockfs: bool = True) -> None:
        """Hold I/O back."""
        ...

    def resume(self) -> None:
        """Let I/O go on."""
        ...

    def table(self) -> Table:
        """Return the live table."""
        ...

    def table_text(self) -> str:
        """Return the live table as text."""
        ...

    def status(self) -> list[Status]:
        """Return the typed status of each line."""
        ...

    def status_text(self) -> str:
        """Return the status lines as text."""
        ...

    def suspended(self, *, noflush: bool = False, lockfs: bool = True) -> AbstractContextManager[object]:
        """Keep it suspended during the block."""
        ...

    def reload(
        self,
        table: Table,
        *,
        noflush: bool = False,
        lockfs: bool = True,
        devices: Mapping[str, str] | None = None,
    ) -> None:
        """Replace the live table."""
        ...

    def message(self, text: str, sector: int = 0) -> str:
        """Send a message; return the reply."""
        ...

    def send(self, message: Message[R], sector: int = 0) -> R:
        """Send a typed message; return its typed reply."""
        ...

    def remove(self, *, timeout: float = 5.0, deferred: bool = True) -> None:
        """Remove it."""
        ...


class KernelLog(Protocol):
    """Where a kernel writes what it has to say."""

    def mark(self) -> int:
        """Return where it ends now."""
        ...

    def since(self, mark: int, /) -> Iterable[str]:
        """Return the lines behind a mark."""
        ...


class Runtime(ABC):
    """What tests' devices come from; made at the first test that needs one, closed at the session's end.

    Attributes:
        kind: "kernel" or "model".
        owner: This process, as names of devices say it.
        log: The kernel log.
        roots: The factories that are in use.
        problems: Leftovers of a killed session that could not be removed.
        noisy: Names of devices that crash states were mounted from, thousands of times.
    """

    kind: ClassVar[str]
    log: KernelLog

    def __init__(self) -> None:
        self.owner = Owner.current()
        self.roots: list[Dm] = []
        self.problems: list[str] = []
        self.noisy: set[str] = set()
        self._numbers = itertools.count(1)
        self._folder: Path | None = None
        self._corrupts_reads: bool | None = None

    @property
    @abstractmethod
    def control(self) -> Control:
        """The kernel's control node.

        Raises:
            Unsupported: There is no kernel.
        """

    @abstractmethod
    def create(self, name: str, uuid: str, table: Table, devices: Mapping[str, str] | None) -> BareDevice:
        """Create a dm device, load its table and resume it; nothing is left where that fails."""

    @abstractmethod
    def attach(self, backing: Path, *, block_size: int, readonly: bool, direct_io: bool) -> BareLoop:
        """Make a disk of a file."""

    @abstractmethod
    def bound(self, loop: Loop) -> bool:
        """Whether the disk is still there, whoever holds it."""

    @abstractmethod
    def node(self, disk: Disk) -> Path:
        """Return a disk's block device node.

        Raises:
            Unsupported: There is no kernel.
        """

    @abstractmethod
    def open(self, disk: Disk, *, direct: bool, readonly: bool, synchronous: bool) -> OpenDisk:
        """Open a disk for byte I/O."""

    @abstractmethod
    def device_word(self, name: str, device: Ref | str | Path) -> str:
        """Return the table word for a device that is named by "major:minor" or by a node.

        Raises:
            SpecError: Not a block device, or one that may be somebody's disk.
        """

    @abstractmethod
    def require(self, need: Requirement) -> None:
        """Raise Unsupported for what the kernel lacks."""

    @abstractmethod
    def require_mounts(self) -> None:
        """Raise Unsupported where nothing can be mounted."""

    @abstractmethod
    def check_unmounted(self, disk: Disk) -> None:
        """Raise DmError if somebody has the disk mounted."""

    @abstractmethod
    def left(self, names: set[str], mountpoints: set[Path]) -> list[str]:
        """Return which of these dm devices and mounts are there."""

    @abstractmethod
    def features(self, *kinds: type[Target]) -> Features:
        """Return what the targets of these kinds (all without any) can do."""

    @abstractmethod
    def target_version(self, name: str) -> tuple[int, int, int]:
        """Return a target's version.

        Raises:
            Unsupported: There is no such target.
        """

    def settle(self) -> None:  # noqa: B027 - a kernel does it by itself
        """Let the background work of models be done; a kernel's goes on by itself."""

    def times_of_log(self, device: LogWrites) -> Sequence[tuple[int, int]] | None:
        """Return the growing list of when each entry of a log is issued and completed; None: that has to be traced."""
        del device
        return None

    @abstractmethod
    def monotonic(self) -> float:
        """Return seconds of the clock that delays and schedules of devices follow."""

    @abstractmethod
    def sleep(self, seconds: float) -> None:
        """Let time pass on that clock."""

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

    def corrupts_reads(self, probe: Callable[[], bool]) -> bool:
        """Return whether this kernel's flakey corrupts reads, as `probe` found at its first call."""
        if self._corrupts_reads is None:
            self._corrupts_reads = probe()
        return self._corrupts_reads

    def lacks(self, need: str) -> Unsupported | None:
        """Return what is missing for a target, "target.feature", program or "kernel"; None if it is there.

        Raises:
            SpecError: No kernel has that feature of the target.
        """
        from dmcore.registry import targets  # noqa: PLC0415 - loads every target

        if need == "kernel":
            have = "this is the model backend"
            return None if self.kind == "kernel" else Unsupported("a kernel", have, "pytest --dm-vm")
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
        """Remove the folder, unless a failed test's devices were kept."""
        if self._folder is not None and not self.kept:
            shutil.rmtree(self._folder)
