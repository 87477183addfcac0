"""Dm: makes devices for a test and removes them all, in reverse order, at the end of its scope."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TypeVar

from dmcore.errors import DeviceBusy, DmError, LeakError, SpecError, TableRejected
from dmcore.table import Table
from dmcore.target import Target
from dmcore.targets import Error, Linear, Zero
from dmcore.targets._raw import Raw
from dmcore.units import SECTOR, parse_size, to_sectors
from pytest_dm import devices
from pytest_dm.below import a_disk, beside, given
from pytest_dm.devices.base import Disk, DmDevice, as_table
from pytest_dm.devices.error_range import sectors
from pytest_dm.devices.mount import MKFS_TIMEOUT, Mount, make_filesystem
from pytest_dm.families import Families
from pytest_dm.markers import Wants

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from dmcore.ref import Ref
    from pytest_dm.below import Lower, Size
    from pytest_dm.runtime import BareDevice, Runtime

__all__ = ["Dm"]

T = TypeVar("T", bound="_Resource")

_NAMES_TRIED = 64
"""Names that may be taken: processes in containers on one kernel can have the same pid, which names contain."""


class _Resource(Protocol):
    def describe(self) -> str: ...

    def close(self) -> None: ...


class Dm(Families):
    """A factory of devices with an end.

    The fixture `dm` is one that ends with the test, `dm_session` one that ends with the session, and `scope()` gives
    one that ends with a `with` block (for use under hypothesis' `@given`). Whatever was made in it is removed at the
    end, newest first, going on past failures; what failed comes as one ExceptionGroup, with a LeakError if something of
    ours is still there.

    Sizes are text like "64M" or bytes as a number; `start` and `length` of table lines are 512-byte sectors or text
    with a unit. Where `lower` is left out or a size, a fresh `loop` is below; a method that fails leaves nothing behind.
    """

    def __init__(self, runtime: Runtime, wants: Wants | None = None) -> None:
        self.runtime = runtime
        self.wants = wants or Wants()
        self.post_mortem: list[str] = []
        self.scopes: list[Dm] = []
        self._resources: list[_Resource] = []
        self._names: set[str] = set()
        self._loops: list[devices.Loop] = []
        self._mountpoints: set[Path] = set()

    def loop(
        self,
        size: Size | None = None,
        *,
        block_size: int | None = None,
        readonly: bool = False,
        direct_io: bool = True,
        label: str = "loop",
    ) -> devices.Loop:
        """Make a plain disk: a sparse file on a tmpfs behind a loop device.

        Args:
            size: Its size, a multiple of 512 bytes; by default the marker's, else 64M.
            block_size: Logical block size, a power of two in 512..4096 bytes; by default the marker's, else 512.
            readonly: Refuse writes (EPERM).
            direct_io: Let the driver read and write the file without the page cache, if it can.
            label: Part of the file's name.
        """
        length = self.wants.size if size is None else parse_size(size)
        if not length or length % SECTOR:
            raise SpecError("size", size, f"a disk has a positive multiple of {SECTOR} bytes")
        block = self.wants.block_size if block_size is None else block_size
        backing = self.runtime.new_file(length, label)
        try:
            disk = devices.Loop(
                self.runtime, backing, block_size=block, readonly=readonly, direct_io=direct_io
            )
        except BaseException:
            backing.unlink()
            raise
        self._loops.append(disk)
        return self._keep(disk)

    def linear(
        self,
        lower: Lower | None = None,
        *,
        start: Size = 0,
        length: Size | None = None,
        size: Size | None = None,
    ) -> devices.Linear:
        """Make a device that is a piece of `lower`: `length` sectors (by default to its end) from sector `start`."""
        first = sectors("start", start)

        def build(disk: Disk) -> devices.Linear:
            rest = disk.size // SECTOR - first
            count = rest if length is None else sectors("length", length)
            if rest < 1:
                raise SpecError("start", start, f"{disk.name} has {disk.size // SECTOR} sectors")
            if not 1 <= count <= rest:
                raise SpecError("length", length, f"{disk.name} has {rest} sectors from sector {first} on")
            table = Table.of(Linear(dev=disk.ref, offset=first), count)
            return devices.Linear(self, table, label="linear", lower=disk)

        return self._above(lower, size, build)

    def zero(self, size: Size | None = None) -> devices.Zero:
        """Make a device that reads zeros and swallows writes; it may be huge ("8P")."""
        table = Table.of(Zero(), self.length(size))
        return self._keep(devices.Zero(self, table, label="zero"))

    def error(self, size: Size | Disk | None = None) -> devices.ErrorDevice:
        """Make a device whose every read and write fails with EIO, of a size or as large as another device."""
        length = size.size // SECTOR if isinstance(size, Disk) else self.length(size)
        return self._keep(devices.ErrorDevice(self, Table.of(Error(), length), label="error"))

    def error_range(
        self, lower: Lower | None = None, *, start: Size, length: Size, size: Size | None = None
    ) -> devices.ErrorRange:
        """Make a device with a range of sectors that fail with EIO; more can be added and healed later."""
        first, count = sectors("start", start), sectors("length", length)
        return self._above(
            lower, size, lambda disk: devices.ErrorRange(self, disk, start=first, length=count)
        )

    def flakey(self, lower: Lower | None = None, *, size: Size | None = None) -> devices.Flakey:
        """Make a device that fails, drops or corrupts on command; healthy at first."""
        return self._above(lower, size, lambda disk: devices.Flakey(self, disk))

    def dust(
        self, lower: Lower | None = None, *, block_size: int | None = None, size: Size | None = None
    ) -> devices.Dust:
        """Make a device with a list of bad blocks of `block_size` bytes (a power of two, at least 512); none at first."""
        block = self.wants.block_size if block_size is None else block_size
        return self._above(lower, size, lambda disk: devices.Dust(self, disk, bad_block_size=block))

    def delay(
        self,
        lower: Lower | None = None,
        *,
        read_ms: int = 0,
        write_ms: int | None = None,
        flush_ms: int | None = None,
        size: Size | None = None,
    ) -> devices.Delay:
        """Make a device that answers late: `write_ms` defaults to `read_ms`, `flush_ms` to `write_ms`."""
        write = read_ms if write_ms is None else write_ms
        flush = write if flush_ms is None else flush_ms
        return self._above(
            lower,
            size,
            lambda disk: devices.Delay(self, disk, read_ms=read_ms, write_ms=write, flush_ms=flush),
        )

    def log_writes(
        self,
        lower: Lower | None = None,
        log: Lower | None = None,
        *,
        size: Size | None = None,
        log_size: Size | None = None,
    ) -> devices.LogWrites:
        """Make a device that logs every write to a second disk: `log`, or a fresh one of `log_size` (4 x the size)."""

        def build(disk: Disk) -> devices.LogWrites:
            logged = beside(
                self, "log", log, 4 * disk.size, size=log_size, size_field="log_size", label="log"
            )
            try:
                return devices.LogWrites(self, disk, logged)
            except BaseException:
                if logged is not log:
                    self._drop(logged)
                raise

        given("log", log, log_size, "log_size")
        return self._above(lower, size, build)

    def create(
        self,
        table: Table | Target | str,
        *,
        devices: Mapping[str, Disk | Ref | str | Path] | None = None,
        label: str = "dm",
        size: Size | None = None,
    ) -> DmDevice:
        """Make a device of any table.

        Args:
            table: A table, its text as `dmsetup` takes it, or one target for a device of `size`.
            devices: What the names in the table stand for: disks of ours, "major:minor", or nodes of loop and dm
                devices; a node of anything else is refused, it may be a real disk.
            label: Part of the device's name.
            size: Length of a single target's device; by default the marker's, else 64M.

        Raises:
            TableRejected: The kernel refused it; nothing is left behind.
        """
        if size is not None and not isinstance(table, Target):
            raise SpecError("size", size, "a table says its length itself")
        whole = as_table(table, self.length(size))
        resolved = {name: self._word(name, device) for name, device in (devices or {}).items()}
        for ref in whole.refs():
            if ref.name not in resolved:
                self._word(ref.name, ref)
        return self._keep(DmDevice(self, whole, label=label, devices=resolved))

    def _word(self, name: str, device: Disk | Ref | str | Path) -> str:
        return device.ref.name if isinstance(device, Disk) else self.runtime.device_word(name, device)

    def mkfs(self, device: Disk, fs: str = "ext4", *options: str, timeout: float = MKFS_TIMEOUT) -> None:
        """Make a file system with the distribution's mkfs.FS; it leaves the kernel nothing to do in the background."""
        self.runtime.require_mounts()
        make_filesystem(a_disk("device", device), fs, *options, timeout=timeout)

    def mount(self, device: Disk, *, fs: str = "ext4", options: str = "") -> Mount:
        """Mount a file system; the result has `mountpoint`, and unmounts at the end of a `with` block or of the scope."""
        self.runtime.require_mounts()
        a_disk("device", device)
        folder = self.runtime.new_folder("mnt")
        try:
            mounted = Mount(device, folder, fs, options)
        except BaseException:
            folder.rmdir()
            raise
        self._mountpoints.add(folder)
        return self._keep(mounted)

    @contextmanager
    def scope(self) -> Generator[Dm]:
        """Give a fresh factory whose devices go at the end of the block."""
        inner = Dm(self.runtime, self.wants)
        self.scopes.append(inner)
        try:
            with inner:
                yield inner
        finally:
            self.scopes.remove(inner)
            if inner.post_mortem:
                self.post_mortem = inner.post_mortem

    def make(self, table: Table, label: str, devices: Mapping[str, str] | None = None) -> BareDevice:
        """Make a bare device with a fresh name of ours; whoever asks removes it. For handles."""
        device = self._create(table, label, devices)
        self._names.add(device.name)
        return device

    def _create(self, table: Table, label: str, devices: Mapping[str, str] | None) -> BareDevice:
        taken = 0
        while True:
            name, uuid = self.runtime.owner.name(label)
            try:
                return self.runtime.create(name, uuid, table, devices)
            except TableRejected:
                for line in table.lines:
                    if not isinstance(line.target, Raw):  # a name nobody knows is a mistake, not a lack
                        self.runtime.require(line.target.needs())
                raise
            except DeviceBusy as busy:
                taken += 1
                if busy.command != "DM_DEV_CREATE" or taken == _NAMES_TRIED:
                    raise

    def resources(self) -> Iterator[_Resource]:
        """Yield what is there now, of inner scopes too, in the order it was made."""
        yield from self._resources
        for scope in self.scopes:
            yield from scope.resources()

    def described(self) -> list[str]:
        """Return what is there now, inner scopes apart, for a failure report."""
        return [_said(resource.describe) for resource in self._resources]

    def statuses(self) -> list[str]:
        """Return the status lines of the dm devices that are there now, for a failure report."""
        return [_said(resource.statuses) for resource in self._resources if isinstance(resource, DmDevice)]

    def keep(self) -> list[str]:
        """Forget everything, so that it stays; return what it is, one line or more each."""
        kept = [_said(resource.describe) for resource in self.resources()]
        self._resources.clear()
        self._names.clear()
        self._loops.clear()
        if kept:
            self.runtime.keep()
        return kept

    def close(self) -> None:
        """Remove everything, newest first.

        Raises:
            ExceptionGroup: What could not be removed, and a LeakError if something of ours is left.
        """
        failures: list[Exception] = []
        interrupt: BaseException | None = None
        while self._resources:
            resource = self._resources.pop()
            try:
                resource.close()
            except Exception as error:  # noqa: BLE001 - collected, and raised together below
                failures.append(error)
            except BaseException as error:  # noqa: BLE001 - Ctrl-C waits until the rest is removed
                interrupt = error
        if left := self._left():
            failures.append(LeakError(left))
        if interrupt is not None:
            raise interrupt
        if failures:
            message = "devices of the test could not be removed"
            raise ExceptionGroup(message, failures)

    def _left(self) -> list[str]:
        """Return what of ours is still there after all was removed."""
        left = self.runtime.left(self._names, self._mountpoints)
        left += [f"loop device {loop.name}" for loop in self._loops if loop.bound]
        self._names.clear()
        self._mountpoints.clear()
        self._loops.clear()
        return left

    def length(self, size: Size | None) -> int:
        """Return the sectors of a size, by default the marker's. For handles."""
        return self.wants.size // SECTOR if size is None else to_sectors(size)

    def hold(self, resource: T) -> T:
        """Take something into the factory's care that has an end of its own: closed with the rest, newest first."""
        return self._keep(resource)

    def _keep(self, resource: T) -> T:
        self._resources.append(resource)
        return resource

    def _above(self, lower: Lower | None, size: Size | None, build: Callable[[Disk], T]) -> T:
        """Build a device on `lower` or on a fresh loop, which goes again if that fails."""
        disk, length = given("lower", lower, size)
        below = self.loop(length) if disk is None else disk
        try:
            return self._keep(build(below))
        except BaseException:
            if disk is None:
                self._drop(below)
            raise

    def build(self, make: Callable[[Dm], T]) -> T:
        """Keep the device that `make` returns; if it fails, remove what it made before. For handles."""
        before = len(self._resources)
        try:
            made = make(self)
            return made if made in self._resources else self._keep(made)
        except BaseException:
            while len(self._resources) > before:
                self._resources.pop().close()
            raise

    def build_below(self, above: DmDevice, make: Callable[[Dm], T]) -> T:
        """Do the same with what a device that is there already will stand on: it is removed after that. For handles."""
        before = len(self._resources)
        made = self.build(make)
        new = self._resources[before:]
        del self._resources[before:]
        at = self._resources.index(above)
        self._resources[at:at] = new
        return made

    def _drop(self, resource: _Resource) -> None:
        self._resources.remove(resource)
        resource.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.post_mortem = [_said(resource.describe) for resource in self.resources()]
        self.close()


def _said(describe: Callable[[], str]) -> str:
    """Return the description, or why there is none: a report must not fail for it."""
    try:
        return describe()
    except (DmError, OSError) as error:
        return f"({error})"
