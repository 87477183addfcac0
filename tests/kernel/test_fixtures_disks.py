"""Plain devices and the factory's `create` on a real kernel."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from dmcore.errors import DmError, ParseError, SpecError, TableRejected
from dmcore.ref import Ref
from dmcore.table import Line, Table
from dmcore.target import Leg
from dmcore.targets import Delay, Linear, Striped, Zero
from pytest_dm import devices

KIB = 1 << 10
MIB = 1 << 20


def code(action, *args):
    with pytest.raises(OSError) as failure:
        action(*args)
    return errno.errorcode[failure.value.errno or 0]


def test_a_loop_is_a_plain_disk(dm_loop):
    assert (dm_loop.size, dm_loop.block_size) == (64 * MIB, 512)
    dm_loop.write(512, b"x" * 512)
    assert dm_loop.read(0, 1024) == bytes(512) + b"x" * 512
    assert dm_loop.backing.read_bytes()[:1024] == bytes(512) + b"x" * 512
    assert dm_loop.path.is_block_device()
    assert dm_loop.ref == Ref(f"7:{dm_loop.name.removeprefix('loop')}")


@pytest.mark.dm(size="4M", block_size=4096)
@pytest.mark.parametrize("kind", ["loop", "linear", "flakey", "dust", "delay", "log_writes"])
def test_the_marker_says_size_and_blocks(request, kind):
    device = request.getfixturevalue(f"dm_{kind}")
    assert (device.size, device.block_size) == (4 * MIB, 4096)
    with pytest.raises(SpecError, match="4096-byte logical block"):
        device.read(512, 512)


@pytest.mark.dm(size="4M")
class TestClosestMarker:
    @pytest.mark.dm(size="8M")
    def test_wins(self, dm_loop):
        assert dm_loop.size == 8 * MIB

    def test_is_inherited(self, dm_loop):
        assert dm_loop.size == 4 * MIB


def test_an_argument_beats_the_marker(dm):
    assert dm.loop("1M", block_size=1024).block_size == 1024
    assert dm.loop(3 * 512).size == 1536


def test_a_readonly_loop(dm):
    disk = dm.loop("1M", readonly=True)
    assert disk.read(0, 512) == bytes(512)
    assert code(disk.write, 0, bytes(512)) == "EPERM"


@pytest.mark.parametrize("size", [0, "0", "100", "64Q", -512, True, "1.0001K"])
def test_a_size_that_is_none(dm, size):
    with pytest.raises(SpecError, match="size"):
        dm.loop(size)


def test_linear_is_a_piece(dm):
    disk = dm.loop("2M")
    piece = dm.linear(disk, start=2048, length="512K")
    assert piece.size == 512 * KIB
    piece.write(0, b"p" * 512)
    assert disk.read(MIB, 512) == b"p" * 512
    assert piece.lower is disk
    assert str(piece.table()) == f"0 1024 linear {disk.ref} 2048"
    piece.discard(0, 4 * KIB)
    assert disk.read(MIB, 512) == bytes(512)


@pytest.mark.parametrize(("start", "length"), [(4096, None), (0, 4097), (0, 0), (-1, 1), ("100", 1)])
def test_a_piece_that_does_not_fit(dm, start, length):
    disk = dm.loop("2M")
    with pytest.raises(SpecError):
        dm.linear(disk, start=start, length=length)


def test_zero(dm_zero):
    dm_zero.write(0, b"x" * 512)
    assert dm_zero.read(0, 4 * KIB) == bytes(4 * KIB)
    dm_zero.flush()


def test_zero_may_be_huge(dm):
    huge = dm.zero("4P")
    assert huge.size == 4 << 50
    assert huge.read((4 << 50) - 512, 512) == bytes(512)


def test_error(dm_error):
    assert code(dm_error.read, 0, 512) == "EIO"
    assert code(dm_error.write, 0, bytes(512)) == "EIO"
    dm_error.flush()


def test_error_as_large_as_another(dm):
    assert dm.error(dm.loop("3M")).size == 3 * MIB
    assert dm.error("5M").size == 5 * MIB


class TestErrorRange:
    @pytest.fixture
    def disk(self, dm):
        return dm.error_range(start=8, length=8, size="1M")

    def test_only_the_range_fails(self, disk):
        assert disk.ranges == ((8, 8),)
        assert code(disk.read, 8 * 512, 512) == "EIO"
        assert code(disk.write, 15 * 512, bytes(512)) == "EIO"
        assert disk.read(0, 8 * 512) == bytes(8 * 512)
        disk.write(16 * 512, b"x" * 512)
        assert code(disk.read, 0, 16 * 512) == "EIO"

    def test_ranges_that_touch_become_one(self, disk):
        disk.fail(16, 8)
        assert disk.ranges == ((8, 16),)
        disk.fail(100, 1)
        disk.fail(12, "64K")
        assert disk.ranges == ((8, 132),)
        assert len(disk.table().lines) == 3

    def test_healing_cuts(self, disk):
        disk.fail(start=0, length=64)
        disk.heal(16, 8)
        assert disk.ranges == ((0, 16), (24, 40))
        assert disk.read(16 * 512, 8 * 512) == bytes(8 * 512)
        disk.heal(start=32)
        assert disk.ranges == ((0, 16), (24, 8))
        disk.heal(length=8)
        assert disk.ranges == ((8, 8), (24, 8))
        disk.heal()
        assert disk.ranges == ()
        assert disk.read(0, MIB) == bytes(MIB)

    def test_the_whole_disk(self, disk):
        disk.fail(0, "1M")
        assert len(disk.table().lines) == 1
        disk.heal()
        assert isinstance(disk.table().lines[0].target, Linear)

    def test_as_a_block(self, disk):
        with disk.fail(0, 8), disk.fail(24, 8):
            assert disk.ranges == ((0, 16), (24, 8))
        assert disk.ranges == ((8, 8),)

    @pytest.mark.parametrize(
        ("start", "length"), [(2048, 1), (0, 0), (2040, 9), (-1, 2), (True, 1), ("1", 1)]
    )
    def test_what_does_not_fit_is_refused(self, disk, start, length):
        with pytest.raises(SpecError):
            disk.fail(start, length)
        assert disk.ranges == ((8, 8),)

    def test_whole_blocks_only(self, dm):
        with pytest.raises(SpecError, match="logical block"):
            dm.error_range(dm.loop("1M", block_size=4096), start=1, length=8)

    def test_everything_but_the_range_works(self, disk):
        disk.write(0, b"x" * 4 * KIB)
        disk.flush()
        disk.discard(0, 4 * KIB)
        assert disk.read(0, 4 * KIB) == bytes(4 * KIB)
        disk.write_zeroes(64 * KIB, 4 * KIB)
        assert code(disk.discard, 4 * KIB, 4 * KIB) == "EIO"
        assert code(disk.write_zeroes, 4 * KIB, 4 * KIB) == "EIO"

    def test_the_way_without_discards_of_error_is_the_same(self, dm, monkeypatch):
        """Kernels that have the feature can go the other kernels' way too: I/O must not show the difference."""
        monkeypatch.setattr(devices.ErrorRange, "_errors_discard", lambda self: False)
        disk = dm.error_range(start=8, length=8, size="1M")
        assert isinstance(disk.table().lines[1].target, Delay)
        self.test_everything_but_the_range_works(disk)
        self.test_only_the_range_fails(disk)
        disk.fail(100, 8)
        disk.heal()
        assert disk.read(0, MIB)[16 * 512 : 17 * 512] == b"x" * 512

    def test_data_outside_stays_where_it_is(self, disk):
        disk.heal()
        disk.write(0, bytes(range(256)) * 256)
        disk.fail(40, 8)
        assert disk.read(48 * 512, 16 * 512) == (bytes(range(256)) * 256)[48 * 512 : 64 * 512]


class TestCreate:
    def test_from_text_with_names(self, dm):
        first, second = dm.loop("1M"), dm.loop("1M")
        text = "0 2048 linear left 0\n2048 2048 linear right 0"
        joined = dm.create(text, devices={"left": first, "right": str(second.path)}, label="joined")
        assert joined.size == 2 * MIB
        joined.write(MIB, b"r" * 512)
        assert second.read(0, 512) == b"r" * 512
        assert "joined" in joined.name

    def test_from_a_table(self, dm):
        legs = [dm.loop("1M") for _ in range(2)]
        striped = Striped(chunk=8, legs=tuple(Leg(leg.ref) for leg in legs))
        table = Table([Line(0, 16, striped), Line(16, 8, Zero())])
        device = dm.create(table)
        device.write(0, b"a" * 4 * KIB + b"b" * 4 * KIB + bytes(4 * KIB))
        assert [leg.read(0, 512) for leg in legs] == [b"a" * 512, b"b" * 512]
        assert device.table() == table

    @pytest.mark.dm(size="2M")
    def test_from_a_target(self, dm):
        assert dm.create(Zero()).size == 2 * MIB
        assert dm.create(Zero(), size="1M").size == MIB

    def test_on_a_dm_device(self, dm):
        below = dm.linear(size="1M")
        above = dm.create(f"0 8 linear {below.path} 0")
        above.write(0, b"a" * 512)
        assert below.read(0, 512) == b"a" * 512

    def test_a_name_that_nothing_stands_for(self, dm):
        with pytest.raises(SpecError, match="disk"):
            dm.create("0 8 linear disk 0")

    @pytest.mark.dm(needs="kernel")
    def test_a_node_that_may_be_a_real_disk(self, dm, tmp_path):
        node = tmp_path / "sda"
        os.mknod(node, 0o600 | 0o060000, os.makedev(8, 0))
        for device in (node, str(node), Ref("8:0")):
            with pytest.raises(SpecError, match="real disk"):
                dm.create("0 8 linear disk 0", devices={"disk": device})
        with pytest.raises(SpecError, match="real disk"):
            dm.create(f"0 8 linear {node} 0")
        zero = dm.zero("4K")
        for text in (f"0 8 linear {node} 0", "0 8 linear 8:0 0"):
            with pytest.raises(SpecError, match="real disk"):
                zero.swap(text)
        assert str(zero.table()) == "0 8 zero"

    def test_a_piece_from_past_the_end(self, dm):
        with pytest.raises(SpecError, match=r"start=4000: .* has 2048 sectors"):
            dm.linear(dm.loop("1M"), start=4000)

    @pytest.mark.parametrize("text", ["0 8 linear", "8 8 zero", "0 8 flakey x 0 0 0", "", "0 0 zero"])
    def test_text_that_is_no_table(self, dm, text):
        with pytest.raises((ParseError, SpecError)):
            dm.create(text)

    def test_a_table_of_its_own_size(self, dm):
        with pytest.raises(SpecError, match="size"):
            dm.create("0 8 zero", size="1M")


class TestNothingIsLeft:
    """After a create that fails at any of its steps, all is as before."""

    @pytest.fixture
    def before(self, dm_backend):
        return self.everything(dm_backend)

    @staticmethod
    def everything(dm_backend):
        devices = {entry.name for entry in dm_backend.runtime.control.list_devices()}
        nodes = {path.name for path in Path("/dev/mapper").iterdir()}
        loops = {path.parent.parent.name for path in Path("/sys/block").glob("loop*/loop/backing_file")}
        return devices, nodes, loops, set(dm_backend.runtime.folder.iterdir())

    def test_a_bad_table(self, dm, dm_backend, before):
        with pytest.raises(TableRejected) as refused:
            dm.create("0 8 no-such-target")
        assert any("unknown target type" in line for line in refused.value.kernel_log)
        assert self.everything(dm_backend) == before

    def test_a_missing_lower_device(self, dm, dm_backend, before):
        with pytest.raises((SpecError, DmError)):
            dm.create("0 8 linear /dev/mapper/nothing 0")
        assert self.everything(dm_backend) == before

    def test_a_device_that_is_too_small(self, dm, dm_backend):
        disk = dm.loop("64K")
        before = self.everything(dm_backend)
        with pytest.raises(TableRejected, match="too small"):
            dm.create(f"0 129 linear {disk.path} 0")
        assert self.everything(dm_backend) == before

    def test_a_bad_argument_after_the_loop_was_made(self, dm, dm_backend, before):
        with pytest.raises(SpecError):
            dm.error_range(start=0, length=4096, size="1M")
        with pytest.raises(SpecError):
            dm.delay(read_ms=-1, size="1M")
        with pytest.raises(SpecError):
            dm.dust(block_size=1000, size="1M")
        with pytest.raises(SpecError):
            dm.loop("1M", block_size=300)
        assert self.everything(dm_backend) == before

    def test_a_label_that_is_none(self, dm, dm_backend, before):
        with pytest.raises(SpecError, match="label"):
            dm.create("0 8 zero", label="a/b")
        with pytest.raises(SpecError, match="label"):
            dm.loop("1M", label="a/b")
        assert self.everything(dm_backend) == before

    def test_lower_and_size_together(self, dm, dm_backend):
        disk = dm.loop("1M")
        before = self.everything(dm_backend)
        with pytest.raises(SpecError, match="size"):
            dm.flakey(disk, size="1M")
        assert self.everything(dm_backend) == before
