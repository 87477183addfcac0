"""Loop devices: a file as a block device, set up by one LOOP_CONFIGURE.

Sources: drivers/block/loop.c (loop_configure, loop_control_get_free, __loop_clr_fd); behaviour checked on 6.1, 6.12, 7.2.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from dmcore.abi.block import BlockCommand
from dmcore.abi.loop import LO_NAME_SIZE, LoopCommand, LoopConfig, LoopControlCommand, LoopFlags, LoopInfo
from dmcore.errors import DeviceMissing, IoctlError, SpecError, Unsupported
from dmcore.ref import Ref

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["LOOP_CONTROL", "LoopDevice"]

LOOP_CONTROL = Path("/dev/loop-control")
_LOOP_MAJOR = 7
_RACES = 64
_DETACH_POLL = 0.005


def _failed(error: OSError, command: str, device: object, detail: str = "") -> IoctlError:
    return IoctlError(error.errno or errno.EIO, command, str(device), detail)


@cache
def _control() -> int:
    """Return a descriptor of the control node; one per process, for good: it reserves nothing."""
    try:
        return os.open(LOOP_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Unsupported("loop devices", f"no {LOOP_CONTROL}", "modprobe loop") from None
    except PermissionError:
        raise Unsupported(
            "loop devices", f"no permission to open {LOOP_CONTROL}", "run as root or use --dm-vm"
        ) from None


def _free_index() -> int:
    """Return the lowest unbound index; nothing is reserved, another process may take it first."""
    try:
        return fcntl.ioctl(_control(), LoopControlCommand.CTL_GET_FREE)
    except OSError as error:
        raise _failed(error, "LOOP_CTL_GET_FREE", LOOP_CONTROL) from error


def _open_node(index: int, flags: int) -> tuple[Path, int]:
    """Open /dev/loopINDEX, making the node where no devtmpfs did.

    Raises:
        OSError: As open(2); ENXIO while an earlier user of the index is still being torn down.
    """
    path = Path(f"/dev/loop{index}")
    try:
        return path, os.open(path, flags | os.O_CLOEXEC)
    except FileNotFoundError:
        os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(_LOOP_MAJOR, index))
        return path, os.open(path, flags | os.O_CLOEXEC)


class LoopDevice:
    """A bound loop device.

    Made by `attach`. It holds the device open; with `autoclear` (the default) the kernel frees it when the last opener
    closes it, so that nothing is left even if the process is killed. A dm table above counts as an opener.

    Attributes:
        path: The block device node.
        backing: The backing file.
        info: What the driver reported after binding.
        direct_io: Whether the driver does direct I/O to the backing file; asking for it is a hint that it may drop
            (tmpfs on kernels before 6.6, a block size or offset that the backing file system cannot do).
    """

    def __init__(self, path: Path, fd: int, backing: Path, info: LoopInfo) -> None:
        self.path = path
        self.backing = backing
        self.info = info
        self.direct_io = LoopFlags.DIRECT_IO in info.flags
        self._fd = fd

    @classmethod
    def attach(
        cls,
        path: str | os.PathLike[str],
        *,
        block_size: int = 0,
        direct_io: bool = True,
        readonly: bool = False,
        offset: int = 0,
        size_limit: int = 0,
        autoclear: bool = True,
    ) -> Self:
        """Bind a free loop device to a regular file or block device.

        Args:
            path: The backing file. Its size is rounded down to 512 bytes by the driver.
            block_size: Logical block size: a power of two in 512..4096, 0 = the driver's choice (512; with direct I/O,
                kernels from 6.12 on choose the backing file system's).
            direct_io: Ask for direct I/O; see the attribute of that name for what was granted.
            readonly: Bind read-only; a file that cannot be opened for writing needs this.
            offset: First byte used.
            size_limit: Bytes used at most; 0 = to the end.
            autoclear: Free the device at the last close.

        Raises:
            SpecError: A bad block size, offset or limit, or a file too small for one sector; refused before any I/O.
            Unsupported: No loop driver, or no permission.
            IoctlError: The kernel refused; nothing is left bound.
        """
        backing = Path(path).absolute()
        flags = LoopFlags.READ_ONLY if readonly else LoopFlags(0)
        flags |= LoopFlags.DIRECT_IO if direct_io else LoopFlags(0)
        flags |= LoopFlags.AUTOCLEAR if autoclear else LoopFlags(0)
        name = os.fsencode(backing)[-(LO_NAME_SIZE - 1) :]
        info = LoopInfo(offset=offset, size_limit=size_limit, flags=flags, file_name=name)
        LoopConfig(0, block_size, info)
        mode = os.O_RDONLY if readonly else os.O_RDWR
        file = os.open(backing, mode | os.O_CLOEXEC)
        try:
            _check_backing(file, backing, offset)
            return cls._configure(LoopConfig(file, block_size, info), backing, mode)
        finally:
            os.close(file)

    @classmethod
    def _configure(cls, config: LoopConfig, backing: Path, mode: int) -> Self:
        """Bind a free index, trying again when another process takes it first (the GET_FREE race)."""
        error: OSError | None = None
        for _ in range(_RACES):
            index = _free_index()
            try:
                path, fd = _open_node(index, mode)
            except OSError as failure:
                if failure.errno not in (errno.ENXIO, errno.EBUSY, errno.ENOENT):
                    raise _failed(failure, "open", f"/dev/loop{index}") from failure
                error = failure
                time.sleep(_DETACH_POLL)
                continue
            try:
                fcntl.ioctl(fd, LoopCommand.CONFIGURE, config.pack())
                return cls(path, fd, backing, cls._status(fd, path))
            except OSError as failure:
                os.close(fd)
                if failure.errno != errno.EBUSY:
                    raise _failed(
                        failure, "LOOP_CONFIGURE", path, f"backing {backing}, {config}"
                    ) from failure
                error = failure
            except BaseException:
                os.close(fd)
                raise
        assert error is not None
        raise _failed(
            error, "LOOP_CONFIGURE", "loop-control", f"no free device after {_RACES} tries"
        ) from error

    @staticmethod
    def _status(fd: int, path: Path) -> LoopInfo:
        buffer = bytearray(LoopInfo.SIZE)
        try:
            fcntl.ioctl(fd, LoopCommand.GET_STATUS64, buffer)
        except OSError as error:
            raise _failed(error, "LOOP_GET_STATUS64", path) from error
        return LoopInfo.unpack(buffer)

    @property
    def dev(self) -> int:
        """The device number, as in `os.stat().st_rdev`."""
        return os.makedev(_LOOP_MAJOR, self.info.number)

    @property
    def ref(self) -> Ref:
        """The device as a table names it: "7:N"."""
        return Ref(f"{_LOOP_MAJOR}:{self.info.number}")

    @property
    def size(self) -> int:
        """Bytes, as the kernel reports them now."""
        buffer = bytearray(8)
        self._ioctl(BlockCommand.BLKGETSIZE64, "BLKGETSIZE64", buffer)
        return int(struct.unpack("=Q", buffer)[0])

    @property
    def block_size(self) -> int:
        """Logical block size in bytes."""
        buffer = bytearray(4)
        self._ioctl(BlockCommand.BLKSSZGET, "BLKSSZGET", buffer)
        return int(struct.unpack("=i", buffer)[0])

    @property
    def readonly(self) -> bool:
        """Whether writes are refused (EPERM)."""
        return LoopFlags.READ_ONLY in self.info.flags

    @property
    def attached(self) -> bool:
        """Whether this object still holds the device."""
        return self._fd >= 0

    def _ioctl(self, request: int, name: str, argument: bytearray | int = 0) -> None:
        if self._fd < 0:
            raise DeviceMissing(errno.ENXIO, name, str(self.path), "already detached")
        try:
            fcntl.ioctl(self._fd, request, argument)
        except OSError as error:
            raise _failed(error, name, self.path) from error

    def refresh(self) -> LoopInfo:
        """Read the driver's view again (flags, offset, limit) and keep it in `info`."""
        self.info = self._status(self._fd, self.path)
        self.direct_io = LoopFlags.DIRECT_IO in self.info.flags
        return self.info

    def set_capacity(self) -> int:
        """Take over the backing file's new size; returns the device's size in bytes."""
        self._ioctl(LoopCommand.SET_CAPACITY, "LOOP_SET_CAPACITY")
        return self.size

    def set_direct_io(self, enable: bool) -> bool:  # noqa: FBT001 - the ioctl's own argument
        """Switch direct I/O; returns what is in force.

        Raises:
            IoctlError: EINVAL where the backing file system, offset or block size does not allow it.
        """
        self._ioctl(LoopCommand.SET_DIRECT_IO, "LOOP_SET_DIRECT_IO", int(enable))
        self.refresh()
        return self.direct_io

    def set_block_size(self, size: int) -> None:
        """Change the logical block size; the page cache is written back and dropped first.

        Raises:
            SpecError: Not a power of two in 512..4096.
            IoctlError: EBUSY where something else holds the device exclusively (6.12+).
        """
        LoopConfig(0, size, LoopInfo())
        if not size:
            raise SpecError("block_size", size, "name the size")
        self._ioctl(LoopCommand.SET_BLOCK_SIZE, "LOOP_SET_BLOCK_SIZE", size)

    def detach(self, *, timeout: float = 5.0) -> None:
        """Free the device: LOOP_CLR_FD, then close; a second call does nothing.

        Up to 6.1 the only opener's CLR_FD tears down at once; from 6.12 on it happens at the last close. Where others
        still hold it (a dm table, a mount) the kernel frees it when they close: that is success here too, and the
        next call of `attach` never meets it. Waits up to `timeout` seconds for our own part to be gone.

        Raises:
            IoctlError: CLR_FD failed; the descriptor is closed all the same.
        """
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        try:
            fcntl.ioctl(fd, LoopCommand.CLR_FD)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise _failed(error, "LOOP_CLR_FD", self.path) from error
        finally:
            os.close(fd)
        self._await_release(time.monotonic() + timeout)

    def _await_release(self, deadline: float) -> None:
        """Wait while the kernel tears the device down, unless somebody else keeps it open."""
        backing = Path(f"/sys/block/loop{self.info.number}/loop/backing_file")
        holders = Path(f"/sys/block/loop{self.info.number}/holders")
        while backing.exists() and time.monotonic() < deadline:
            if (holders.exists() and any(holders.iterdir())) or not self._same_backing(backing):
                return
            time.sleep(_DETACH_POLL)

    def _same_backing(self, backing: Path) -> bool:
        try:
            shown = backing.read_text(encoding="utf-8", errors="surrogateescape").rstrip("\n")
        except OSError:
            return False
        return shown.removesuffix(" (deleted)") == str(self.backing)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def __repr__(self) -> str:
        return f"<LoopDevice {self.path} on {self.backing}{'' if self.attached else ' (detached)'}>"


def _check_backing(file: int, backing: Path, offset: int) -> None:
    status = os.fstat(file)
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):
        raise SpecError("path", str(backing), "a loop device needs a regular file or a block device")
    size = status.st_size if stat.S_ISREG(status.st_mode) else os.lseek(file, 0, os.SEEK_END)
    if size - offset < 512:
        raise SpecError("path", str(backing), f"{size} bytes from offset {offset} on hold no 512-byte sector")
