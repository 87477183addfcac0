"""What every device of a test offers: byte I/O, its place in tables, mounts; and what every dm device adds to that."""

from __future__ import annotations

import gc
import sys
import traceback
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dmcore.errors import DeviceBusy, DmError
from dmcore.table import Line, Table
from dmcore.target import Target
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping
    from pathlib import Path

    from dmcore.ref import Ref
    from dmcore.target import Status
    from pytest_dm.devices.mount import Mount
    from pytest_dm.devices.power import PowerCut
    from pytest_dm.factory import Dm
    from pytest_dm.runtime import BareDevice, BareLoop, OpenDisk, Runtime

__all__ = ["Disk", "DmDevice", "as_table", "let_go"]

_FIRST_TRY = 0.2
"""Seconds to try a removal before looking at what the test itself still holds."""


class Disk(ABC):
    """A block device of a test. Byte offsets and lengths are multiples of `block_size`; I/O is direct.

    Every operation opens the node for itself and closes it: nothing of ours keeps the device busy or its page cache
    alive. For many small operations, `with disk.open() as file:` opens it once.

    Attributes:
        name: The kernel's or our name for it.
        runtime: What it comes from.
    """

    name: str

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.mounts: list[Mount] = []

    @property
    @abstractmethod
    def bare(self) -> BareLoop | BareDevice:
        """The device without verbs."""

    @property
    def path(self) -> Path:
        """The block device node.

        Raises:
            Unsupported: The model backend has none.
        """
        return self.runtime.node(self)

    @property
    @abstractmethod
    def ref(self) -> Ref:
        """The device as a table names it: "major:minor"."""

    @abstractmethod
    def close(self) -> None:
        """Remove the device. The factory calls it; a second call does nothing."""

    @abstractmethod
    def describe(self) -> str:
        """Return a line or more for a failure report: what this device is now."""

    def open(self, *, direct: bool = True, readonly: bool = False, synchronous: bool = False) -> OpenDisk:
        """Open it; the result speaks the same read, write, flush, discard and write_zeroes.

        Args:
            direct: Go past the page cache; offsets and lengths are multiples of `block_size` then.
            readonly: For reading only.
            synchronous: A write returns when it is durable (with direct I/O: a FUA write and a flush).
        """
        return self.runtime.open(self, direct=direct, readonly=readonly, synchronous=synchronous)

    @property
    def size(self) -> int:
        """Bytes."""
        with self.open(readonly=True) as file:
            return file.size

    @property
    def block_size(self) -> int:
        """Logical block size in bytes: the unit of offsets and lengths."""
        with self.open(readonly=True) as file:
            return file.block_size

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`.

        Raises:
            SpecError: Not whole blocks, or past the end.
            OSError: What the device answered, EIO mostly.
        """
        with self.open(readonly=True) as file:
            return file.read(offset, length)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write `data` at `offset`; in pieces of 1 MiB, an error leaves the pieces before it written."""
        with self.open() as file:
            file.write(offset, data)

    def flush(self) -> None:
        """Make completed writes durable (fsync)."""
        with self.open() as file:
            file.flush()

    def discard(self, offset: int, length: int) -> None:
        """Discard a range; OSError EOPNOTSUPP where the device cannot."""
        with self.open() as file:
            file.discard(offset, length)

    def write_zeroes(self, offset: int, length: int) -> None:
        """Zero a range."""
        with self.open() as file:
            file.write_zeroes(offset, length)

    def forget_cached(self) -> None:
        """Drop the node's clean page cache, so that the next buffered read of it asks the device.

        Pages of files on a mounted file system stay: `Mount.drop_caches`.
        """
        with self.open(direct=False, readonly=True) as file:
            file.forget_cached()

    def _mount(self) -> Mount:
        if not self.mounts:
            message = f"{self.name} has no file system: use @pytest.mark.dm(filesystem=...) or dm.mount()"
            raise DmError(message)
        return self.mounts[-1]

    @property
    def mountpoint(self) -> Path:
        """Where its file system is mounted."""
        return self._mount().mountpoint

    def unmount(self) -> None:
        """Unmount its file system, waiting a bounded time for its users."""
        self._mount().unmount()

    def remount(self) -> None:
        """Unmount its file system if it is mounted, and mount it again: everything cached is gone."""
        self._mount().remount()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


class DmDevice(Disk):
    """A dm device of a test.

    Attributes:
        device: The `dmcore` device, for everything that has no shorter name here (of a model, the part that models have).
        lower: The device of ours below it, None if there is none or several.
    """

    def __init__(
        self,
        maker: Dm,
        table: Table,
        *,
        label: str,
        lower: Disk | None = None,
        devices: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(maker.runtime)
        self.device = maker.make(table, label, devices)
        self.name = self.device.name
        self.lower = lower
        self._devices = devices
        self._loaded = table
        self._power_is_on = True
        self._closed = False

    @property
    def ref(self) -> Ref:
        """The device as a table names it: "major:minor"."""
        return self.device.ref

    @property
    def bare(self) -> BareDevice:
        """The device without verbs."""
        return self.device

    @property
    def sectors(self) -> int:
        """Length of the loaded table in 512-byte sectors."""
        return self._loaded.length

    @property
    def size(self) -> int:
        """Bytes."""
        return self._loaded.length * SECTOR

    def table(self) -> Table:
        """Return the live table, as the kernel prints it."""
        return self.device.table()

    def status(self) -> list[Status]:
        """Return the typed status of every line."""
        return self.device.status()

    def describe(self) -> str:
        """Return the live table as `dmsetup table` would print it."""
        return "\n".join(f"{self.name}: {line}" for line in self.device.table_text().splitlines())

    @contextmanager
    def suspended(self, *, noflush: bool = False, lockfs: bool = True) -> Generator[None]:
        """Hold all I/O back inside the block; it goes on at the end.

        Do not do I/O to the device inside the block from the thread that is to leave it: it would wait for itself.

        Args:
            noflush: Let targets give requests back instead of waiting for them.
            lockfs: Freeze a mounted file system first, so that the disk holds a clean state.
        """
        with self.device.suspended(noflush=noflush, lockfs=lockfs):
            yield

    def swap(self, new: Table | Target | str, *, noflush: bool = False, lockfs: bool = True) -> None:
        """Replace the live table under whatever runs above: load, suspend, resume.

        Args:
            new: A table, its text, or one target for the device's whole present length.
            noflush: As for `suspended`.
            lockfs: As for `suspended`; False is what a fault looks like, which nobody announces.

        Raises:
            SpecError: It names a device that is neither a loop nor a dm device: it may be somebody's disk.
            TableRejected: The kernel refused it; the old table is live.
        """
        table = as_table(new, self.sectors)
        for ref in table.refs():
            if ref.name not in (self._devices or {}):
                self.runtime.device_word(ref.name, ref)
        self._replace(table, noflush=noflush, lockfs=lockfs)

    def _replace(self, table: Table, *, noflush: bool = False, lockfs: bool) -> None:
        """Do what `swap` does with a table of ours."""
        if not self._power_is_on:
            message = f"the power of {self.name} is cut: restore it first"
            raise DmError(message)
        self.device.reload(table, noflush=noflush, lockfs=lockfs, devices=self._devices)
        self._loaded = table

    def _fault(self, table: Table) -> None:
        """Swap as a fault does: no warning to the file system above, requests in flight are served first."""
        self._replace(table, lockfs=False)

    def cut_off(self, table: Table) -> None:
        """Load the table of a device without power."""
        self.device.reload(table, lockfs=False, devices=self._devices)
        self._power_is_on = False

    def power_cut(self) -> PowerCut:
        """Cut the power: from now on nothing reaches the disk; see `PowerCut` for the way back.

        Nothing above is told: no file system is frozen, no cache is written back. Requests that the device had already
        accepted are served; every later write, flush and discard is dropped with success (so that what runs above can
        be stopped without noise), reads still work. This is the kindest disk there is: all that reached it survived,
        its own volatile cache included.

        Raises:
            SpecError: The table has a target for which this is not defined; put `dm.linear(device)` above it.
        """
        from pytest_dm.devices.power import PowerCut  # noqa: PLC0415 - they know each other

        return PowerCut(self)

    def places(self) -> Iterator[Line]:
        """Yield lines of linear, zero and error targets that say where this device's data lies."""
        from pytest_dm.devices.power import place  # noqa: PLC0415 - they know each other

        yield from map(place, self._loaded.lines)

    def statuses(self) -> str:
        """Return the live status as `dmsetup status` would print it."""
        return "\n".join(f"{self.name}: {line}" for line in self.device.status_text().splitlines())

    def bring_back(self) -> None:
        """Load the table that was live before a power cut."""
        self.device.reload(self._loaded, lockfs=False, devices=self._devices)
        self._power_is_on = True

    def close(self) -> None:
        """Remove the device, resuming it if a test left it suspended; waits a bounded time for its users.

        Raises:
            IoctlError: It is still in use; it is marked to go at the last close.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self.device.remove(timeout=_FIRST_TRY, deferred=False)
        except DeviceBusy:
            let_go()
            self.device.remove()


def let_go() -> None:
    """Drop what the failed test's exception keeps alive: files open in its frames hold devices and mounts busy."""
    failed: BaseException | None = getattr(sys, "last_value", None)
    while failed is not None:
        traceback.clear_frames(failed.__traceback__)
        for frame, _ in traceback.walk_tb(failed.__traceback__):
            _ = frame.f_locals  # before 3.13 this is a copy, made for the report: brings it up to date
        failed = failed.__cause__ or failed.__context__
    gc.collect()


def as_table(new: Table | Target | str, sectors: int) -> Table:
    """Return `new` as a table; a single target gets a line of `sectors`."""
    if isinstance(new, Table):
        return new
    if isinstance(new, Target):
        return Table.of(new, sectors)
    return Table.parse(new)
