"""Devices of a raid set that fail, on kernels and in the model."""

from __future__ import annotations

import pytest

from pytest_dm.differential.setup import Disk
from pytest_dm.differential.steps import Fail, Heal, Read, Settle, Status, Step, Write

pytestmark = pytest.mark.dm
PART = 64


def _set(kind: str, words: str, count: int, length: int) -> str:
    pairs = " ".join(f"m{index} d{index}" for index in range(count))
    return f"top: 0 {length} raid {kind} {len(words.split())} {words} {count} {pairs}"


@pytest.mark.parametrize(
    ("shape", "bad"),
    [
        (("raid1", "0", 3, PART), 2),
        (("raid4", "8", 3, 2 * PART), 1),
        (("raid5_ls", "8", 3, 2 * PART), 1),
        (("raid6_zr", "8", 4, 2 * PART), 2),
        (("raid10", "8", 4, 2 * PART), 1),
    ],
    ids=["raid1", "raid4", "raid5", "raid6", "raid10"],
)
def test_devices_that_fail_are_left_alone_and_the_rest_goes_on(dm_pair, shape, bad):
    *_, count, length = shape
    disks: dict[str, Disk | int] = {f"d{index}": PART for index in range(count)}
    disks |= {f"m{index}": Disk(64) for index in range(count)}
    script: list[Step] = [Settle(), Write(0, length), Status()]
    for index in range(bad):
        script += [
            Fail(f"d{index}", 0, PART),
            Write(3, 50, seed=5 + index),
            Settle(),
            Status(),
            Read(0, length),
        ]
    script += [Write(0, length, seed=9), Heal("d0"), Write(20, 40, seed=10), Read(0, length), Status()]
    dm_pair.run(_set(*shape), script, disks=disks)
