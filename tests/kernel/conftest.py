"""What the kernel tests share: the control node, a scratch disk, names of devices, and a check that all of it goes."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from dmcore.kernel.control import Control
from dmcore.kernel.loop import LoopDevice

_numbers = itertools.count(1)


@pytest.fixture
def control():
    with Control() as node:
        yield node


@pytest.fixture
def name(control):
    """A device name of the test; what it made under names that start so is removed, also when it failed."""
    prefix = f"dmcore-test-{os.getpid()}-{next(_numbers)}"
    yield prefix
    for entry in control.list_devices(prefix):
        if control.info(entry.name).suspended:
            control.clear(entry.name)
            control.resume(entry.name)
        control.remove(entry.name, deferred=True)
    for node in Path("/dev/mapper").glob(f"{prefix}*"):
        node.unlink()


@pytest.fixture
def disk(tmp_path):
    """A loop device of 8 MiB."""
    backing = tmp_path / "disk.img"
    with backing.open("wb") as file:
        file.truncate(8 << 20)
    with LoopDevice.attach(backing, direct_io=False) as loop:
        yield loop
