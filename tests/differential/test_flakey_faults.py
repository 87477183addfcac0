"""Every fault of flakey, each in a line of one table: requests of which the byte to corrupt is the last one, and longer ones."""

from __future__ import annotations

import pytest

from dmcore.ref import Ref
from dmcore.stack import Stack
from dmcore.table import Line, Table
from dmcore.targets.flakey import Corrupt, Direction, Flakey
from pytest_dm.differential.setup import Disk, Setup
from pytest_dm.differential.steps import Discard, Flush, Read, Write, ZeroOut

pytestmark = pytest.mark.dm
LENGTH = 8
SYNC, FUA = 1 << 11, 1 << 17
CORRUPT = [
    Corrupt(byte, direction, 0x5A, flags)
    for direction, every in ((Direction.READ, (0, 1)), (Direction.WRITE, (0, SYNC, FUA, FUA | 1)))
    for byte in (1, 512)
    for flags in every
]
FAULTS = [
    {},
    {"drop_writes": True},
    {"error_writes": True},
    {"error_reads": True},
    {"drop_writes": True, "corrupt": CORRUPT[0]},
    *({"corrupt": corrupt} for corrupt in CORRUPT),
]


def test_kernel_and_model_spoil_the_same(dm_pair):
    features = dm_pair.runtime.features(Flakey)
    targets = [
        Flakey(dev=Ref(f"disk{number}"), up=0, down=10**6, **fault) for number, fault in enumerate(FAULTS)
    ]
    targets = [target for target in targets if target.needs().features <= features]
    lines = [Line(number * LENGTH, LENGTH, target) for number, target in enumerate(targets)]
    disks = {ref.name: Disk(LENGTH, seed=200 + line.start) for line in lines for ref in line.target.refs()}
    script = [
        step
        for line in lines
        for first in [line.start]
        for step in (
            Read(first, 1), Write(first, 1, 1), Read(first, 1), Write(first, 1, 2, fua=True), Read(first, 2),
            ZeroOut(first + 2, 2), Discard(first + 4, 4), Read(first, LENGTH),
        )
    ]  # fmt: skip
    dm_pair.run(Setup(Stack({"top": Table(lines)}), disks), [*script, Flush()])
