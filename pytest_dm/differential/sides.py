"""The two sides of a pair: the same stack on a kernel and as models. What fails comes as OSError from both."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from dmcore.errors import DmError
from dmcore.kernel.block import BlockFile
from dmcore.kernel.device import Device
from dmcore.kernel.loop import LoopDevice
from dmcore.model.block import FUA, IDLE, SYNC, discard_requests
from dmcore.model.device import ModelDevice
from dmcore.model.stores import MemoryStore
from dmcore.ref import Ref
from dmcore.stack import Stack
from dmcore.table import Line, Table
from dmcore.targets import Error, Linear
from dmcore.units import SECTOR
from dmcore.volume import open_volume
from pytest_dm.differential.rule import rule_for, ruled

if TYPE_CHECKING:
    from collections.abc import Callable

    from dmcore.target import Features
    from dmcore.volume import Volume
    from pytest_dm.runtime import Runtime

__all__ = ["KernelSide", "Leg", "Legs", "ModelSide", "Side", "leg_table"]

_SETTLE_SECONDS = 20.0
_POLL_SECONDS = 0.002


def leg_table(ref: Ref, sectors: int, failing: set[int]) -> Table:
    """Return the table of a disk some of whose sectors fail with EIO."""
    lines: list[Line] = []
    for start, length, fails in _runs(sectors, failing):
        lines.append(Line(start, length, Error() if fails else Linear(dev=ref, offset=start)))
    return Table(lines)


def _runs(sectors: int, failing: set[int]) -> list[tuple[int, int, bool]]:
    edges = {0, sectors}
    for sector in failing:
        edges.update({edge for edge in (sector, sector + 1) if (edge in failing) != (edge - 1 in failing)})
    marks = sorted(edges)
    return [(start, end - start, start in failing) for start, end in pairwise(marks)]


class Leg:
    """A disk below stacks on the kernel: a file, a loop device, and a dm device above it whose sectors can fail.

    It is used for one stack after the other, which is much faster than a new one each time.
    """

    def __init__(self, runtime: Runtime, path: Path, size: int) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        os.ftruncate(self._fd, size)
        self.size = size
        self._path = path
        self._loop = LoopDevice.attach(path, block_size=SECTOR, direct_io=False)
        self._table = leg_table(self._loop.ref, size // SECTOR, set())
        name, uuid = runtime.owner.name("leg")
        self.device = Device.create(runtime.control, name, self._table, uuid=uuid)

    @property
    def word(self) -> str:
        """What tables call it: "major:minor"."""
        return self.device.ref.name

    def load(self, sectors: int, failing: set[int]) -> None:
        """Make it so large, and let these sectors fail."""
        table = leg_table(self._loop.ref, sectors, failing)
        if table != self._table:
            self.device.reload(table, noflush=True, lockfs=False)
            self._table = table

    def fill(self, data: bytes | bytearray) -> None:
        """Give it its content: the driver works on the file's page cache, so that this is what it reads."""
        os.pwrite(self._fd, data, 0)

    def content(self, sectors: int) -> bytes:
        """Return what it holds."""
        return os.pread(self._fd, sectors * SECTOR, 0)

    def close(self) -> None:
        """Remove it."""
        with ExitStack() as stack:
            stack.callback(self._path.unlink, missing_ok=True)
            stack.callback(os.close, self._fd)
            stack.callback(self._loop.detach)
            stack.callback(self.device.remove)


class Legs:
    """The disks below that were made so far, by their order in a setup."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._legs: list[Leg] = []

    def take(self, sizes: list[int]) -> list[Leg]:
        """Return a disk for each size in sectors, healthy."""
        for index, sectors in enumerate(sizes):
            if index < len(self._legs) and self._legs[index].size < sectors * SECTOR:
                for leg in self._legs[index:]:
                    leg.close()
                del self._legs[index:]
            if index == len(self._legs):
                size = max(1 << 22, 1 << (sectors * SECTOR - 1).bit_length())
                path = self._runtime.new_file(size, "pair")
                self._legs.append(Leg(self._runtime, path, size))
            self._legs[index].load(sectors, set())
        return self._legs[: len(sizes)]

    def describe(self) -> str:
        """Return what it is, for a failure report."""
        return f"{len(self._legs)} disks of dm_pair: {' '.join(leg.word for leg in self._legs)}"

    def close(self) -> None:
        """Remove them."""
        with ExitStack() as stack:
            for leg in self._legs:
                stack.callback(leg.close)
            self._legs = []


class Side(Protocol):
    """What a script does to either side. Sectors and counts fit the device."""

    def read(self, on: str, sector: int, count: int) -> bytes:
        """Return what is read."""
        ...

    def write(self, on: str, sector: int, data: bytes, *, fua: bool) -> None:
        """Write; `fua`: durably."""
        ...

    def flush(self, on: str) -> None:
        """Flush."""
        ...

    def discard(self, on: str, sector: int, count: int) -> None:
        """Discard."""
        ...

    def zero(self, on: str, sector: int, count: int) -> None:
        """Zero."""
        ...

    def message(self, on: str, text: str, sector: int) -> str:
        """Send a message; return the reply."""
        ...

    def suspend(self, on: str, *, noflush: bool) -> None:
        """Suspend."""
        ...

    def resume(self, on: str) -> None:
        """Resume."""
        ...

    def reload(self, on: str, table: Table) -> None:
        """Load and resume; a refused table leaves the one before running."""
        ...

    def fail(self, disk: str, failing: set[int]) -> None:
        """Let exactly these sectors of a disk fail."""
        ...

    def settle(self) -> None:
        """Finish the work in the background."""
        ...

    def shape(self, on: str) -> tuple[int, int]:
        """Return sectors and logical block size."""
        ...

    def table_text(self, on: str) -> str:
        """Return the table as text."""
        ...

    def status_text(self, on: str) -> str:
        """Return the status as text."""
        ...

    def content(self, disk: str) -> bytes:
        """Return all bytes of a disk."""
        ...

    def close(self) -> None:
        """Remove the stack from the top."""
        ...


class KernelSide:
    """A stack on the kernel.

    Raises:
        IoctlError: A table was refused; nothing is left, `refused_at` of the `words` that there are so far.
    """

    def __init__(
        self, runtime: Runtime, legs: dict[str, Leg], sizes: dict[str, int], words: dict[str, str]
    ) -> None:
        self._runtime = runtime
        self._legs = legs
        self._sizes = sizes
        self._words = words
        self.devices: dict[str, Device] = {}
        self._readonly: set[str] = set()
        self._files: dict[tuple[str, bool], BlockFile] = {}

    def add(self, name: str, table: Table) -> None:
        """Make the next device of the stack."""
        label, uuid = self._runtime.owner.name("pair")
        device = Device.create(self._runtime.control, label, table, uuid=uuid, devices=self._words)
        self.devices[name] = device
        if table.readonly:
            self._readonly.add(name)
        self._words[name] = device.ref.name

    def _file(self, on: str, *, synchronous: bool = False) -> BlockFile:
        key = (on, synchronous)
        if key not in self._files:
            path, readonly = self.devices[on].path, on in self._readonly
            self._files[key] = BlockFile(path, readonly=readonly, synchronous=synchronous)
        return self._files[key]

    def _close_files(self) -> None:
        while self._files:
            self._files.popitem()[1].close()

    def read(self, on: str, sector: int, count: int) -> bytes:
        """Return what is read."""
        return self._file(on).read(sector * SECTOR, count * SECTOR)

    def write(self, on: str, sector: int, data: bytes, *, fua: bool) -> None:
        """Write; `fua`: durably."""
        self._file(on, synchronous=fua).write(sector * SECTOR, data)

    def flush(self, on: str) -> None:
        """Flush."""
        self._file(on).flush()

    def discard(self, on: str, sector: int, count: int) -> None:
        """Discard."""
        self._file(on).discard(sector * SECTOR, count * SECTOR)

    def granularity(self, on: str) -> int:
        """Return the bytes that discards are aligned to."""
        queue = Path(f"/sys/dev/block/{self._words[on]}/queue/discard_granularity")
        return int(queue.read_text(encoding="ascii"))

    def zero(self, on: str, sector: int, count: int) -> None:
        """Zero."""
        self._file(on).write_zeroes(sector * SECTOR, count * SECTOR)

    def message(self, on: str, text: str, sector: int) -> str:
        """Send a message; return the reply."""
        return self.devices[on].message(text, sector)

    def suspend(self, on: str, *, noflush: bool) -> None:
        """Suspend."""
        self.devices[on].suspend(noflush=noflush)

    def resume(self, on: str) -> None:
        """Resume."""
        self.devices[on].resume()

    def reload(self, on: str, table: Table) -> None:
        """Load and resume; a refused table leaves the one before running."""
        self._close_files()
        self.devices[on].reload(table, devices=self._words)

    def fail(self, disk: str, failing: set[int]) -> None:
        """Let exactly these sectors of a disk fail."""
        self._legs[disk].load(self._sizes[disk], failing)

    def settle(self) -> None:
        """Wait, with a bound, until every device says that it is done."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        for name, device in self.devices.items():
            while not _settled(text := device.status_text()):
                if time.monotonic() > deadline:
                    message = f"{name} is still busy after {_SETTLE_SECONDS:g} s: {text}"
                    raise TimeoutError(message)
                time.sleep(_POLL_SECONDS)

    def shape(self, on: str) -> tuple[int, int]:
        """Return sectors and logical block size."""
        file = self._file(on)
        return file.size // SECTOR, file.block_size

    def table_text(self, on: str) -> str:
        """Return the table as text."""
        return self.devices[on].table_text()

    def status_text(self, on: str) -> str:
        """Return the status as text."""
        return self.devices[on].status_text()

    def content(self, disk: str) -> bytes:
        """Return all bytes of a disk."""
        return self._legs[disk].content(self._sizes[disk])

    def close(self) -> None:
        """Remove the devices from the top, going on past failures."""
        with ExitStack() as stack:
            for device in self.devices.values():
                stack.callback(device.remove)
            stack.callback(self._close_files)


def _settled(text: str) -> bool:
    for line in text.splitlines():
        words = line.split(maxsplit=3)
        if words[2] in ruled() and not rule_for(words[2]).settled(words[3] if len(words) > 3 else ""):
            return False
    return True


class ModelSide:
    """The same stack as models, whose devices have the words that the kernel's have.

    Raises:
        OSError, SpecError, FormatError: A table was refused; nothing is left.
    """

    def __init__(
        self,
        stack: Stack,
        content: dict[str, bytearray],
        words: dict[str, str],
        features: Features,
        *,
        opener: Callable[..., Volume] = open_volume,
        granularity: Callable[[str], int] = lambda _: SECTOR,
    ) -> None:
        self._words = words
        self._stores: dict[str, MemoryStore] = {}
        self._legs: dict[str, ModelDevice] = {}
        for name, data in content.items():
            store = self._stores[name] = MemoryStore(len(data), word="loop", granularity=granularity(name))
            store.write(0, memoryview(data))
            self._legs[name] = ModelDevice(_always(store), features=features, word=words[name])
            self._load(name, set())
        tables = {words[name]: self._renamed(stack.tables[name]) for name in stack.order()}
        devices = {words[name]: leg for name, leg in self._legs.items()}
        self.volume = opener(Stack(tables), devices, features=features)

    def _renamed(self, table: Table) -> Table:
        return Table.from_lines(table.encode(lambda ref: self._words.get(ref.name, ref.name)))

    def _load(self, disk: str, failing: set[int]) -> None:
        leg = self._legs[disk]
        leg.load(leg_table(Ref("loop"), self._stores[disk].sectors, failing))
        leg.resume()

    def _device(self, on: str) -> ModelDevice:
        return self.volume.devices[self._words[on]]

    def read(self, on: str, sector: int, count: int) -> bytes:
        """Return what is read."""
        return bytes(self._device(on).read(sector, count))

    def write(self, on: str, sector: int, data: bytes, *, fua: bool) -> None:
        """Write; `fua`: durably."""
        device = self._device(on)
        device.write(sector, memoryview(data), SYNC | IDLE | (FUA if fua else 0))
        if fua:
            device.flush()

    def flush(self, on: str) -> None:
        """Flush."""
        self._device(on).flush()

    def discard(self, on: str, sector: int, count: int) -> None:
        """Discard as BLKDISCARD does."""
        self.volume.clock.together(discard_requests(self._device(on), sector, count))

    def zero(self, on: str, sector: int, count: int) -> None:
        """Zero."""
        self._device(on).write_zeroes(sector, count)

    def message(self, on: str, text: str, sector: int) -> str:
        """Send a message; return the reply."""
        return self._device(on).message(text, sector)

    def suspend(self, on: str, *, noflush: bool) -> None:
        """Suspend."""
        del noflush
        self._device(on).suspend()

    def resume(self, on: str) -> None:
        """Resume."""
        self._device(on).resume()

    def reload(self, on: str, table: Table) -> None:
        """Load and resume; a refused table leaves the one before running."""
        device = self._device(on)
        device.load(self._renamed(table))
        try:
            device.resume()
        except (OSError, DmError):
            device.resume()
            raise

    def fail(self, disk: str, failing: set[int]) -> None:
        """Let exactly these sectors of a disk fail."""
        self._load(disk, failing)

    def settle(self) -> None:
        """Finish the work in the background."""
        self.volume.settle()

    def shape(self, on: str) -> tuple[int, int]:
        """Return sectors and logical block size."""
        device = self._device(on)
        return device.sectors, device.block_size

    def table_text(self, on: str) -> str:
        """Return the table as text."""
        return self._device(on).table_text()

    def status_text(self, on: str) -> str:
        """Return the status as text."""
        return self._device(on).status_text()

    def content(self, disk: str) -> bytes:
        """Return all bytes of a disk."""
        store = self._stores[disk]
        return bytes(store.read(0, store.sectors))

    def close(self) -> None:
        """Take the devices down from the top as the kernel's removal does, without the flush that closing a volume is."""
        with ExitStack() as stack:
            for device in self.volume.devices.values():
                stack.callback(device.close)


def _always(store: MemoryStore) -> Callable[[Ref], MemoryStore]:
    return lambda _: store
