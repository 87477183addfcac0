"""The model of multipath against kernels: which path is taken, and what messages about paths do."""

from __future__ import annotations

import pytest

from dmcore.model.stores import MemoryStore
from dmcore.table import Table
from dmcore.volume import open_volume
from pytest_dm.differential.steps import (
    Fail,
    Flush,
    Heal,
    Message,
    Read,
    Reload,
    Resume,
    Status,
    Suspend,
    Write,
)

pytestmark = pytest.mark.dm
LENGTH = 64


@pytest.mark.parametrize("selector", ["round-robin", "queue-length"])
def test_paths_fail_and_come_back(dm_pair, selector):
    """Messages name devices by their numbers, which `dm_pair` has from the kernel."""
    disks = dict.fromkeys("abcd", LENGTH)
    words = [leg.word for leg in dm_pair.legs.take([LENGTH] * 4)]
    script = [
        Read(0, 8), Message(f"fail_path {words[1]}"), Read(0, 8), Read(8, 8), Read(0, 8), Status(),
        Message(f"reinstate_path {words[1]}"), Read(0, 8), Read(0, 8), Read(0, 8), Status(), Fail("a", 4, 1),
        Write(0, 16), Write(0, 16, fua=True), Flush(), Status(), Heal("a"), Message(f"REINSTATE_PATH {words[0]}"),
        *[Message(f"fail_path {word}") for word in words[:3]], Read(0, 8), Status(),
        Message(f"fail_path {words[3]}"), Read(0, 8), Message("fail_if_no_path"), Status(),
        Message(f"reinstate_path {words[2]}"), Read(0, 8), Suspend(), Message("switch_group 2"), Resume(), Read(0, 8),
        Message("switch_group 2"), Read(0, 8), Status(), Reload(), Read(0, 8), Status(),
    ]  # fmt: skip
    table = f"2 queue_mode bio 0 2 1 {selector} 0 3 0 a b c {selector} 0 1 0 d"
    dm_pair.run(f"top: 0 {LENGTH} multipath {table}", script, disks=disks)


def test_requests_over_whole_disks(lab):
    """Request-based: the paths are disks, which do not fail, unless a message says so."""
    first, second = (ref.name for ref in lab.refs)
    text = f"0 {LENGTH} multipath 1 queue_if_no_path 0 1 1 round-robin 0 2 0 {first} {second}"
    disks = {name: MemoryStore(LENGTH * 512, word=name) for name in (first, second)}
    with (
        lab.open(Table.parse(text)) as (device, file),
        open_volume(text, disks, features=lab.features) as volume,
    ):
        for number, message in enumerate(
            ["", "", f"fail_path {first}", "", f"reinstate_path {first}", "", ""]
        ):
            for side, target in ((file, device), (volume, volume)):
                if message:
                    target.message(message)
                side.write(4096 * number, bytes([number + 1]) * 4096)
            assert volume.table_text() == device.table_text()
            assert volume.status_text() == device.status_text()
    for index, disk in enumerate(disks.values()):
        with lab.disk(index) as below:
            assert below.read(0, LENGTH * 512) == disk.read(0, LENGTH)
