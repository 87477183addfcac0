"""dust: the list of bad blocks, what fails, what heals, and every reply."""

from __future__ import annotations

import errno

import pytest

from dmcore import open_volume
from dmcore.model.stores import MemoryStore
from dmcore.ref import Ref
from dmcore.targets import dust
from dmcore.targets.dust import DustStatus

SECTORS = 256


@pytest.fixture
def disk():
    return MemoryStore(SECTORS * 512, word="d")


def opened(disk, table="0 64 dust d 0 512"):
    return open_volume(table, {"d": disk})


def fails(request, *args):
    with pytest.raises(OSError) as caught:
        request(*args)
    return caught.value.errno


def test_listed_blocks_fail_reads_once_enabled_and_heal_when_written(disk):
    with opened(disk) as volume:
        volume.message("addbadblock 3")
        assert volume.read(0, 64 * 512) == bytes(64 * 512)
        volume.message("enable")
        assert fails(volume.read, 3 * 512, 512) == errno.EIO
        assert fails(volume.read, 0, 64 * 512) == errno.EIO
        assert volume.read(4 * 512, 512) == bytes(512)
        volume.write(3 * 512, b"x" * 512)
        assert volume.read(3 * 512, 512) == b"x" * 512
        assert volume.message("countbadblocks") == "countbadblocks: 0 badblock(s) found"


def test_writes_fail_as_often_as_was_said_and_leave_the_rest_of_a_request_written(disk):
    with opened(disk) as volume:
        volume.message("AddBadBlock 2 2")
        volume.message("ENABLE")
        for _ in range(2):
            assert fails(volume.write, 512, b"w" * 3 * 512) == errno.EIO
            assert disk.read(1, 3) == b"w" * 512 + bytes(512) + b"w" * 512
        volume.write(512, b"w" * 3 * 512)
        assert volume.read(512, 3 * 512) == b"w" * 3 * 512


def test_writes_while_disabled_change_nothing_on_the_list(disk):
    with opened(disk) as volume:
        volume.message("addbadblock 2")
        volume.write(0, bytes(8 * 512))
        volume.message("enable")
        volume.message("disable")
        assert volume.read(1024, 512) == bytes(512)
        assert volume.message("queryblock 2") == "dust_query_block: block 2 found in badblocklist"


def test_blocks_count_from_the_start_of_the_device_below(disk):
    with opened(disk, "0 64 dust d 16 1024") as volume:
        volume.message("addbadblock 8")
        volume.message("enable")
        assert fails(volume.read, 0, 1024) == errno.EIO
        assert volume.read(1024, 1024) == bytes(1024)


def test_a_request_over_two_blocks_of_an_unaligned_device_counts_for_the_first(disk):
    with opened(disk, "0 64 dust d 1 1024") as volume:
        volume.message("addbadblock 1")
        volume.message("enable")
        assert volume.read(0, 1024) == bytes(1024)
        assert fails(volume.read, 512, 512) == errno.EIO


def test_a_flush_is_a_write_to_the_block_of_the_first_sector(disk):
    with opened(disk, "0 64 dust d 8 4096") as volume:
        volume.message("addbadblock 1 1")
        volume.message("enable")
        assert fails(volume.flush) == errno.EIO
        volume.flush()
        assert volume.message("listbadblocks") == "No blocks in badblocklist"


@pytest.mark.parametrize(("offset", "left"), [(4, "0\n1\n"), (16, "0\n")])
def test_a_flush_of_a_later_line_counts_for_where_sector_0_would_be(disk, offset, left):
    with opened(disk, f"0 8 linear d 0\n8 64 dust d {offset} 4096") as volume:
        for block in (0, 1):
            volume.message(f"addbadblock {block}", sector=8)
        volume.message("enable", sector=8)
        volume.flush()
        assert volume.message("listbadblocks", sector=8) == left


def test_a_discard_is_a_write_to_its_first_block(disk):
    with opened(disk) as volume:
        for block in (4, 5):
            volume.message(f"addbadblock {block}")
        volume.message("enable")
        volume.discard(4 * 512, 2 * 512)
        assert volume.message("listbadblocks") == "5\n"
        volume.write_zeroes(0, 64 * 512)
        assert volume.message("listbadblocks") == "No blocks in badblocklist"


def test_replies_and_status_are_the_kernels(disk):
    with opened(disk) as volume:
        assert volume.message("clearbadblocks") == "dust_clear_badblocks: no badblocks found"
        assert volume.message("queryblock 7") == "dust_query_block: block 7 not found in badblocklist"
        for block in (30, 4, 256):
            assert volume.message(f"addbadblock {block}") == ""
        assert volume.message("listbadblocks") == "4\n30\n256\n"
        assert volume.device.send(dust.CountBadBlocks()) == 3
        assert volume.message("removebadblock 30") == ""
        assert volume.message("clearbadblocks") == "dust_clear_badblocks: badblocks cleared"
        assert volume.status_text() == "0 64 dust d bypass verbose"
        volume.message("quiet")
        volume.message("enable")
        assert volume.status() == [DustStatus(Ref("d"), enabled=True, quiet=True)]
        volume.message("quiet")
        assert volume.status_text() == "0 64 dust d fail_read_on_bad_block verbose"


@pytest.mark.parametrize(
    "text",
    [
        "addbadblock", "addbadblock 257", "addbadblock 4", "addbadblock x", "addbadblock 5 256", "addbadblock 5 x",
        "addbadblock -1", "addbadblock 0x5", "removebadblock 5", "removebadblock 4 0", "queryblock", "queryblock 4 1",
        "enable 1", "quiet 4", "listbadblocks 4", "countbadblocks 1 2 3", "heal", "addbadblock 1 2 3",
    ],
)  # fmt: skip
def test_refuses_what_the_kernel_refuses(disk, text):
    with opened(disk) as volume:
        volume.message("addbadblock 4")
        assert fails(volume.message, text) == errno.EINVAL
        assert volume.message("listbadblocks") == "4\n"


def test_numbers_wrap_as_the_kernels_do(disk):
    with opened(disk) as volume:
        volume.message(f"addbadblock 7 {2**32 + 1}")
        volume.message("enable")
        assert fails(volume.write, 7 * 512, bytes(512)) == errno.EIO
        volume.write(7 * 512, bytes(512))


def test_list_and_switch_live_through_a_suspend_and_end_with_the_table(disk):
    with opened(disk) as volume:
        volume.message("addbadblock 4")
        volume.message("enable")
        volume.device.suspend()
        volume.device.resume()
        assert fails(volume.read, 0, 64 * 512) == errno.EIO
        volume.device.load(volume.device.table)
        volume.device.resume()
        assert volume.read(0, 64 * 512) == bytes(64 * 512)
        assert volume.message("countbadblocks") == "countbadblocks: 0 badblock(s) found"
