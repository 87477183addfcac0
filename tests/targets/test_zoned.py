from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
from formatted import BLOCK, zoned_blocks
from nullblk import null_block

from dmcore.abi.devt import DevT
from dmcore.errors import ParseError, SpecError, TableRejected
from dmcore.kernel.block import BlockFile
from dmcore.kernel.loop import LoopDevice
from dmcore.ref import Ref
from dmcore.table import Table
from dmcore.targets.zoned import Reclaim, Zoned, ZonedStatus, Zones

A, B = Ref("7:0"), Ref("7:1")


def test_text_and_bad_values():
    assert Table.parse("0 8 zoned 7:0 7:1") == Table.of(Zoned(devices=(A, B)), 8)
    with pytest.raises(ParseError) as missing:
        Table.parse("0 8 zoned")
    assert missing.value.index == 3
    for devices in ((), [A], ("7:0",)):
        with pytest.raises(SpecError):
            Zoned(devices=devices)
    assert Reclaim().encode() == "reclaim"


def test_status():
    text = "72 zones 0/0 cache 6/8 random 60/62 sequential"
    assert Zoned(devices=(A,)).parse_status(text) == ZonedStatus(
        72, Zones(0, 0), (Zones(6, 8),), (Zones(60, 62),)
    )
    cached = Zoned(devices=(A, B)).parse_status("80 zones 3/8 cache 1/2 random 3/4 sequential")
    assert cached.cache == Zones(3, 8)


@pytest.mark.parametrize(
    "text", ["", "72 zones", "72 zones 0/0 cache 6/8 random", "x zones 0/0 cache", "1 zones 0 cache"]
)
def test_bad_status(text):
    with pytest.raises(ParseError):
        Zoned(devices=(A,)).parse_status(text)


# On a kernel with zoned block devices.

ZONE = 1024
"""Blocks of a zone: 4 MiB."""


@pytest.fixture
def disk(lab) -> Iterator[Path]:
    """A device of 16 zones in memory, the first 6 of which can be written anywhere."""
    lab.supports(Table.of(Zoned(devices=(lab.refs[0],)), 8))
    with null_block(size=64, zoned=1, zone_size=4, zone_nr_conv=6) as path:
        yield path


def _write(blocks: dict[int, bytes], path: Path, first: int = 0) -> None:
    with BlockFile(path) as file:
        for at, content in blocks.items():
            file.write((at - first) * BLOCK, content)


def _number(path: Path) -> Ref:
    return Ref(str(DevT.from_rdev(path.stat().st_rdev)))


@pytest.mark.dm
def test_random_writes_on_zones(lab, disk, record_property):
    _write(zoned_blocks(16, ZONE, reserved=2, chunks=12), disk)
    value = Zoned(devices=(Ref(str(disk)),))
    length = 12 * ZONE * 8
    with lab.open(value, length) as (device, file):
        (line,) = device.table().lines
        assert (line.length, line.target) == (length, Zoned(devices=(_number(disk),)))
        record_property("dm_read_back", "zoned 1")
        assert device.status() == [ZonedStatus(16, Zones(0, 0), (Zones(4, 4),), (Zones(8, 8),))]
        for at in (5, 3, 2 * ZONE + 7, 3):
            file.write(at * BLOCK, bytes([at % 251]) * BLOCK)
        file.flush()
        assert file.read(3 * BLOCK, 3 * BLOCK) == b"\3" * BLOCK + bytes(BLOCK) + b"\5" * BLOCK
        (status,) = device.status()
        assert status.random == (Zones(2, 4),)
        device.send(Reclaim())
    with lab.open(value, length) as (device, file):
        assert file.read((2 * ZONE + 7) * BLOCK, BLOCK) == bytes([(2 * ZONE + 7) % 251]) * BLOCK


@pytest.mark.dm
def test_a_regular_device_in_front(lab, disk, tmp_path):
    blocks = zoned_blocks(24, ZONE, reserved=2, chunks=19, regular=8)
    image = tmp_path / "cache"
    with image.open("wb") as file:
        file.truncate(8 * ZONE * BLOCK)
    with LoopDevice.attach(image) as cache:
        tertiary = {at: content for at, content in blocks.items() if at >= 8 * ZONE}
        _write({at: content for at, content in blocks.items() if at not in tertiary}, cache.path)
        _write(tertiary, disk, first=8 * ZONE)
        value = Zoned(devices=(cache.ref, Ref(str(disk))))
        with lab.open(value, 19 * ZONE * 8) as (device, file):
            assert device.status() == [ZonedStatus(24, Zones(6, 6), (Zones(5, 5),), (Zones(8, 8),))]
            file.write(0, b"x" * BLOCK)
            (status,) = device.status()
            assert status.cache == Zones(5, 6)
            assert file.read(0, BLOCK) == b"x" * BLOCK
            assert device.table().lines[0].target == Zoned(devices=(cache.ref, _number(disk)))


@pytest.mark.dm
def test_devices_that_are_not_zoned_or_in_another_order_are_refused(lab, disk):
    """A zoned device that was never formatted is not tried: that takes kernels down (docs/explanation/kernel-findings.md)."""
    for devices in ((lab.refs[0],), (Ref(str(disk)), lab.refs[0]), (Ref(str(disk)), Ref(str(disk)))):
        with pytest.raises(TableRejected) as caught, lab.device(Zoned(devices=devices), 12 * ZONE * 8):
            pass
        assert caught.value.errno == errno.EINVAL
