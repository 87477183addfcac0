"""The model of mirror: legs that fail, the log in memory and on a disk, what is copied when."""

from __future__ import annotations

import errno
import struct

import pytest
from failing import FailingStore

from dmcore.errors import FormatError, SpecError, Unsupported
from dmcore.formats.mirror_log import Header, bitmap_bytes, log_bytes
from dmcore.model.block import Suspended
from dmcore.volume import open_volume

REGION, LENGTH = 8, 60
LEG = b"0" * LENGTH * 512
OTHER = b"1" * LENGTH * 512
KEEP = "2 handle_errors keep_log"


class Below:
    """Two legs with different content, and a device for the log."""

    def __init__(self) -> None:
        self.legs = [FailingStore(LENGTH + 8, word=f"d{index}") for index in range(2)]
        self.log = FailingStore(16, word="log")
        for leg, content in zip(self.legs, (LEG, OTHER), strict=True):
            leg.write(8, memoryview(content))

    def open(self, log: str, features: str = ""):
        table = f"0 {LENGTH} mirror {log} 2 d0 8 d1 8 {features}"
        return open_volume(table, {"d0": self.legs[0], "d1": self.legs[1], "log": self.log})

    def content(self, index: int) -> bytes:
        return bytes(self.legs[index].read(8, LENGTH))


@pytest.fixture
def below():
    return Below()


def letters(volume) -> str:
    (status,) = volume.status()
    return "".join(leg.state for leg in status.legs)


def synced(volume) -> int:
    return volume.status()[0].synced


def fails(request, *args) -> None:
    with pytest.raises(OSError) as caught:
        request(*args)
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("log", ["core 1 8", "core 2 8 sync", "disk 2 log 8", "disk 3 log 8 sync"])
def test_leg_0_is_copied_region_by_region_when_it_settles(below, log):
    with below.open(log) as volume:
        told = "1 core" if log.startswith("core") else "3 disk log A"
        assert volume.status_text() == f"0 60 mirror 2 d0 d1 0/8 1 AA {told}"
        volume.write(512, b"w" * 512)
        assert below.content(1) == OTHER, "a region that is not in sync is written on one leg only"
        volume.settle()
        assert volume.status_text() == f"0 60 mirror 2 d0 d1 8/8 1 AA {told}"
        assert below.content(0) == below.content(1) == b"0" * 512 + b"w" * 512 + LEG[1024:]
        volume.write(59 * 512, b"x" * 512)
        assert below.content(0)[-512:] == below.content(1)[-512:] == b"x" * 512
        assert volume.table_text() == f"0 60 mirror {log} 2 d0 8 d1 8"


def test_nosync_copies_nothing_and_reads_leg_0(below):
    with below.open("core 2 8 nosync") as volume:
        volume.settle()
        assert synced(volume) == 8
        assert volume.read(0, LENGTH * 512) == LEG
        assert below.content(1) == OTHER


def test_a_read_that_fails_is_tried_on_another_leg_where_it_is_in_sync(below):
    with below.open("core 2 8 nosync", "1 handle_errors") as volume:
        below.legs[0].unread = {9}
        assert volume.read(512, 512) == b"1" * 512
        assert letters(volume) == "RA"
        below.legs[0].unread = set()
        assert volume.read(0, 512) == b"1" * 512, "another leg is the first choice from now on"
        below.legs[1].unread = {20}
        fails(volume.read, 0, LENGTH * 512)
        assert letters(volume) == "RR"


def test_a_read_that_fails_out_of_sync_fails(below):
    with below.open("core 1 8", "1 handle_errors") as volume:
        below.legs[0].unread = {9}
        fails(volume.read, 512, 512)
        assert letters(volume) == "RA"
        assert volume.device.event_nr == 1


def test_a_write_that_a_leg_fails_succeeds_and_its_region_is_out_of_sync(below):
    with below.open("core 2 8 nosync") as volume:
        below.legs[1].unwritten = {9}
        volume.write(512, b"w" * 512)
        assert (letters(volume), synced(volume)) == ("AD", 7)
        below.legs[1].heal()
        volume.write(1024, b"v" * 512)
        assert below.content(1)[1024:1536] == b"1" * 512, "it is written on one leg only"
        volume.settle()
        assert synced(volume) == 7, "nothing is copied before the next resume"
        volume.device.suspend()
        volume.device.resume()
        volume.settle()
        assert (letters(volume), synced(volume)) == ("AA", 8)
        assert below.content(1)[: 8 * 512] == below.content(0)[: 8 * 512]


def test_with_handle_errors_such_a_write_waits_for_a_suspend(below):
    with below.open("core 2 8 nosync", "1 handle_errors") as volume:
        below.legs[0].unwritten = {9}
        with pytest.raises(Suspended):
            volume.write(512, b"w" * 512)
        assert (letters(volume), synced(volume)) == ("DA", 7)
        with pytest.raises(Suspended):
            volume.write(2 * 512, b"w" * 512)
        below.legs[1].unwritten = {40}
        with pytest.raises(OSError, match="Input/output"):
            volume.write(32 * 512, b"w" * 512)
        assert letters(volume) == "DD"


def test_with_keep_log_it_succeeds_and_another_leg_takes_over(below):
    with below.open("core 2 8 nosync", KEEP) as volume:
        below.legs[0].unwritten = {9}
        volume.write(512, b"w" * 512)
        assert (letters(volume), synced(volume)) == ("DA", 7)
        assert volume.read(512, 512) == b"w" * 512
        volume.write(1024, b"v" * 512)
        assert below.content(1)[512:1536] == b"w" * 512 + b"v" * 512
        below.legs[0].heal()
        volume.device.suspend()
        volume.device.resume()
        volume.settle()
        assert (letters(volume), synced(volume)) == ("AA", 8)
        assert below.content(0)[: 8 * 512] == below.content(1)[: 8 * 512]


def test_a_leg_that_fails_while_it_is_copied_leaves_regions_out_of_sync(below):
    with below.open("core 1 8", "1 handle_errors") as volume:
        below.legs[1].unwritten = {30}
        volume.settle()
        assert (letters(volume), synced(volume)) == ("AS", 7)
    with below.open("core 1 8") as volume:
        volume.settle()
        assert (letters(volume), synced(volume)) == ("AA", 8), "without handle_errors nobody looks"


def test_extents_are_those_of_any_leg():
    legs = {f"d{index}": FailingStore(2000, word=f"d{index}") for index in range(2)}
    legs["d0"].write(8, memoryview(b"x" * 4096))
    legs["d1"].write(1600, memoryview(b"x" * 4096))
    with open_volume("0 1992 mirror core 2 8 nosync 2 d0 0 d1 8", legs) as volume:
        found = list(volume.extents())
    covered = {sector for first, length in found for sector in range(first // 512, (first + length) // 512)}
    assert {8, 15, 1592, 1599} <= covered
    assert 1000 not in covered


def test_nine_legs():
    legs = {f"d{index}": FailingStore(20, word=f"d{index}") for index in range(9)}
    legs["d0"].write(0, memoryview(b"n" * 20 * 512))
    words = " ".join(f"{name} 0" for name in legs)
    with open_volume(f"0 20 mirror core 1 16 9 {words}", legs) as volume:
        volume.settle()
        assert volume.status_text().endswith(" 2/2 1 AAAAAAAAA 1 core")
    assert all(leg.read(0, 20) == b"n" * 20 * 512 for leg in legs.values())


# The log on a disk.


def test_the_log_tells_the_next_table_what_is_in_sync(below):
    with below.open("disk 2 log 8") as volume:
        volume.settle()
    assert below.log.read(0, 1)[:16] == Header(8).encode()
    assert below.log.read(2, 1)[:8] == b"\xff" + bytes(7)
    with below.open("disk 2 log 8") as volume:
        assert synced(volume) == 8
        below.legs[1].unwritten = {9}
        volume.write(512, b"w" * 512)
    with below.open("disk 2 log 8") as volume:
        assert synced(volume) == 7
        below.legs[1].heal()
        volume.settle()
    assert below.content(0) == below.content(1)


def test_a_power_cut_leaves_a_region_that_was_being_written_out_of_sync(below):
    with below.open("disk 2 log 8") as volume:
        volume.settle()
        volume.write(512, b"w" * 512)
        assert below.log.read(2, 1)[:1] == b"\xfe", "marked before it is written"
        with below.open("disk 2 log 8") as after:
            assert synced(after) == 7
            after.settle()
        volume.settle()


def test_a_longer_line_brings_regions_that_are_not_in_sync_and_a_shorter_one_forgets(below):
    below.log.write(0, memoryview(Header(3).encode().ljust(512, b"h")))
    below.log.write(2, memoryview(b"\xff" * 512))
    with below.open("disk 2 log 8") as volume:
        assert synced(volume) == 3
    assert below.log.read(0, 1)[:16] == Header(8).encode()
    assert below.log.read(0, 1)[16:] == b"h" * 496, "the rest of the first sectors stays"
    assert below.log.read(2, 1)[:8] == b"\x07" + bytes(7)
    with below.open("disk 3 log 8 nosync") as volume:
        assert synced(volume) == 8
    with below.open("disk 3 log 8 sync") as volume:
        assert synced(volume) == 0


def test_a_log_of_another_version_fails_the_log_and_nothing_is_in_sync(below):
    below.log.write(0, memoryview(struct.pack("<IIQ", 0x4D695272, 7, 8).ljust(512)))
    with below.open("disk 2 log 8") as volume:
        assert volume.status_text() == "0 60 mirror 2 d0 d1 0/8 1 AA 3 disk log D"
    with pytest.raises(FormatError, match="version 7"):
        Header.decode(below.log.read(0, 1))


def test_a_log_that_cannot_be_written(below):
    with below.open("disk 3 log 8 nosync", KEEP) as volume:
        below.log.fail()
        fails(volume.write, 0, b"w" * 512)
        assert volume.status_text().endswith(" 1 AA 3 disk log D")
        below.log.heal()
        fails(volume.write, 0, b"w" * 512)
        volume.device.suspend()
    with below.open("disk 3 log 8 nosync") as volume:
        below.log.flushes = False
        volume.write(0, b"w" * 512)
        assert volume.status_text().endswith(" 1 AA 3 disk log F")
        assert below.content(0)[:512] == below.content(1)[:512] == b"w" * 512


def test_legs_that_cannot_be_flushed_make_the_log_believe_nothing(below):
    with below.open("disk 3 log 8 nosync", KEEP) as volume:
        volume.write(0, b"w" * 512)
        below.legs[1].flushes = False
        volume.settle()
        assert letters(volume) == "AF"
        below.legs[1].flushes = True
        volume.write(20 * 512, b"w" * 512)
        volume.settle()
    assert below.log.read(2, 1)[:8] == bytes(8)


def test_hostile_logs(below):
    below.log.write(0, memoryview(struct.pack("<IIQ", 0x4D695272, 2, 2**64 - 1).ljust(512)))
    below.log.write(2, memoryview(b"\xaa" * 512))
    with below.open("disk 2 log 8") as volume:
        assert synced(volume) == 4
    with pytest.raises(SpecError, match="too small"):
        open_volume(
            "0 60 mirror disk 2 log 8 2 d0 0 d1 0",
            {"d0": below.legs[0], "d1": below.legs[1], "log": FailingStore(2, word="log")},
        )
    with pytest.raises(Unsupported, match="daemon"):
        below.open("userspace 3 LVM-1 clustered-core 8")
    assert (bitmap_bytes(64), bitmap_bytes(65), log_bytes(65, 4096)) == (8, 16, 4096)
