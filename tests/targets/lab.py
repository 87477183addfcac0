"""Lab: a real kernel's devices for the tests of targets, and its fixture."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcore.abi.devt import DevT
from dmcore.errors import Unsupported
from dmcore.kernel.block import BlockFile
from dmcore.kernel.control import Control
from dmcore.kernel.device import Device
from dmcore.kernel.loop import LoopDevice
from dmcore.kernel.probe import features, require_table
from dmcore.owner import Owner
from dmcore.ref import Ref
from dmcore.table import Table
from dmcore.target import Features, Target

SECTORS = 4096


class Lab:
    """Two loop devices of `SECTORS` sectors, and what it takes to stand a table on them."""

    def __init__(self, control: Control, disks: list[LoopDevice]) -> None:
        self.control = control
        self.disks = disks
        self.refs: list[Ref] = [disk.ref for disk in disks]

    @property
    def features(self) -> Features:
        return features(self.control)

    def wipe(self) -> None:
        """Make both disks zeros."""
        for disk in self.disks:
            with BlockFile(disk.path) as file:
                file.discard(0, file.size)

    def supports(self, table: Table) -> None:
        """Skip the test, saying why, where the kernel lacks what the table needs."""
        try:
            require_table(self.control, table)
        except Unsupported as missing:
            pytest.skip(str(missing))

    @contextlib.contextmanager
    def device(self, what: Target | Table, length: int = 1024) -> Iterator[Device]:
        """Create a device for a table, or for one target that serves `length` sectors."""
        table = Table.of(what, length) if isinstance(what, Target) else what
        self.supports(table)
        name, uuid = Owner.current().name("lab")
        with Device.create(self.control, name, table, uuid=uuid) as device:
            yield device

    @contextlib.contextmanager
    def empty(self) -> Iterator[DevT]:
        """Create a device without a table."""
        dev = self.control.create(*Owner.current().name("lab")).dev
        try:
            yield dev
        finally:
            self.control.remove(dev)

    @contextlib.contextmanager
    def open(self, what: Target | Table, length: int = 1024) -> Iterator[tuple[Device, BlockFile]]:
        """The same, with the node open for direct I/O."""
        with self.device(what, length) as device, BlockFile(device.path) as file:
            yield device, file

    def disk(self, index: int = 0) -> BlockFile:
        """Open a disk below for direct I/O."""
        return BlockFile(self.disks[index].path)


@pytest.fixture(scope="session")
def _lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder: Path = tmp_path_factory.mktemp("lab")
    with contextlib.ExitStack() as stack:
        control = stack.enter_context(Control())
        disks = []
        for index in range(2):
            path = folder / f"disk{index}"
            with path.open("wb") as file:
                file.truncate(SECTORS * 512)
            disks.append(stack.enter_context(LoopDevice.attach(path)))
        yield Lab(control, disks)


@pytest.fixture
def lab(_lab: Lab) -> Lab:
    """The lab, with wiped disks."""
    _lab.wipe()
    return _lab
