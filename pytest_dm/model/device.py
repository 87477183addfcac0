"""Loops and dm devices of the model backend: what `dmcore.kernel` has for a kernel's, as far as there is no kernel in it."""

from __future__ import annotations

import errno
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from dmcore.abi.devt import DevT
from dmcore.abi.dm import DeviceInfo, DmFlag, DmIoctl
from dmcore.errors import DeviceBusy, DeviceMissing, FormatError, IoctlError, SpecError, TableRejected
from dmcore.model.block import Suspended, fault
from dmcore.model.device import ModelDevice
from dmcore.model.stores import FileStore
from dmcore.ref import Ref
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping
    from pathlib import Path
    from typing import Self

    from dmcore.model.block import BlockDevice
    from dmcore.model.clock import Clock
    from dmcore.table import Table
    from dmcore.target import Features, Message, Status

__all__ = ["LOOP_MAJOR", "Devices", "DmModel", "LoopModel"]

R = TypeVar("R")
LOOP_MAJOR = 7
_DM_MAJOR = 254


class Devices:
    """All devices of the machine that is played, by the words that tables have for them ("7:0").

    Attributes:
        clock: Their time.
        features: The kernel they are like.
        leaving: Loop devices to be freed when nothing stands on them any more.
        shared: What their lines keep for each other, such as an origin's snapshots.
        lock: Held by whoever does something with one of them.
        changed: Told of every resume, table and message: what a waiting request may wait for.
    """

    def __init__(self, clock: Clock, features: Features) -> None:
        self.clock = clock
        self.features = features
        self.shared: dict[BlockDevice, list[Any]] = {}
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.leaving: list[LoopModel] = []
        self._known: dict[str, BlockDevice] = {}
        self._dms: dict[str, DmModel] = {}

    def take(self, major: int) -> str:
        """Return the lowest free number of a driver."""
        minor = 0
        while f"{major}:{minor}" in self._known:
            minor += 1
        return f"{major}:{minor}"

    def add(self, word: str, device: BlockDevice, dm: DmModel | None = None) -> None:
        """Let tables name a device."""
        device.word = word
        self._known[word] = device
        if dm is not None:
            self._dms[word] = dm

    def drop(self, word: str) -> None:
        """Forget a device."""
        del self._known[word]
        self._dms.pop(word, None)

    def __contains__(self, word: str) -> bool:
        return word in self._known

    def __getitem__(self, word: str) -> BlockDevice:
        """Return a device.

        Raises:
            DeviceMissing: It is gone.
        """
        try:
            return self._known[word]
        except KeyError as error:
            raise DeviceMissing(errno.ENXIO, "open", word) from error

    @property
    def names(self) -> set[str]:
        """Names of the dm devices."""
        return {dm.name for dm in self._dms.values()}

    def settle(self) -> None:
        """Do the background work of every dm device that is not suspended, lowest first."""
        for dm in list(self._dms.values()):
            if not dm.model.suspended:
                dm.model.settle()

    def below(self, word: str) -> set[str]:
        """Return what a dm device's table names."""
        dm = self._dms.get(word)
        return set() if dm is None else dm.lower

    def wait_for(self, word: str) -> None:
        """Wait for a suspended device, as every request does, unless this thread is the one that has to resume it."""
        dm = self._dms.get(word)
        while dm is not None and dm.model.suspended and dm.suspended_by != threading.get_ident():
            self.changed.wait()

    def submit(self, word: str, request: Callable[[], None]) -> None:
        """Do a request; one that the kernel would let wait, for a path or for space, waits for another thread's help.

        Raises:
            Suspended: It would wait, and this is the main thread: nobody else would help.
            OSError: EIO, its device went while it waited; or what became of it.
        """
        device = self._known.get(word)
        while True:
            self.wait_for(word)
            try:
                return request()
            except Suspended:
                if threading.current_thread() is threading.main_thread():
                    raise
                self.changed.wait()
            if self._known.get(word) is not device:
                raise fault(errno.EIO)

    def holder(self, word: str) -> str | None:
        """Return the name of a dm device that stands on a device."""
        return next((dm.name for dm in self._dms.values() if word in dm.lower), None)

    def free_loops(self) -> None:
        """Free the loop devices whose detaching waits for their last holder."""
        self.leaving[:] = [loop for loop in self.leaving if not loop.free()]

    def refuse_loop(self, words: set[str], word: str) -> None:
        """Refuse to let a device stand on itself.

        Raises:
            SpecError: It would.
        """
        todo, seen = set(words), set[str]()
        while todo:
            below = todo.pop()
            if below == word:
                raise SpecError("table", word, "the device would stand on itself")
            if below not in seen:
                seen.add(below)
                todo |= self.below(below)


class LoopModel:
    """A file as a disk."""

    direct_io = False

    def __init__(self, devices: Devices, backing: Path, *, block_size: int, readonly: bool) -> None:
        self._devices = devices
        self._store = FileStore(backing, block_size=block_size, readonly=readonly)
        self.ref = Ref(devices.take(LOOP_MAJOR))
        devices.add(self.ref.name, self._store)

    @property
    def size(self) -> int:
        """Bytes."""
        return self._store.sectors * SECTOR

    @property
    def block_size(self) -> int:
        """Logical block size in bytes."""
        return self._store.block_size

    def detach(self) -> None:
        """Close the file, or have it closed with the last dm device that stands on it; a second call does nothing."""
        with self._devices.lock:
            if self.ref.name in self._devices and self._devices[self.ref.name] is self._store:
                if self not in self._devices.leaving:
                    self._devices.leaving.append(self)
                self._devices.free_loops()

    def free(self) -> bool:
        """Close the file if nothing stands on it."""
        if self._devices.holder(self.ref.name):
            return False
        self._devices.drop(self.ref.name)
        self._store.close()
        return True


class DmModel:
    """A dm device."""

    def __init__(self, devices: Devices, name: str, uuid: str) -> None:
        self.name = name
        self.uuid = uuid
        self.ref = Ref(devices.take(_DM_MAJOR))
        self.model = ModelDevice(
            self._open, clock=devices.clock, features=devices.features, shared=devices.shared
        )
        self._devices = devices
        self._names: Mapping[str, str] = {}
        self._removed = False
        self.suspended_by = 0
        devices.add(self.ref.name, self.model, self)

    @classmethod
    def create(
        cls, devices: Devices, name: str, uuid: str, table: Table, names: Mapping[str, str] | None
    ) -> Self:
        """Create, load and resume; nothing is left where that fails."""
        made = cls(devices, name, uuid)
        try:
            made.reload(table, devices=names)
        except BaseException:
            devices.drop(made.ref.name)
            made.model.close()
            raise
        return made

    def _open(self, ref: Ref) -> BlockDevice:
        return self._devices[self._names.get(ref.name, ref.name)]

    @property
    def lower(self) -> set[str]:
        """What the live table names."""
        table = self.model.table
        return set() if table is None else set(self._words(table))

    def _words(self, table: Table) -> Iterator[str]:
        for ref in table.refs():
            yield self._names.get(ref.name, ref.name)

    def info(self) -> DeviceInfo:
        """Return its state, as a kernel's reply has it."""
        model, above = self.model, self._devices.holder(self.ref.name)
        flags = DmFlag.SUSPEND if model.suspended else 0
        flags |= DmFlag.READONLY if model.readonly else 0
        flags |= DmFlag.ACTIVE_PRESENT if model.table is not None else 0
        number = DevT.parse(self.ref.name).huge
        return DeviceInfo(
            DmIoctl(flags, self.name, self.uuid, number, model.event_nr, len(model.targets), int(bool(above)))
        )

    def wait(self, event_nr: int | None = None, *, timeout: float = 10.0) -> int:
        """Return the event number if it differs from `event_nr`, after the background work that may raise one.

        Raises:
            IoctlError: ETIMEDOUT, at once: nothing else happens by itself.
        """
        last = self.model.event_nr if event_nr is None else event_nr
        with self._devices.lock:
            if self.model.event_nr == last:
                self.model.settle()
        if self.model.event_nr == last:
            detail = f"the event number is still {last} after {timeout} s"
            raise IoctlError(errno.ETIMEDOUT, "DM_DEV_WAIT", self.name, detail)
        return self.model.event_nr

    def table(self) -> Table:
        """Return the live table."""
        return self.model.reported()

    def table_text(self) -> str:
        """Return the live table as text."""
        return self.model.table_text()

    def status(self) -> list[Status]:
        """Return the typed status of each line."""
        return self.model.status()

    def status_text(self) -> str:
        """Return the status lines as text."""
        return self.model.status_text()

    def suspend(self, *, noflush: bool = False, lockfs: bool = True) -> None:
        """Hold I/O back. Of this thread it raises `Suspended`, since it would wait for ever; of others it waits."""
        del noflush, lockfs
        with self._devices.lock:
            self.suspended_by = threading.get_ident()
            self.model.suspend()

    def resume(self) -> None:
        """Let I/O go on."""
        with self._devices.lock:
            self.model.resume()
            self._devices.changed.notify_all()

    @contextmanager
    def suspended(self, *, noflush: bool = False, lockfs: bool = True) -> Generator[Self]:
        """Keep it suspended during the block."""
        self.suspend(noflush=noflush, lockfs=lockfs)
        try:
            yield self
        finally:
            self.resume()

    def reload(
        self,
        table: Table,
        *,
        noflush: bool = False,
        lockfs: bool = True,
        devices: Mapping[str, str] | None = None,
    ) -> None:
        """Replace the live table; a refused one changes nothing.

        Raises:
            TableRejected: A kernel would refuse it.
            SpecError: It names a device that is not there, or this one.
        """
        del noflush, lockfs
        with self._devices.lock:
            before, self._names = self._names, {**self._names, **(devices or {})}
            try:
                table.encode(lambda ref: self._names.get(ref.name, ref.name))
                self._devices.refuse_loop(set(self._words(table)), self.ref.name)
                self._load(table)
            except BaseException:
                self._names = before
                raise
            finally:
                self._devices.free_loops()
                self._devices.changed.notify_all()

    def _load(self, table: Table) -> None:
        was_suspended = self.model.suspended
        try:
            self.model.load(table)
            self.model.resume()
        except (OSError, SpecError, FormatError) as error:
            self.model.clear()
            if self.model.table is not None and not was_suspended:
                self.model.resume()
            number = error.errno if isinstance(error, OSError) and error.errno else errno.EINVAL
            raise TableRejected(number, "DM_TABLE_LOAD", self.name, str(table), [str(error)]) from error

    def message(self, text: str, sector: int = 0) -> str:
        """Send a message; return the reply."""
        with self._devices.lock:
            reply = self.model.message(text, sector)
            self._devices.changed.notify_all()
            return reply

    def send(self, message: Message[R], sector: int = 0) -> R:
        """Send a typed message; return its typed reply."""
        return message.parse_reply(self.message(message.encode(), sector))

    @property
    def size(self) -> int:
        """Bytes."""
        return self.model.sectors * SECTOR

    @property
    def removed(self) -> bool:
        """Whether `remove` succeeded."""
        return self._removed

    def remove(self, *, timeout: float = 5.0, deferred: bool = True) -> None:
        """Remove it; a second call does nothing.

        Raises:
            DeviceBusy: Another dm device stands on it.
        """
        del timeout, deferred
        if self._removed:
            return
        if holder := self._devices.holder(self.ref.name):
            raise DeviceBusy(errno.EBUSY, "DM_DEV_REMOVE", self.name, f"{holder} stands on it")
        self._removed = True
        with self._devices.lock:
            self._devices.drop(self.ref.name)
            self.model.close()
            self._devices.free_loops()
            self._devices.changed.notify_all()
