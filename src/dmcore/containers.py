"""What container runtimes do with device-mapper in a guest: devices that may come late, verity layers, scratch disks.

The names are those of the runtimes' own helpers. Each call opens the control node, does its work as one step that leaves
nothing behind on failure, and returns the path of the block device's node, which it makes where no udevd does.
"""

from __future__ import annotations

import errno
import os
import shutil
import struct
import subprocess
import time
from enum import Flag
from pathlib import Path
from typing import TYPE_CHECKING

from dmcore import validate
from dmcore.errors import DeviceMissing, DmError, FormatError, IoctlError, SpecError, ToolFailed, Unsupported
from dmcore.kernel import udev
from dmcore.kernel.block import BlockFile
from dmcore.kernel.control import Control
from dmcore.kernel.device import Device
from dmcore.ref import Ref
from dmcore.table import Line, Table
from dmcore.targets.linear import Linear
from dmcore.targets.verity import Verity
from dmcore.units import SECTOR, to_sectors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = [
    "RETRIED",
    "CreateFlags",
    "cleanup_crypt_device",
    "create_device",
    "create_verity_target",
    "create_zero_sector_linear_target",
    "encrypt_device",
    "remove_device",
]

RETRIED = frozenset({errno.EBUSY, errno.ENOENT, errno.ENXIO, errno.ENODEV})
"""What the kernel says while a device below is still coming, or an older user of it still going."""

_PAUSE = 0.1
_BLOCK = 4096
_CHUNK = 1 << 20
_VERITY_MAGIC = b"verity\0\0"
_VERITY_FIELDS = struct.Struct("<8sII16s32sIIQH6x256s")
_LUKS_MAGIC = b"LUKS\xba\xbe"
_LUKS_HEADERS = 32768
_BUSY, _NO_DEVICE = 5, 4
_MKFS = ("-q", "-F", "-b", str(_BLOCK), "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard")
_FORMAT = (
    "luksFormat", "--type", "luks2", "--cipher", "aes-xts-plain64", "--key-size", "512", "--integrity", "hmac-sha256",
    "--integrity-no-wipe", "--sector-size", str(_BLOCK), "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000",
    "--batch-mode", "--key-file", "-",
)  # fmt: skip
_OPEN = ("luksOpen", "--key-file", "-", "--integrity-no-journal", "--persistent")


class CreateFlags(Flag):
    """How `create_device` makes a device."""

    NONE = 0
    READONLY = 1


def create_device(
    name: str,
    flags: CreateFlags,
    targets: Table | Iterable[Line],
    *,
    timeout: float = 10.0,
    retry: frozenset[int] = RETRIED,
) -> Path:
    """Create a device, and try again for a while what fails because something below is not there yet.

    Args:
        name: 1..127 bytes without '/'.
        flags: READONLY opens the devices below read-only and makes the disk so.
        targets: The table, or its lines.
        timeout: Seconds until it gives up; 0 for one try.
        retry: The errnos that are tried again, every 100 ms.

    Returns:
        The node.

    Raises:
        SpecError: A bad argument; nothing was tried.
        DeviceBusy: The name is taken, to the end.
        TableRejected: The kernel does not accept the table, to the end or at once for other reasons; for one that was tried
            again a note tells the number of tries.
    """
    validate.instance("flags", flags, CreateFlags, "CreateFlags.READONLY")
    table = targets if isinstance(targets, Table) else Table(targets)
    deadline = time.monotonic() + timeout
    tries = 0
    with Control() as control:
        while True:
            tries += 1
            try:
                device = Device.create(control, name, table, readonly=CreateFlags.READONLY in flags)
            except IoctlError as error:
                if error.errno not in retry or time.monotonic() + _PAUSE > deadline:
                    if error.errno in retry and timeout:
                        error.add_note(f"tries within {timeout:g} s: {tries}")
                    raise
                time.sleep(_PAUSE)
            else:
                return device.path


def remove_device(name: str, *, timeout: float = 5.0) -> None:
    """Remove a device and its node; one that is open is tried again until `timeout` seconds are over.

    Raises:
        DeviceMissing: There is none of that name.
        DeviceBusy: It is open to the end; it stays, and `detail` says who holds it.
    """
    with Control() as control:
        Device.find(control, name).remove(timeout=timeout, deferred=False)


def _node(path: str | os.PathLike[str]) -> Ref:
    text = os.fspath(path)
    if not text.startswith("/"):
        raise SpecError("path", text, "must be the absolute path of a block device")
    return Ref(text)


def create_verity_target(
    path: str | os.PathLike[str],
    name: str,
    *,
    size: int | str,
    root: bytes,
    salt: bytes = b"",
    algorithm: str = "sha256",
    block_size: int = _BLOCK,
    version: int = 1,
    superblock: bool = False,
    timeout: float = 10.0,
) -> Path:
    """Create a verity device over a disk with the data in front and the hash tree behind them.

    Args:
        path: The disk.
        name: Of the device.
        size: Of the data: bytes or text like "64M", a whole number of blocks. The tree begins right behind, or one block
            later if there is a superblock.
        root: Digest of the tree's top block: what the rest is trusted for.
        salt: What is hashed with every block.
        algorithm: Hash, by its kernel name.
        block_size: Of data and tree, in bytes.
        version: Hash type, 0 or 1.
        superblock: veritysetup's superblock stands between data and tree. It must agree with the arguments.
        timeout: Seconds to wait for the disk; see `create_device`.

    Returns:
        The node of a read-only device of `size` bytes. Reads of what does not match the root fail with EIO.

    Raises:
        SpecError: A bad argument.
        FormatError: There is no such superblock, or it says something else.
        TableRejected: The kernel does not accept the table; nothing is left behind.
    """
    validate.integer("block_size", block_size, SECTOR, 1 << 16, "bytes")
    sectors = to_sectors(size)
    blocks, rest = divmod(sectors * SECTOR, block_size)
    if rest or not blocks:
        raise SpecError("size", size, f"must be a whole number of {block_size}-byte blocks, at least one")
    target = Verity(
        version=version, data=_node(path), hashes=_node(path), data_block_size=block_size, hash_block_size=block_size,
        data_blocks=blocks, hash_start=blocks + superblock, algorithm=algorithm, root=root, salt=salt,
    )  # fmt: skip
    line = Line(0, sectors, target)
    if superblock:
        _wait_for(path, timeout)
        _check_superblock(path, target)
    return create_device(name, CreateFlags.READONLY, (line,), timeout=timeout)


def _wait_for(path: str | os.PathLike[str], timeout: float) -> None:
    """Return when there is such a path, or the time is over."""
    deadline = time.monotonic() + timeout
    while not Path(path).exists() and time.monotonic() + _PAUSE < deadline:
        time.sleep(_PAUSE)


def _check_superblock(path: str | os.PathLike[str], target: Verity) -> None:
    offset = target.data_blocks * target.data_block_size
    with BlockFile(path, readonly=True) as disk:
        if offset + _BLOCK > disk.size:
            raise FormatError("the disk ends before the superblock", disk.size)
        raw = disk.read(offset, max(disk.block_size, SECTOR))
    magic, layout, kind, _uuid, name, data, hashes, blocks, size, salt = _VERITY_FIELDS.unpack_from(raw)
    if magic != _VERITY_MAGIC or layout != 1:
        raise FormatError("no verity superblock of version 1", offset)
    said = {
        "version": (kind, target.version),
        "algorithm": (name.rstrip(b"\0").decode("ascii", "replace"), target.algorithm),
        "block_size": ((data, hashes), (target.data_block_size, target.hash_block_size)),
        "size in blocks": (blocks, target.data_blocks),
        "salt": (salt[:size].hex(), target.salt.hex()),
    }
    for field, (there, given) in said.items():
        if there != given:
            raise FormatError(f"the verity superblock has the {field} {there}, not {given}", offset)


def create_zero_sector_linear_target(
    path: str | os.PathLike[str], name: str, *, offset: int | str = 0, size: int | str, timeout: float = 10.0
) -> Path:
    """Create a read-only device of a piece of a disk, such as one of several layers on it; its sector 0 is the piece's.

    Args:
        path: The disk.
        name: Of the device.
        offset: Where the piece begins: bytes or text like "64M", a multiple of 512 bytes.
        size: Of the piece: the same.
        timeout: Seconds to wait for the disk; see `create_device`.

    Returns:
        The node.

    Raises:
        SpecError: A bad argument.
        TableRejected: The kernel does not accept the table, because the disk is too short or for other reasons.
    """
    start, length = to_sectors(offset, field="offset"), to_sectors(size)
    line = Line(0, length, Linear(dev=_node(path), offset=start))
    return create_device(name, CreateFlags.READONLY, (line,), timeout=timeout)


def _tool(name: str, package: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        raise Unsupported(name, "it is not installed", f"apt-get install {package}")
    return found


def _run(
    words: Sequence[str], timeout: float, *, stdin: bytearray | None = None, fd: int | None = None
) -> None:
    """Run a program; what it gets on standard input is shown nowhere.

    Raises:
        ToolFailed: It failed, or did not end in time.
    """
    environment = {**os.environ, "LC_ALL": "C"}
    if not udev.running():
        environment["DM_DISABLE_UDEV"] = "1"  # so that libdevmapper makes the nodes
    try:
        done = subprocess.run(
            words, input=stdin if stdin is not None else b"", capture_output=True, env=environment, timeout=timeout,
            pass_fds=() if fd is None else (fd,), check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ToolFailed(words, None, f"still running after {timeout:g} s") from None
    if done.returncode:
        text = (done.stdout + done.stderr).decode("utf-8", "replace")
        raise ToolFailed(words, done.returncode, text.strip())


def _extents(fd: int) -> Iterator[tuple[int, int]]:
    """Give the ranges of a sparse file that were written, widened to whole blocks."""
    end = 0
    size = os.fstat(fd).st_size
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = -(-os.lseek(fd, start, os.SEEK_HOLE) // _BLOCK) * _BLOCK
        yield start // _BLOCK * _BLOCK, min(end, size)


def _copy(fd: int, path: Path) -> None:
    """Write the written parts of a sparse file to a device: only those blocks get checksums, and can be read after."""
    with BlockFile(path) as disk:
        for start, end in _extents(fd):
            for offset in range(start, end, _CHUNK):
                disk.write(offset, os.pread(fd, min(_CHUNK, end - offset), offset))
        disk.flush()


def _make_filesystem(path: Path, options: Sequence[str], timeout: float) -> None:
    """Put an ext4 on a device none of whose blocks can be read: make it in memory, and copy what was written."""
    with BlockFile(path) as disk:
        size = disk.size // _BLOCK * _BLOCK
    fd = os.memfd_create("dmcore-ext4", os.MFD_CLOEXEC)
    try:
        os.truncate(fd, size)
        mkfs = _tool("mkfs.ext4", "e2fsprogs")
        _run([mkfs, *_MKFS, *options, f"/proc/self/fd/{fd}"], timeout, fd=fd)
        _copy(fd, path)
    finally:
        os.close(fd)


def _header(source: Path) -> bytes:
    """Return where the LUKS headers are, as far as the device is long enough."""
    with BlockFile(source, readonly=True) as disk:
        return disk.read(0, min(_LUKS_HEADERS, disk.size // disk.block_size * disk.block_size))


def _wipe_header(source: Path, before: bytes) -> None:
    """Overwrite both LUKS headers, if there are any that were not there before."""
    now = _header(source)
    if now != before and now.startswith(_LUKS_MAGIC):
        with BlockFile(source) as disk:
            disk.write(0, bytes(len(now)))
            disk.flush()


def encrypt_device(
    source: str | os.PathLike[str], name: str, *, mkfs_options: Sequence[str] = (), timeout: float = 120.0
) -> Path:
    """Make a scratch disk of a device: encrypted, authenticated, with an empty ext4, under a key that nobody has.

    LUKS2 with aes-xts-plain64 and hmac-sha256 over 4096-byte sectors, made by cryptsetup. Nothing is wiped: a block can be
    read once it was written, and before that reads fail with EILSEQ. The file system is therefore made in memory, and only
    what it consists of is written. It has no journal, whose unwritten blocks could not be read after a crash.

    The key is random, reaches cryptsetup through a pipe, and is forgotten: it is in no file, and the content is lost with
    the mapping.

    Args:
        source: A block device of about 20 MiB or more. What is on it is lost.
        name: Of the new device; cryptsetup makes `NAME_dif` below it.
        mkfs_options: More options of mkfs.ext4.
        timeout: Seconds that each program may take.

    Returns:
        The node to mount.

    Raises:
        SpecError: A name that is taken, or a bad argument.
        Unsupported: cryptsetup or mkfs.ext4 is not installed.
        ToolFailed: One of them failed, because the kernel lacks a cipher, the device is too small, or for other reasons.
            The mapping is closed, and a LUKS header that was made is wiped.
        OSError: The device below is missing or failed; the same.
    """
    path = Path(_node(source).name)
    cryptsetup = _tool("cryptsetup", "cryptsetup-bin")
    with Control() as control:
        for taken in (name, f"{name}_dif"):
            if control.exists(taken):
                raise SpecError("name", taken, "there is a device of this name")
        before = _header(path)
        key = bytearray(64)
        try:
            with Path("/dev/urandom").open("rb", buffering=0) as random:
                random.readinto(key)
            _run([cryptsetup, *_FORMAT, str(path)], timeout, stdin=key)
            _run([cryptsetup, *_OPEN, str(path), name], timeout, stdin=key)
            node = Device.find(control, name).path
            _make_filesystem(node, mkfs_options, timeout)
        except BaseException as error:
            _undo(control, path, name, before, error)
            raise
        finally:
            key[:] = bytes(len(key))
    return node


def _undo(control: Control, source: Path, name: str, before: bytes, error: BaseException) -> None:
    """Remove what a failed `encrypt_device` made; what fails here becomes a note."""
    for part in (name, f"{name}_dif"):
        try:
            Device.find(control, part).remove()
        except DeviceMissing:
            continue
        except DmError as second:
            error.add_note(f"{part} is still there: {second}")
    try:
        _wipe_header(source, before)
    except OSError as second:
        error.add_note(f"the LUKS header on {source} is still there: {second}")


def cleanup_crypt_device(name: str, *, timeout: float = 10.0) -> None:
    """Close what `encrypt_device` made: the kernel forgets the key, and with it goes the content.

    Raises:
        DeviceMissing: There is no such device.
        ToolFailed: cryptsetup failed; with status 5, the device was in use until `timeout` seconds were over. It stays.
    """
    cryptsetup = _tool("cryptsetup", "cryptsetup-bin")
    with Control() as control:
        control.info(name)
    deadline = time.monotonic() + timeout
    while True:
        try:
            _run([cryptsetup, "luksClose", name], max(timeout, 10.0))
        except ToolFailed as error:
            if error.status == _NO_DEVICE:
                raise DeviceMissing(errno.ENXIO, "cryptsetup luksClose", name, error.output) from None
            if error.status != _BUSY or time.monotonic() + _PAUSE > deadline:
                raise
            time.sleep(_PAUSE)
        else:
            return
