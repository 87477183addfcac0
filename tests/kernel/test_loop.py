"""LoopDevice on a real kernel, against losetup's view."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import threading
from pathlib import Path

import pytest

from dmcore.errors import DeviceMissing, IoctlError, SpecError
from dmcore.kernel.loop import LoopDevice

pytestmark = pytest.mark.dm

MIB = 1 << 20


@pytest.fixture
def backing(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(4 * MIB)
    return path


def losetup() -> dict[str, dict[str, object]]:
    out = subprocess.run(
        ["losetup", "--json", "-l", "-O", "NAME,BACK-FILE,OFFSET,SIZELIMIT,RO,DIO,AUTOCLEAR,LOG-SEC"],
        check=True, capture_output=True, text=True, timeout=30,
    ).stdout  # fmt: skip
    return {row["name"]: row for row in json.loads(out)["loopdevices"]} if out.strip() else {}


def test_losetup_sees_what_we_asked_for(backing):
    before = losetup()
    with LoopDevice.attach(backing, block_size=4096, offset=4096, size_limit=MIB, readonly=True) as loop:
        row = losetup()[str(loop.path)]
        assert row["back-file"] == str(backing)
        assert (row["offset"], row["sizelimit"], row["ro"], row["autoclear"]) == (4096, MIB, True, True)
        assert row["log-sec"] == 4096 == loop.block_size
        assert row["dio"] is loop.direct_io
        assert loop.size == MIB
        assert loop.readonly
        assert os.stat(loop.path).st_rdev == loop.dev
        assert loop.ref.name == f"7:{os.minor(loop.dev)}"
    assert losetup() == before


@pytest.mark.parametrize("block_size", [512, 1024, 2048, 4096])
def test_block_sizes(backing, block_size):
    with LoopDevice.attach(backing, block_size=block_size, direct_io=False) as loop:
        assert loop.block_size == block_size
        assert loop.size == 4 * MIB
        assert not loop.direct_io


def test_size_is_rounded_down_and_follows_set_capacity(tmp_path):
    path = tmp_path / "odd"
    path.write_bytes(b"x" * 1000)
    with LoopDevice.attach(path, direct_io=False) as loop:
        assert loop.size == 512
        os.truncate(path, 3 * 512)
        assert loop.size == 512
        assert loop.set_capacity() == 3 * 512


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"block_size": 513}, "block_size"),
        ({"block_size": 256}, "block_size"),
        ({"block_size": 8192}, "block_size"),
        ({"offset": -1}, "offset"),
        ({"size_limit": 1 << 63}, "size_limit"),
        ({"offset": 4 * MIB}, "path"),
    ],
)
def test_bad_values_are_refused_by_name_and_leave_nothing(backing, options, field):
    before = losetup()
    with pytest.raises(SpecError) as caught:
        LoopDevice.attach(backing, **options)
    assert caught.value.field == field
    assert losetup() == before


def test_a_file_that_cannot_back_a_loop(tmp_path):
    with pytest.raises(SpecError, match="regular file or a block device"):
        LoopDevice.attach("/dev/null")
    with pytest.raises(FileNotFoundError):
        LoopDevice.attach(tmp_path / "none")


def test_the_kernel_refuses_an_unbound_loop_as_backing():
    free = subprocess.run(
        ["losetup", "-f"], check=True, capture_output=True, text=True, timeout=30
    ).stdout.strip()
    before = losetup()
    with pytest.raises((IoctlError, SpecError)):
        LoopDevice.attach(free)
    assert losetup() == before


def test_autoclear_frees_the_device_when_the_holder_is_gone(backing):
    loop = LoopDevice.attach(backing)
    path = str(loop.path)
    os.close(loop._fd)
    loop._fd = -1
    for _ in range(200):
        if path not in losetup():
            break
    assert path not in losetup()


def test_without_autoclear_it_stays_until_detached(backing):
    loop = LoopDevice.attach(backing, autoclear=False)
    assert losetup()[str(loop.path)]["autoclear"] is False
    loop.detach()
    assert str(loop.path) not in losetup()
    loop.detach()
    with pytest.raises(DeviceMissing, match="already detached"):
        _ = loop.size


def test_another_opener_keeps_it_and_the_kernel_frees_it_then(backing):
    loop = LoopDevice.attach(backing)
    with loop.path.open("rb"):
        other = os.open(loop.path, os.O_RDONLY)
        loop.detach(timeout=0.1)
        assert os.read(other, 512) == bytes(512)
        os.close(other)
    for _ in range(200):
        if str(loop.path) not in losetup():
            break
    assert str(loop.path) not in losetup()


def test_many_at_once_survive_the_get_free_race(tmp_path):
    loops: list[LoopDevice] = []
    failures: list[BaseException] = []

    def attach(number: int) -> None:
        path = tmp_path / f"disk{number}"
        path.write_bytes(bytes(4096))
        try:
            loops.append(LoopDevice.attach(path))
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            failures.append(error)

    threads = [threading.Thread(target=attach, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert failures == []
        assert len({loop.path for loop in loops}) == 12
    finally:
        for loop in loops:
            loop.detach()
    assert not any(str(tmp_path) in str(row["back-file"]) for row in losetup().values())


def test_direct_io_is_reported_as_granted(backing):
    with LoopDevice.attach(backing) as loop:
        assert loop.direct_io is losetup()[str(loop.path)]["dio"]
        assert loop.set_direct_io(False) is False
        assert losetup()[str(loop.path)]["dio"] is False


def test_writing_a_read_only_loop_is_eperm(backing):
    with LoopDevice.attach(backing, readonly=True) as loop:
        fd = os.open(loop.path, os.O_RDWR)
        try:
            with pytest.raises(OSError) as caught:
                os.write(fd, bytes(512))
            assert caught.value.errno == errno.EPERM
        finally:
            os.close(fd)
