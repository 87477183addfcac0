"""The model of mirror against kernels: what is copied, logs on disks, images both ways, and a flush that failed."""

from __future__ import annotations

import pytest
from failing import FailingStore
from mirror_lab import REGION, SECTORS, mirror, mirror_state, opened

from dmcore.model.stores import MemoryStore
from dmcore.targets.mirror import DiskLog, Sync
from dmcore.volume import open_volume
from pytest_dm.differential.setup import Disk
from pytest_dm.differential.steps import (
    Discard,
    Fail,
    Flush,
    Heal,
    Read,
    Reload,
    Resume,
    Settle,
    Status,
    Suspend,
    Write,
)

pytestmark = pytest.mark.dm
LENGTH = 100
DISKS = {"a": LENGTH, "b": LENGTH + 8, "c": LENGTH, "log": Disk(8, seed=7)}
LEGS = "3 a 0 b 8 c 0"


@pytest.mark.parametrize(
    "log",
    [
        "core 1 8",
        "core 2 16 nosync",
        "disk 2 log 8",
        "disk 3 log 8 sync",
        "disk 3 log 2 nosync",
        "disk 2 log 64",
    ],
)
def test_copies_and_logs_are_the_same_on_a_kernel(dm_pair, log):
    script = [
        Settle(), Status(), Write(3, 9), Write(40, 40, fua=True), Suspend(), Resume(), Settle(), Write(96, 4), Flush(),
        Discard(16, 24), Reload(), Settle(), Status(), Read(0, LENGTH),
    ]  # fmt: skip
    dm_pair.run(f"top: 0 {LENGTH} mirror {log} {LEGS} 1 handle_errors", script, disks=DISKS)


@pytest.mark.parametrize("features", ["", "2 handle_errors keep_log"])
def test_legs_that_fail(dm_pair, features):
    script = [
        Fail("b", 10, 2), Write(0, 8), Status(), Read(0, 8), Heal("b"), Write(1, 4, seed=2), Write(20, 4), Status(),
        Fail("a", 21, 1), Read(20, 4), Status(), Read(0, 8), Write(40, 3), Status(),
    ]  # fmt: skip
    dm_pair.run(f"top: 0 {LENGTH} mirror core 2 8 nosync 2 a 0 b 8 {features}", script, disks=DISKS)


def test_the_kernels_log_is_the_models(lab, below):
    """A log that a kernel left in the middle tells the model what to copy, and the other way round."""
    log = DiskLog(below[2].device.ref, REGION, Sync.NOSYNC)
    with opened(lab, mirror(below, log)) as (_, file):
        file.flush()
        below[1].fail_writes()
        file.flush()  # by then what the resume changed is written, and needs no flush of legs any more
        file.write(5 * REGION * 512, b"w" * 512)
    below[1].heal()
    with lab.disk(1) as disk:
        content = disk.read(2048 * 512, SECTORS * 512)
    store = MemoryStore(SECTORS * 512, word="log")
    store.write(0, memoryview(content))
    legs = {f"d{index}": MemoryStore(SECTORS * 512, word=f"d{index}") for index in range(2)}
    with open_volume(f"0 {SECTORS} mirror disk 2 log {REGION} 2 d0 0 d1 0", {**legs, "log": store}) as volume:
        assert volume.status()[0].synced == 15
        legs["d0"].write(5 * REGION, memoryview(b"n" * 512))
        legs["d0"].write(6 * REGION, memoryview(b"m" * 512))
        volume.settle()
        assert legs["d1"].read(5 * REGION, 1) == b"n" * 512
        assert legs["d1"].read(6 * REGION, 1) == bytes(512), "it was in sync"


def test_after_a_flush_that_failed_writes_go_to_one_leg_and_all_count_as_in_sync(lab, below):
    """A mistake of all kernels, which the model has too: docs/explanation/kernel-findings.md."""
    with opened(lab, mirror(below)) as (device, file):
        below[1].fail_flushes()
        file.flush()
        below[1].heal()
        file.write(0, b"b" * 4096)
        file.write(0, b"c" * 4096)
        status = mirror_state(device)
        assert status.in_sync
        assert {leg.state.value for leg in status.legs} == {"A"}
    with lab.disk(0) as first, lab.disk(1) as second:
        kernel = first.read(0, 4096), second.read(0, 4096)
    legs = {f"d{index}": FailingStore(SECTORS, word=f"d{index}") for index in range(2)}
    with open_volume(f"0 {SECTORS} mirror core 2 {REGION} nosync 2 d0 0 d1 0", legs) as volume:
        legs["d1"].flushes = False
        volume.flush()
        legs["d1"].flushes = True
        volume.write(0, b"b" * 4096)
        volume.write(0, b"c" * 4096)
        (status,) = volume.status()
        assert status.in_sync
        assert {leg.state.value for leg in status.legs} == {"A"}
    assert (legs["d0"].read(0, 8), legs["d1"].read(0, 8)) == kernel == (b"c" * 4096, b"b" * 4096)
