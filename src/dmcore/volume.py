"""open_volume: read and write what a dm device would, without a kernel and without root.

A volume speaks bytes. It is served by models of the targets over files, block devices, memory or other volumes.
"""

from __future__ import annotations

import errno
import io
import os
from typing import TYPE_CHECKING, Any, Literal

from dmcore.errors import DmError, SpecError
from dmcore.model.block import FUA, IDLE, SYNC, BlockDevice, discard_requests, fault
from dmcore.model.clock import Clock
from dmcore.model.device import ModelDevice
from dmcore.model.stores import CowStore, FileStore
from dmcore.stack import Stack
from dmcore.target import NO_FEATURES
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path
    from types import TracebackType
    from typing import Self, TypeAlias

    from dmcore.ref import Ref
    from dmcore.table import Table
    from dmcore.target import Features, Status

    Below: TypeAlias = str | os.PathLike[str] | BlockDevice | "Volume"

__all__ = ["BufferedVolume", "Volume", "VolumeFile", "open_volume"]

_PIECE = 1 << 20


class Volume:
    """An open stack of models, by the bytes of its topmost device.

    A context manager that flushes and closes at its end. Offsets and lengths are multiples of `block_size`;
    `file()` takes any. A failed request raises the OSError that the kernel's device would give, and may have been served
    in part. Not for use by several threads at once.

    Attributes:
        device: The topmost model, for tests that suspend and reload it.
        devices: All models of the stack, by name.
        clock: The stack's virtual time in milliseconds: targets that wait move it.
        size: Bytes.
        block_size: Logical block size in bytes.
    """

    def __init__(self, devices: Mapping[str, ModelDevice], owned: list[BlockDevice], clock: Clock) -> None:
        self.devices = dict(devices)
        self.device = next(reversed(self.devices.values()))
        self.clock = clock
        self._owned = owned
        self._closed = False

    @property
    def size(self) -> int:
        """Bytes."""
        return self.device.sectors * SECTOR

    @property
    def block_size(self) -> int:
        """Logical block size in bytes: the unit of offsets and lengths."""
        return self.device.block_size

    def _sectors(self, offset: int, length: int) -> tuple[int, int]:
        if self._closed:
            message = "the volume is closed"
            raise ValueError(message)
        unit = self.device.block_size
        if offset < 0 or offset % unit:
            raise SpecError(
                "offset", offset, f"must be a multiple of the {unit}-byte block; file() takes any"
            )
        if length < 0 or length % unit:
            raise SpecError(
                "length", length, f"must be a multiple of the {unit}-byte block; file() takes any"
            )
        if offset + length > self.size:
            raise SpecError(
                "length", length, f"from byte {offset} on, it ends past the volume's end at {self.size}"
            )
        return offset // SECTOR, length // SECTOR

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`."""
        buffer = bytearray(length)
        self.readinto(offset, buffer)
        return bytes(buffer)

    def readinto(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill a writable buffer from `offset` on."""
        view = memoryview(buffer).cast("B")
        sector, _ = self._sectors(offset, len(view))
        if len(view):
            self.device.readinto(sector, view)

    def write(self, offset: int, data: bytes | bytearray | memoryview, *, fua: bool = False) -> None:
        """Write `data` at `offset`; `fua`: it is durable on return."""
        view = memoryview(data).cast("B")
        sector, _ = self._sectors(offset, len(view))
        if len(view):
            self.device.write(sector, view, SYNC | IDLE | (FUA if fua else 0))

    def flush(self) -> None:
        """Make every write that has returned durable."""
        self._sectors(0, 0)
        self.device.flush()

    def discard(self, offset: int, length: int) -> None:
        """Discard a range; OSError EOPNOTSUPP where the table takes none."""
        sector, count = self._sectors(offset, length)
        if count:
            self.clock.together(discard_requests(self.device, sector, count))

    def write_zeroes(self, offset: int, length: int) -> None:
        """Zero a range."""
        sector, count = self._sectors(offset, length)
        if count:
            self.device.write_zeroes(sector, count)

    def message(self, text: str, *, sector: int = 0) -> str:
        """Send a target message, as `dmsetup message` does; return the reply ("" for none)."""
        return self.device.message(text, sector)

    def status(self) -> list[Status]:
        """Return the typed status of every line."""
        return self.device.status()

    def status_text(self) -> str:
        """Return the status as `dmsetup status` prints it."""
        return self.device.status_text()

    def table_text(self) -> str:
        """Return the table as `dmsetup table` prints it."""
        return self.device.table_text()

    def settle(self) -> None:
        """Finish the background work (resync, merge, writeback ...) of every device of the stack, lowest first."""
        for device in self.devices.values():
            device.settle()

    def file(self) -> VolumeFile:
        """Return the volume as an unbuffered binary file, for offsets and lengths of any size.

        Closing it flushes the volume and leaves it open.
        """
        return VolumeFile(self)

    def buffered(self, size: int = _PIECE) -> BufferedVolume:
        """Return the volume as a file that reads `size` bytes ahead and gathers as many to write.

        Small requests one after the other cost a fraction then. `flush` and `close` write what was gathered and flush the
        volume; until then nobody else sees it, and only then its errors show.
        """
        return BufferedVolume(VolumeFile(self), size)

    @property
    def paths(self) -> list[Path]:
        """The files and block devices that were opened for it."""
        return [each.path for each in self._owned if isinstance(each, FileStore)]

    def extents(self) -> Iterator[tuple[int, int]]:
        """Yield `(offset, length)` in bytes of all that may hold something else than zeros."""
        for sector, count in self.device.data_extents():
            yield sector * SECTOR, count * SECTOR

    def close(self) -> None:
        """Flush, take the stack down from the top, and close what was opened for it; goes on past failures.

        Raises:
            ExceptionGroup: What failed.
        """
        if self._closed:
            return
        self._closed = True
        steps = [device.close for device in [*reversed(self.devices.values()), *reversed(self._owned)]]
        if not self.device.suspended and not self.device.readonly:
            steps.insert(0, self.device.flush)
        failed: list[Exception] = []
        for step in steps:
            try:
                step()
            except (OSError, DmError, ExceptionGroup) as error:
                failed.append(error)
        if failed:
            message = "closing the volume"
            raise ExceptionGroup(message, failed)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class VolumeFile(io.RawIOBase):
    """A volume as a file: any offset, any length, `seek` and `tell`; a write of parts of blocks reads them first."""

    def __init__(self, volume: Volume) -> None:
        super().__init__()
        self._volume = volume
        self._at = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def writable(self) -> bool:
        """Whether the table is writable."""
        return not self._volume.device.readonly

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move; past the end is allowed, as in a file, and reads nothing there."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._volume.size}.get(whence)
        if start is None:
            raise SpecError("whence", whence, "must be 0, 1 or 2")
        if start + offset < 0:
            raise SpecError("offset", offset, "would be before the beginning")
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        """Return where it stands."""
        return self._at

    def _around(self, length: int) -> tuple[int, int]:
        unit = self._volume.block_size
        first = self._at // unit * unit
        return first, -(-(self._at + length) // unit) * unit - first

    def readinto(self, buffer: object, /) -> int:
        """Read as much as fits and is there; 0 at the end."""
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        length = min(len(view), max(self._volume.size - self._at, 0), _PIECE)
        if not length:
            return 0
        first, whole = self._around(length)
        if whole == length:
            self._volume.readinto(first, view[:length])
        else:
            skip = self._at - first
            view[:length] = self._volume.read(first, whole)[skip : skip + length]
        self._at += length
        return length

    def write(self, data: object, /) -> int:
        """Write up to 1 MiB; OSError ENOSPC at the end of the volume."""
        view = memoryview(data).cast("B")  # type: ignore[arg-type]
        room = max(self._volume.size - self._at, 0)
        length = min(len(view), room, _PIECE)
        if not length:
            if len(view):
                raise fault(errno.ENOSPC)
            return 0
        first, whole = self._around(length)
        if whole == length:
            self._volume.write(first, view[:length])
        else:
            around = bytearray(self._volume.read(first, whole))
            around[self._at - first : self._at - first + length] = view[:length]
            self._volume.write(first, around)
        self._at += length
        return length

    def flush(self) -> None:
        """Flush the volume."""
        if not self.closed and self.writable():
            self._volume.flush()


class BufferedVolume(io.BufferedRandom):
    """A `VolumeFile` that reads ahead and gathers writes; on a read-only volume writes fail when they are flushed."""

    def flush(self) -> None:
        """Write what was gathered, then flush the volume."""
        super().flush()
        if not self.closed:
            self.raw.flush()


def open_volume(
    table: Table | Stack | str,
    devices: Mapping[str, Below] | None = None,
    mode: Literal["r", "r+"] = "r+",
    *,
    top: str | None = None,
    clock: Clock | None = None,
    features: Features = NO_FEATURES,
    seed: int = 0,
    keys: Mapping[str, bytes] | None = None,
    started: Callable[[str, ModelDevice], None] | None = None,
) -> Volume:
    """Open what a table describes.

    Args:
        table: A table, a stack of them, or the text of either.
        devices: What stands for the devices the tables name: a path of a file or block device, a `BlockDevice`, or another
            volume. Names that are absolute paths stand for themselves. What was opened here is closed with the volume;
            devices and volumes that were given stay open.
        mode: "r+" to read and write; "r" to read: files are opened for reading only, the volume refuses writes with EPERM,
            and what a target writes by itself (a journal replayed, say) stays in memory.
        top: Which table of a stack; by default the last.
        clock: Virtual time; by default one of the volume's own.
        features: The kernel to behave as, where kernels differ; names as in `Target.features`.
        seed: For targets that act by chance.
        keys: Payloads of keys that tables name in a keyring (`:64:logon:name`), by `type:description` or by description.
        started: Called with the name and the model of each device once it is live, before those above it are made: to send
            it the messages that they need.

    Raises:
        SpecError, ParseError: A table that a kernel would refuse, or a device that nothing stands for.
        OSError: A file that cannot be opened, or a target's constructor refuses.
        FormatError: Metadata on a device that is not what the table says, or damaged.
        Unsupported: A target without a model. Whatever is raised, nothing stays open.
    """
    stack = (
        Stack.parse(table)
        if isinstance(table, str)
        else table
        if isinstance(table, Stack)
        else Stack({"": table})
    )
    if mode not in {"r", "r+"}:
        raise SpecError("mode", mode, 'must be "r" or "r+"')
    time = clock or Clock()
    opened: list[BlockDevice] = []
    made: dict[str, ModelDevice] = {}
    shared: dict[BlockDevice, list[Any]] = {}
    try:
        below = _Below(stack, devices or {}, made, opened, readonly=mode == "r")
        for name in stack.needed(top or stack.top):
            device = made[name] = ModelDevice(
                below, clock=time, features=features, word=name, seed=seed, keys=keys, shared=shared
            )
            device.load(stack.tables[name], readonly=mode == "r" and name == (top or stack.top))
            device.resume()
            if started is not None:
                started(name, device)
        return Volume(made, opened, time)
    except BaseException:
        for each in (*reversed(made.values()), *reversed(opened)):
            each.close()
        raise


class _Below:
    """Finds the disk for each device that a table names, and opens each once."""

    def __init__(
        self,
        stack: Stack,
        devices: Mapping[str, Below],
        made: Mapping[str, ModelDevice],
        opened: list[BlockDevice],
        *,
        readonly: bool,
    ) -> None:
        self._stack = stack
        self._devices = devices
        self._made = made
        self._opened = opened
        self._readonly = readonly
        self._known: dict[Ref, BlockDevice] = {}

    def __call__(self, ref: Ref) -> BlockDevice:
        found = self._known.get(ref)
        if found is None:
            found = self._known[ref] = self._find(ref)
        return found

    def _find(self, ref: Ref) -> BlockDevice:
        name = self._stack.below(ref)
        given = self._devices.get(ref.name)
        if given is None and name is not None:
            return self._made[name]
        if isinstance(given, Volume):
            return given.device
        if isinstance(given, BlockDevice):
            given.word = given.word or ref.name
            return given
        if given is None and not ref.is_path:
            known = ", ".join(self._devices) or "none"
            raise SpecError(
                "devices",
                ref.name,
                f"the table names this device, but nothing stands for it (given: {known})",
            )
        path = ref.name if given is None else given
        store: BlockDevice = FileStore(path, readonly=self._readonly)
        self._opened.append(store)
        if self._readonly:
            store = CowStore(store)
        store.word = ref.name
        return store
