"""Record the images of tests/data/volumes: run as root on a dm kernel, with the folder to write to as argument.

thin: a pool with a device of 1 MiB, a snapshot of it, and a write to the device after that.
raid6: five devices of 256 KiB with chunks of 4 KiB, synced, every sector written.
integrity: mode J, copied while the device is up: what was written last is only in the journal.
"""

from __future__ import annotations

import lzma
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from dmcore.kernel.block import BlockFile
from dmcore.kernel.control import Control
from dmcore.kernel.device import Device
from dmcore.kernel.loop import LoopDevice
from dmcore.owner import Owner
from dmcore.table import Table


def content(tag: str, first: int, count: int) -> bytes:
    """Return `count` sectors that say which they are."""
    return b"".join(f"{tag} {sector:6}".encode().ljust(512, b".") for sector in range(first, first + count))


class Lab:
    """Loop devices and tables that go away at the end."""

    def __init__(self, folder: Path, out: Path, stack: ExitStack) -> None:
        self._folder, self._out, self._stack = folder, out, stack
        self._control = stack.enter_context(Control())

    def disk(self, name: str, kib: int) -> str:
        path = self._folder / name
        with path.open("wb") as file:
            file.truncate(kib << 10)
        return self._stack.enter_context(LoopDevice.attach(path)).ref.name

    def device(self, text: str) -> tuple[Device, BlockFile]:
        name, uuid = Owner.current().name("capture")
        device = self._stack.enter_context(Device.create(self._control, name, Table.parse(text), uuid=uuid))
        return device, self._stack.enter_context(BlockFile(device.path))

    def save(self, *names: str) -> None:
        for name in names:
            packed = lzma.compress((self._folder / name).read_bytes(), preset=9)
            (self._out / f"{name}.xz").write_bytes(packed)
            sys.stdout.write(f"{name}: {len(packed)} bytes\n")


def thin(lab: Lab) -> None:
    """Make the pool."""
    meta, data = lab.disk("thin-meta", 2048), lab.disk("thin-data", 1024)
    pool, _ = lab.device(f"0 2048 thin-pool {meta} {data} 128 0")
    pool.message("create_thin 0")
    _, origin = lab.device(f"0 2048 thin {pool.ref.name} 0")
    origin.write(65536, content("one", 128, 256))
    origin.flush()
    pool.message("create_snap 1 0")
    origin.write(65536, content("two", 128, 8))
    origin.flush()


def raid6(lab: Lab) -> None:
    """Make the set."""
    disks = [lab.disk(f"raid6-{number}", 256) for number in range(5)]
    legs = " ".join(f"- {disk}" for disk in disks)
    device, file = lab.device(f"0 1536 raid raid6_zr 1 8 5 {legs}")
    file.write(0, content("raid", 0, 1536))
    file.flush()
    until = time.monotonic() + 60
    while device.status()[0].action != "idle" and time.monotonic() < until:
        time.sleep(0.1)


def integrity(lab: Lab) -> None:
    """Make the device; the image is to be saved while it is up."""
    disk = lab.disk("integrity", 1024)
    table = f"0 512 integrity {disk} 0 - J 2 internal_hash:crc32c journal_sectors:1200"
    _, file = lab.device(table)
    file.write(0, content("home", 0, 64))
    file.flush()
    file.write(4096, content("journal", 8, 16))
    file.flush()


def main() -> None:
    """Record all."""
    out = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        for make, names, live in (
            (thin, ["thin-meta", "thin-data"], False),
            (raid6, [f"raid6-{number}" for number in range(5)], False),
            (integrity, ["integrity"], True),
        ):
            with ExitStack() as stack:
                lab = Lab(Path(folder), out, stack)
                make(lab)
                if live:
                    lab.save(*names)
            if not live:
                lab.save(*names)


main()
