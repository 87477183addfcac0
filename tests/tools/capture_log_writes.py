"""Record the logs of tests/data/log_writes: run as root on a dm kernel, with the folder to write to as argument."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from dmcore import targets
from dmcore.kernel.block import BlockFile
from dmcore.kernel.control import Control
from dmcore.kernel.device import Device
from dmcore.kernel.loop import LoopDevice
from dmcore.owner import Owner
from dmcore.table import Table
from dmcore.targets.log_writes import Mark


def record(folder: Path, block_size: int, out: Path) -> None:
    """Write the log of a fixed script of requests, cut behind its last entry, to `out`."""
    for name in ("data", "log"):
        with (folder / f"{name}{block_size}").open("wb") as file:
            file.truncate(1 << 20)
    with (
        Control() as control,
        LoopDevice.attach(folder / f"data{block_size}", block_size=block_size) as data,
        LoopDevice.attach(folder / f"log{block_size}", block_size=block_size) as log,
    ):
        name, uuid = Owner.current().name("capture")
        table = Table.of(targets.LogWrites(dev=data.ref, log=log.ref), 512)
        with Device.create(control, name, table, uuid=uuid) as device, BlockFile(device.path) as file:
            file.write(block_size, b"A" * block_size)
            device.send(Mark("before flush"))
            file.flush()
            file.write(3 * block_size, b"B" * 2 * block_size)
            file.discard(8 * block_size, 4 * block_size)
            file.flush()
            device.send(Mark("voilà"))
            file.write(0, b"C" * block_size)
            while device.status()[0].entries < 7:
                time.sleep(0.01)
            status = device.status_text()
        raw = (folder / f"log{block_size}").read_bytes()
    out.write_bytes(raw.rstrip(b"\0").ljust(-(-len(raw.rstrip(b"\0")) // block_size) * block_size, b"\0"))
    sys.stdout.write(f"{out.name}: {status}\n")


def main() -> None:
    """Record both."""
    out = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        for block_size in (512, 4096):
            record(Path(folder), block_size, out / f"log-{block_size}.bin")


main()
