"""Volumes over files and memory: bytes in, bytes out, errors with the field's name, nothing left open."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from dmcore import open_volume
from dmcore.errors import SpecError, Unsupported
from dmcore.model.block import Suspended
from dmcore.model.stores import CowStore, FileStore, MemoryStore
from dmcore.stack import Stack
from dmcore.table import Table

MIB = 1 << 20


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * 4096)
    return path


def test_a_linear_volume_is_a_piece_of_its_file(image):
    before = image.read_bytes()
    with open_volume("0 16 linear disk 8", {"disk": image}) as volume:
        assert (volume.size, volume.block_size) == (8192, 512)
        assert volume.read(512, 1024) == before[8 * 512 + 512 :][:1024]
        volume.write(0, b"x" * 512)
        volume.write_zeroes(7680, 512)
    after = image.read_bytes()
    assert after[4096:4608] == b"x" * 512
    assert after[4096 + 7680 : 4096 + 8192] == bytes(512)
    assert after[:4096] == before[:4096]
    assert after[4096 + 8192 :] == before[4096 + 8192 :]


def test_read_only_volumes_change_nothing_and_refuse_writes(image):
    before = image.read_bytes()
    with open_volume("0 16 linear disk 8", {"disk": image}, "r") as volume:
        with pytest.raises(OSError) as caught:
            volume.write(0, bytes(512))
        assert caught.value.errno == errno.EPERM
        assert volume.read(0, 512) == before[4096:4608]
    assert image.read_bytes() == before


def test_a_failing_piece_fails_the_request_and_the_others_are_written(image):
    table = "0 4 linear disk 0\n4 2 error\n6 2 linear disk 4"
    with open_volume(table, {"disk": image}) as volume:
        with pytest.raises(OSError) as caught:
            volume.write(0, b"w" * 4096)
        assert caught.value.errno == errno.EIO
    assert image.read_bytes()[: 6 * 512] == b"w" * 6 * 512


def test_a_file_takes_any_offset_and_length():
    disk = MemoryStore(MIB)
    with open_volume("0 2047 linear m 1", {"m": disk}) as volume, volume.file() as file:
        file.seek(1000)
        assert file.write(b"hello") == 5
        file.seek(-7, os.SEEK_CUR)
        assert file.read(9) == b"\0\0hello\0\0"
        file.seek(0, os.SEEK_END)
        assert file.read(1) == b""
        with pytest.raises(OSError) as caught:
            file.write(b"x")
        assert caught.value.errno == errno.ENOSPC
    assert disk.read(2, 2)[488:493] == b"hello"


class _Counting(MemoryStore):
    """A disk that notes its requests."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.requests: list[tuple[str, int, int]] = []

    def readinto(self, sector, buffer, flags=0):
        self.requests.append(("read", sector, len(buffer)))
        super().readinto(sector, buffer, flags)

    def write(self, sector, data, flags=0):
        self.requests.append(("write", sector, len(data)))
        super().write(sector, data, flags)

    def flush(self):
        self.requests.append(("flush", 0, 0))


def test_a_buffered_file_reads_ahead_gathers_writes_and_flushes_behind_them():
    disk = _Counting(MIB)
    with open_volume(f"0 {MIB // 512} linear m 0", {"m": disk}) as volume, volume.buffered(65536) as file:
        for number in range(20):
            file.write(bytes([number]) * 4096)
        assert [kind for kind, _, _ in disk.requests] == ["write"]
        file.flush()
        assert [kind for kind, _, _ in disk.requests][-2:] == ["write", "flush"]
        assert sum(size for kind, _, size in disk.requests if kind == "write") == 20 * 4096
        disk.requests.clear()
        file.seek(0)
        assert [file.read(4096)[:1][0] for _ in range(16)] == [*range(16)]
        assert disk.requests == [("read", 0, 65536)]
        file.seek(100)
        file.write(b"x" * 7)
        assert file.read(1) == b"\0"
        file.seek(99)
        assert file.read(9) == b"\0xxxxxxx\0"
    assert disk.read(0, 1)[100:107] == b"x" * 7


@pytest.mark.parametrize(
    ("offset", "length", "field"),
    [(1, 512, "offset"), (0, 100, "length"), (8192, 512, "length"), (-512, 512, "offset")],
)
def test_requests_that_do_not_fit_are_named(offset, length, field):
    with open_volume("0 16 zero") as volume, pytest.raises(SpecError) as caught:
        volume.read(offset, length)
    assert caught.value.field == field


def test_what_cannot_be_opened_leaves_nothing_open(image, tmp_path):
    before = _open_files()
    for table, devices, error in [
        ("0 16 linear disk 0", {}, SpecError),
        (f"0 8 linear disk 0\n8 8 linear {tmp_path}/none 0", {"disk": image}, FileNotFoundError),
        (f"0 {MIB} linear disk 0", {"disk": image}, SpecError),
        ("0 8 linear disk 0\n8 8 nothing-like-it", {"disk": image}, Unsupported),
        ("a: 0 8 linear b 0\nb: 0 8 linear a 0", {}, SpecError),
        ("0 8 linear folder 0", {"folder": tmp_path}, (SpecError, IsADirectoryError)),
    ]:
        with pytest.raises(error):
            open_volume(table, devices)
        assert _open_files() == before, table


def test_a_stack_stands_on_its_own_tables(image):
    text = "low: 0 16 linear disk 8\nlow: 16 16 zero\ntop: 0 8 linear /dev/mapper/low 12"
    stack = Stack.parse(text)
    assert (stack.order(), stack.top, [ref.name for ref in stack.outside()]) == (
        ("low", "top"),
        "top",
        ["disk"],
    )
    assert str(stack) == text
    with open_volume(stack, {"disk": image}) as volume:
        assert volume.read(0, 4096) == image.read_bytes()[20 * 512 : 24 * 512] + bytes(2048)
        assert volume.table_text() == "0 8 linear low 12"


def test_striping_puts_chunks_in_turn():
    one, two = MemoryStore(8192), MemoryStore(8192)
    with open_volume("0 24 striped 2 3 a 1 b 2", {"a": one, "b": two}) as volume:
        volume.write(0, b"".join(bytes([sector]) * 512 for sector in range(24)))
        assert volume.status_text() == "0 24 striped 2 a b 1 AA"
    assert [one.read(sector, 1)[0] for sector in range(1, 13)] == [0, 1, 2, 6, 7, 8, 12, 13, 14, 18, 19, 20]
    assert [two.read(sector, 1)[0] for sector in range(2, 14)] == [3, 4, 5, 9, 10, 11, 15, 16, 17, 21, 22, 23]


def test_a_suspended_device_says_that_it_would_wait_and_a_bad_reload_keeps_the_old_table():
    disk = MemoryStore(4096)
    with open_volume("0 8 linear m 0", {"m": disk}) as volume:
        device = volume.device
        device.load(Table.parse("0 8 linear m 4"))
        with pytest.raises(SpecError, match="ends past the end of"):
            device.resume()
        with pytest.raises(Suspended):
            volume.read(0, 512)
        device.resume()
        assert volume.read(0, 512) == bytes(512)
        device.load(Table.parse("0 16 zero"))
        device.resume()
        assert volume.size == 8192


def test_copy_on_write_leaves_its_base_alone():
    base = MemoryStore(3 << 16)
    base.write(0, memoryview(b"b" * (3 << 16)))
    cow = CowStore(base)
    cow.write(1, memoryview(b"c" * 512))
    cow.discard(128, 128)
    assert cow.read(0, 3) == b"b" * 512 + b"c" * 512 + b"b" * 512
    assert cow.read(127, 130) == b"b" * 512 + bytes(65536) + b"b" * 512
    cow.write(200, memoryview(b"d" * 512))
    assert cow.read(199, 3) == bytes(512) + b"d" * 512 + bytes(512)
    assert base.read(0, 384) == b"b" * (3 << 16)
    assert set(cow.delta()) == {0, 1 << 16}


def test_holes_of_a_file_are_no_data(tmp_path):
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(MIB)
    with FileStore(path) as store:
        assert list(store.data_extents()) == []
        store.write(256, memoryview(b"x" * 4096))
        assert list(store.data_extents()) == [(256, 8)]
        store.discard(256, 8)
        assert list(store.data_extents()) == []
