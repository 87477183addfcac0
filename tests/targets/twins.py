"""The same table on a kernel and as a model, over the same bytes: pieces of the lab's disks, and memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from dmcore.kernel.block import BlockFile
from dmcore.model.stores import MemoryStore
from dmcore.table import Table
from dmcore.targets import Linear
from dmcore.volume import Volume, open_volume


class Twins:
    """Devices of a table by name: each a linear device on a kernel and a `MemoryStore` for the model.

    Args:
        lab: The lab.
        pieces: `(disk, first sector, sectors)` by name.
    """

    def __init__(self, lab, pieces: dict[str, tuple[int, int, int]], stack: contextlib.ExitStack) -> None:
        self.lab = lab
        self.devices = {
            name: stack.enter_context(lab.device(Linear(dev=lab.refs[disk], offset=start), length))
            for name, (disk, start, length) in pieces.items()
        }
        self.words = {name: device.ref.name for name, device in self.devices.items()}
        self.stores = {
            name: MemoryStore(length * 512, word=self.words[name]) for name, (_, _, length) in pieces.items()
        }

    @contextlib.contextmanager
    def kernel(self, text: str) -> Iterator[tuple]:
        """Open the table on the kernel: `(device, file)`."""
        with self.kernel_of(text, self.words) as both:
            yield both

    @contextlib.contextmanager
    def kernel_of(self, text: str, words: dict[str, str]) -> Iterator[tuple]:
        """The same, with `words` for the names in it."""
        with (
            self.lab.device(Table.parse(text.format(**words))) as device,
            BlockFile(device.path) as file,
        ):
            yield device, file

    def model(self, text: str) -> Volume:
        """Open the table as a model."""
        disks = {self.words[name]: store for name, store in self.stores.items()}
        return open_volume(text.format(**self.words), disks, features=self.lab.features)

    def bytes(self, name: str) -> bytes:
        """Read a device below on the kernel."""
        with BlockFile(self.devices[name].path) as file:
            return file.read(0, file.size)

    def fill(self, name: str, data: bytes) -> None:
        """Write a device below on both sides."""
        with BlockFile(self.devices[name].path) as file:
            file.write(0, data)
        self.stores[name].write(0, memoryview(data))

    def pull(self) -> None:
        """Let the model have the kernel's disks."""
        for name, store in self.stores.items():
            store.write(0, memoryview(self.bytes(name)))

    def push(self) -> None:
        """Let the kernel have the model's disks."""
        for name, store in self.stores.items():
            with BlockFile(self.devices[name].path) as file:
                file.write(0, bytes(store.read(0, store.sectors)))

    def wipe(self) -> None:
        """Make all of them zeros."""
        for name, store in self.stores.items():
            store.discard(0, store.sectors)
            with BlockFile(self.devices[name].path) as file:
                file.discard(0, file.size)


@contextlib.contextmanager
def twins(lab, **pieces: tuple[int, int, int]) -> Iterator[Twins]:
    with contextlib.ExitStack() as stack:
        yield Twins(lab, pieces, stack)


def outcome(device, disk, step: tuple) -> object:
    """Do a step `(what, sector, sectors, byte)` on either side; return data, or the errno.

    `what` is a request, `message ...`, or `again`: suspend and resume.
    """
    what, sector, count, byte = step
    offset, length = sector * 512, min(count * 512, disk.size - sector * 512)
    does = {
        "write": lambda: disk.write(offset, bytes([byte]) * length),
        "read": lambda: bytes(disk.read(offset, length)),
        "discard": lambda: disk.discard(offset, length),
        "flush": disk.flush,
        "again": lambda: [device.suspend(), device.resume()],
    }
    try:
        return does[what]() if what in does else device.message(what.removeprefix("message "))
    except OSError as error:
        return error.errno
