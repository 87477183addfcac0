"""dmsetup and dmcore say the same of a device, in every state it can be in."""

from __future__ import annotations

import os

import pytest
from dmsetup_oracle import assert_agrees, dmsetup, ours, theirs

from dmcore.abi.dm import TableLine
from dmcore.kernel.device import Device
from dmcore.table import Table

pytestmark = pytest.mark.dm

ZERO = [TableLine(0, 2048, "zero")]


def test_every_state(control, name, disk):
    control.create(name, f"U-{name}")
    assert_agrees(control, name)
    control.load(name, ZERO)
    assert_agrees(control, name)
    control.resume(name)
    assert_agrees(control, name)
    control.suspend(name)
    assert_agrees(control, name)
    control.load(name, [TableLine(0, 64, "linear", f"{disk.ref} 0")], readonly=True)
    assert_agrees(control, name)
    control.resume(name)
    assert_agrees(control, name)
    control.rename(name, f"{name}-new")
    assert_agrees(control, f"{name}-new")


@pytest.mark.parametrize(
    "lines",
    [
        "0 2048 zero\n2048 8 error",
        "0 8 linear {0} 0\n8 8 linear {0} 8\n16 8 linear {1} 8",
        "0 1024 striped 2 16 {0} 0 {1} 64",
        "0 1024 flakey {0} 0 1 1",
        "0 1024 flakey {0} 0 0 5 1 drop_writes",
        "0 1024 flakey {0} 0 3 2 5 corrupt_bio_byte 32 r 1 0",
        "0 1024 delay {0} 0 1",
        "0 1024 delay {0} 0 1 {1} 8 2",
        "0 1024 delay {0} 0 1 {1} 8 2 {0} 16 3",
        "0 1024 dust {0} 0 4096",
        "0 1024 log-writes {0} {1}",
        "0 1024 snapshot-origin {0}",
        "0 1024 mirror core 2 1024 nosync 2 {0} 0 {1} 0",
    ],
)
def test_targets(control, name, disk, tmp_path, lines):
    from dmcore.kernel.loop import LoopDevice

    backing = tmp_path / "second.img"
    backing.touch()
    os.truncate(backing, 8 << 20)
    with LoopDevice.attach(backing, direct_io=False) as second:
        table = Table.parse(lines.format(disk.ref, second.ref))
        with Device.create(control, name, table, uuid=f"U-{name}") as device:
            assert_agrees(control, device.selector)
            shown = dmsetup("table", name).splitlines()
            assert device.table_text() == "\n".join(line.rstrip() for line in shown)
            with device.suspended(noflush=True):
                assert_agrees(control, name)


def test_odd_name(control, name):
    control.create(f"{name} \u00e4\udcff", "u\u00fc id")
    assert_agrees(control, f"{name} \u00e4\udcff")


def test_the_oracle_sees_a_difference(control, name):
    """The comparison is not one of a thing with itself."""
    control.create(name)
    before = ours(control, name)
    dmsetup("load", name, "--table", "0 8 error")
    dmsetup("resume", name)
    after = theirs(control.info(name).dev)
    assert {key for key in before if before[key] != after[key]} == {"info", "table", "status"}
    assert_agrees(control, name)
