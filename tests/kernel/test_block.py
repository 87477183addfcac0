"""BlockFile on a real loop device."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from dmcore.errors import SpecError
from dmcore.kernel.block import BlockFile
from dmcore.kernel.loop import LoopDevice

pytestmark = pytest.mark.dm

MIB = 1 << 20


@pytest.fixture
def loop(tmp_path: Path):
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(4 * MIB)
    with LoopDevice.attach(path) as device:
        yield device


@pytest.mark.parametrize("direct", [True, False])
def test_what_is_written_is_read_and_reaches_the_backing_file(loop, direct):
    data = bytes(range(256)) * 8192  # 2 MiB: two pieces
    with BlockFile(loop.path, direct=direct) as file:
        file.write(MIB, data)
        file.flush()
        assert file.read(MIB, len(data)) == data
        assert file.read(0, 512) == bytes(512)
        assert file.size == 4 * MIB
    assert loop.backing.read_bytes()[MIB : 3 * MIB] == data


def test_zeroes_and_discard(loop):
    with BlockFile(loop.path) as file:
        file.write(0, b"\xff" * MIB)
        file.write_zeroes(4096, 4096)
        assert file.read(0, 12288) == b"\xff" * 4096 + bytes(4096) + b"\xff" * 4096
        file.discard(0, MIB)
        assert file.read(0, MIB) == bytes(MIB)


@pytest.mark.parametrize(
    ("offset", "length", "field"),
    [(1, 512, "offset"), (0, 511, "length"), (-512, 512, "offset"), (4 * MIB, 512, "length")],
)
def test_ranges_that_direct_io_cannot_do(loop, offset, length, field):
    with BlockFile(loop.path) as file:
        with pytest.raises(SpecError) as caught:
            file.read(offset, length)
        assert caught.value.field == field


def test_errors_name_the_node(loop):
    loop.detach()
    with LoopDevice.attach(loop.backing, readonly=True) as readonly, BlockFile(readonly.path) as file:
        with pytest.raises(OSError) as caught:
            file.write(0, bytes(512))
        assert caught.value.errno == errno.EPERM
        assert caught.value.filename == str(readonly.path)


def test_a_readonly_open_cannot_write(loop):
    with BlockFile(loop.path, readonly=True) as file, pytest.raises(OSError) as caught:
        file.write(0, bytes(512))
    assert caught.value.errno == errno.EBADF


def test_close_twice(loop):
    file = BlockFile(loop.path)
    file.close()
    file.close()
