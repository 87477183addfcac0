"""What container runtimes do: late devices, verity layers, pieces of a disk, encrypted scratch disks."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from dmcore import containers
from dmcore.containers import CreateFlags
from dmcore.errors import (
    DeviceBusy,
    DeviceMissing,
    FormatError,
    SpecError,
    TableRejected,
    ToolFailed,
    Unsupported,
)
from dmcore.kernel import udev
from dmcore.kernel.block import BlockFile
from dmcore.kernel.loop import LoopDevice
from dmcore.kernel.mount import mount, unmount
from dmcore.ref import Ref
from dmcore.table import Line, Table
from dmcore.targets import Error, Linear, Zero

pytestmark = pytest.mark.dm

MIB = 1 << 20
ROOT_HASH = b"Root hash:"


@pytest.fixture
def big(tmp_path):
    """A loop device of 64 MiB in the guest's memory."""
    backing = tmp_path / "big.img"
    backing.touch()
    os.truncate(backing, 64 * MIB)
    with LoopDevice.attach(backing, direct_io=False) as loop:
        yield loop


# create_device, remove_device


def test_create_and_remove(control, name, disk):
    line = Line(0, 64, Linear(dev=disk.ref, offset=8))
    path = containers.create_device(name, CreateFlags.NONE, [line, Line(64, 8, Error())])
    assert path.stat().st_rdev == control.info(name).dev.rdev
    assert not control.info(name).readonly
    assert len(control.table(name)) == 2
    containers.remove_device(name)
    assert not control.exists(name)
    assert not path.exists()
    with pytest.raises(DeviceMissing):
        containers.remove_device(name)


def test_readonly(control, name, disk):
    with LoopDevice.attach(disk.backing, direct_io=False, readonly=True) as below:
        table = Table.of(Linear(dev=below.ref), 64)
        path = containers.create_device(name, CreateFlags.READONLY, table)
        assert control.info(name).readonly
        with pytest.raises(OSError) as caught, BlockFile(path) as file:
            file.write(0, bytes(512))
        assert caught.value.errno == errno.EPERM
        containers.remove_device(name)


def test_a_disk_that_comes_late(control, name, disk, tmp_path):
    """The path does not exist at first: ENODEV or ENOENT, by kernel."""
    late = tmp_path / "late"
    timer = threading.Timer(
        0.5,
        os.mknod,
        (late, 0o60600, disk.path.stat().st_rdev),
    )
    timer.start()
    start = time.monotonic()
    containers.create_device(name, CreateFlags.NONE, Table.of(Linear(dev=Ref(str(late))), 64), timeout=60)
    assert time.monotonic() - start > 0.3
    assert control.info(name).live
    containers.remove_device(name)


def test_a_disk_that_never_comes(control, name):
    table = Table.of(Linear(dev=Ref("/dev/nonexistent")), 64)
    start = time.monotonic()
    with pytest.raises(TableRejected) as caught:
        containers.create_device(name, CreateFlags.NONE, table, timeout=0.5)
    assert 0.2 < time.monotonic() - start < 30
    assert caught.value.errno in {errno.ENOENT, errno.ENODEV}
    assert any("tries within 0.5 s" in note for note in caught.value.__notes__)
    assert not control.exists(name)
    with pytest.raises(TableRejected) as once:
        containers.create_device(name, CreateFlags.NONE, table, timeout=0)
    assert not hasattr(once.value, "__notes__")


def test_other_failures_are_not_tried_again(control, name, disk):
    start = time.monotonic()
    with pytest.raises(TableRejected) as caught:
        containers.create_device(name, CreateFlags.NONE, Table.of(Linear(dev=disk.ref), 1 << 30), timeout=60)
    assert caught.value.errno == errno.EINVAL
    assert not hasattr(caught.value, "__notes__")
    assert time.monotonic() - start < 30
    assert not control.exists(name)


def test_a_name_that_gets_free(control, name):
    containers.create_device(name, CreateFlags.NONE, Table.of(Zero(), 8))
    with pytest.raises(DeviceBusy):
        containers.create_device(name, CreateFlags.NONE, Table.of(Zero(), 16), timeout=0.3)
    assert control.table(name)[0].length == 8
    timer = threading.Timer(0.4, containers.remove_device, (name,))
    timer.start()
    containers.create_device(name, CreateFlags.NONE, Table.of(Zero(), 16), timeout=60)
    timer.join()
    assert control.table(name)[0].length == 16
    containers.remove_device(name)


def test_remove_waits_until_it_is_closed(control, name):
    path = containers.create_device(name, CreateFlags.NONE, Table.of(Zero(), 8))
    holder = path.open("rb")
    with pytest.raises(DeviceBusy, match="held by"):
        containers.remove_device(name, timeout=0.2)
    assert control.exists(name)
    timer = threading.Timer(0.4, holder.close)
    timer.start()
    containers.remove_device(name, timeout=60)
    timer.join()
    assert not control.exists(name)


@pytest.mark.parametrize("flags", [0, 1, "ro"])
def test_flags_are_flags(name, flags):
    with pytest.raises(SpecError, match="flags"):
        containers.create_device(name, flags, Table.of(Zero(), 8))


# pieces of a disk


def test_a_piece_of_a_disk(name, disk):
    with BlockFile(disk.path) as file:
        file.write(MIB, b"layer" * 100 + bytes(12))
    path = containers.create_zero_sector_linear_target(disk.path, name, offset="1M", size=64 << 10)
    with BlockFile(path, readonly=True) as file:
        assert file.size == 64 << 10
        assert file.read(0, 512).startswith(b"layerlayer")
        assert (
            not os.access(path, os.W_OK)
            or Path(f"/sys/dev/block/{path.stat().st_rdev >> 8}:{path.stat().st_rdev & 255}/ro").read_text()
            == "1\n"
        )
    containers.remove_device(name)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"offset": 100, "size": 512}, "offset"),
        ({"size": 100}, "size"),
        ({"size": 0}, "length"),
        ({"offset": -512, "size": 512}, "offset"),
    ],
)
def test_pieces_that_cannot_be(control, name, disk, arguments, field):
    with pytest.raises(SpecError) as caught:
        containers.create_zero_sector_linear_target(disk.path, name, **arguments)
    assert caught.value.field == field
    with pytest.raises(SpecError, match="path"):
        containers.create_zero_sector_linear_target("disk.img", name, size=512)
    with pytest.raises(TableRejected):
        containers.create_zero_sector_linear_target(disk.path, name, offset="8M", size=512)
    assert not control.exists(name)


# verity


class Image:
    """Data with their tree behind them, made by veritysetup."""

    def __init__(self, disk, *options, size=MIB, superblock=False):
        self.size = size
        with BlockFile(disk.path) as file:
            file.write(0, os.urandom(size))
        words = [
            "veritysetup",
            "format",
            str(disk.path),
            str(disk.path),
            f"--hash-offset={size}",
            "--data-blocks",
            str(size // 4096),
            *options,
        ]
        if not superblock:
            words.append("--no-superblock")
        done = subprocess.run(words, check=True, capture_output=True, timeout=60)
        said = dict(line.split(b":", 1) for line in done.stdout.splitlines() if b":" in line)
        self.root = bytes.fromhex(said[b"Root hash"].strip().decode())
        salt = said[b"Salt"].strip().decode()
        self.salt = b"" if salt == "-" else bytes.fromhex(salt)

    def reads(self, path):
        with BlockFile(path, readonly=True) as file:
            return file.read(0, self.size)


@pytest.mark.parametrize("superblock", [False, True])
@pytest.mark.parametrize(
    "kind",
    [((), {}), (("--salt=-",), {}), (("--hash=sha512", "--format=0"), {"algorithm": "sha512", "version": 0})],
)
def test_verity(control, name, disk, superblock, kind):
    options, arguments = kind
    image = Image(disk, *options, superblock=superblock)
    path = containers.create_verity_target(
        disk.path, name, size=image.size, root=image.root, salt=image.salt, superblock=superblock, **arguments
    )
    with BlockFile(disk.path, readonly=True) as below:
        assert image.reads(path) == below.read(0, image.size)
    assert control.info(name).readonly
    containers.remove_device(name)
    with BlockFile(disk.path) as below:
        block = bytearray(below.read(8192, 4096))
        block[77] ^= 1
        below.write(8192, block)
    path = containers.create_verity_target(
        disk.path, name, size=image.size, root=image.root, salt=image.salt, superblock=superblock, **arguments
    )
    with BlockFile(path, readonly=True) as file:
        file.read(0, 8192)
        with pytest.raises(OSError) as caught:
            file.read(8192, 4096)
    assert caught.value.errno == errno.EIO
    containers.remove_device(name)


def test_verity_and_a_superblock_that_says_otherwise(control, name, disk):
    image = Image(disk, superblock=True)
    good = {"size": image.size, "root": image.root, "salt": image.salt, "superblock": True}
    for wrong, said in (
        ({"size": image.size // 2}, "no verity superblock"),
        ({"salt": b"x"}, "salt"),
        ({"version": 0}, "version"),
        ({"algorithm": "sm3"}, "algorithm"),
        ({"size": 8 * MIB}, "ends before"),
    ):
        with pytest.raises(FormatError, match=said):
            containers.create_verity_target(disk.path, name, **{**good, **wrong})
    assert not control.exists(name)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"size": 1000}, "size"),
        ({"size": 0}, "size"),
        ({"size": 512}, "size"),
        ({"root": b"short"}, "root"),
        ({"block_size": 4095, "size": 0}, "size"),
        ({"block_size": 100}, "block_size"),
    ],
)
def test_verity_values_that_cannot_be(name, disk, arguments, field):
    with pytest.raises(SpecError) as caught:
        containers.create_verity_target(disk.path, name, **{"size": MIB, "root": bytes(32), **arguments})
    assert caught.value.field == field


# encrypted scratch disks


def raw(loop):
    """What is on the disk below."""
    return Path(loop.backing).read_bytes()


@pytest.fixture
def scratch(control, name, big):
    path = containers.encrypt_device(big.path, name)
    yield path
    if control.exists(name):
        containers.cleanup_crypt_device(name)


def test_scratch(control, name, big, scratch, tmp_path):
    assert scratch.stat().st_rdev == control.info(name).dev.rdev
    crypt, integrity = control.table(name)[0], control.table(f"{name}_dif")[0]
    assert (crypt.type, integrity.type) == ("crypt", "integrity")
    assert "authenc(hmac(sha256),xts(aes))" in crypt.params
    assert ":logon:" in crypt.params
    assert "sector_size:4096" in crypt.params
    assert integrity.params.split()[3] == "D"
    check = subprocess.run(["e2fsck", "-fn", str(scratch)], capture_output=True, timeout=120, check=False)
    assert check.returncode == 0, check.stdout
    folder = tmp_path / "mnt"
    folder.mkdir()
    with mounted(scratch, folder):
        (folder / "file").write_bytes(b"plaintext" * 50_000)
        for number in range(200):
            (folder / f"{number}").write_text("x" * number)
    with mounted(scratch, folder):
        assert (folder / "file").read_bytes() == b"plaintext" * 50_000
        assert [(folder / f"{number}").stat().st_size for number in range(200)] == list(range(200))
    assert b"plaintext" not in raw(big)
    assert raw(big).startswith(b"LUKS")
    with BlockFile(scratch) as file:
        refused = 0
        for offset in range(0, file.size, MIB):
            try:
                file.read(offset, 4096)
            except OSError as error:
                refused += error.errno == errno.EILSEQ
    assert refused, "blocks that were never written cannot be read, so nothing was wiped"
    containers.cleanup_crypt_device(name)
    assert not control.exists(name)
    assert not control.exists(f"{name}_dif")
    with pytest.raises(DeviceMissing):
        containers.cleanup_crypt_device(name)


@contextlib.contextmanager
def mounted(path, folder):
    mount(path, folder, "ext4")
    try:
        yield
    finally:
        unmount(folder)


def test_a_scratch_disk_in_use(control, name, scratch, tmp_path):
    with mounted(scratch, tmp_path):
        with pytest.raises(ToolFailed) as caught:
            containers.cleanup_crypt_device(name, timeout=0.3)
        assert caught.value.status == 5
        assert control.exists(name)
    with pytest.raises(SpecError, match="name"):
        containers.encrypt_device("/dev/null", name)


def test_damage_is_seen(control, name, big, scratch):
    with BlockFile(scratch) as file:
        file.write(8 * MIB, b"secret" * 682 + bytes(4))
    before = raw(big)
    with BlockFile(scratch) as file:
        file.write(8 * MIB, b"Secret" * 682 + bytes(4))
    after = raw(big)
    first = next(index for index in range(len(before)) if before[index] != after[index])
    with BlockFile(big.path) as below:
        place = first // 4096 * 4096
        block = bytearray(below.read(place, 4096))
        block[first % 4096] ^= 0xFF
        below.write(place, block)
    with BlockFile(scratch) as file:
        file.drop_caches()
        with pytest.raises(OSError) as caught:
            file.read(8 * MIB, 4096)
    assert caught.value.errno == errno.EILSEQ


def clean(control, name, loop):
    assert not control.exists(name)
    assert not control.exists(f"{name}_dif")
    assert not raw(loop).startswith(b"LUKS")
    assert b"LUKS\xba\xbe" not in raw(loop)[: 1 << 16]
    assert b"SKUL\xba\xbe" not in raw(loop)[: 1 << 16]


def test_format_fails(control, name, tmp_path):
    """Too small for the headers."""
    backing = tmp_path / "tiny.img"
    backing.write_bytes(b"precious" * (MIB // 8))
    with LoopDevice.attach(backing, direct_io=False) as loop:
        with pytest.raises(ToolFailed) as caught:
            containers.encrypt_device(loop.path, name)
        assert "luksFormat" in str(caught.value)
        assert caught.value.output
        clean(control, name, loop)


def test_a_source_in_use_is_left_alone(control, name, big):
    """Also where it is a LUKS device itself: its header stays."""
    containers.encrypt_device(big.path, f"{name}-one")
    header = raw(big)[:65536]
    try:
        with pytest.raises(ToolFailed):
            containers.encrypt_device(big.path, f"{name}-two")
        assert raw(big)[:65536] == header
        assert control.exists(f"{name}-one")
    finally:
        containers.cleanup_crypt_device(f"{name}-one")


@pytest.fixture
def replace_tool(tmp_path, monkeypatch):
    """Put a program of ours before the real one."""

    def replace(tool, script):
        folder = tmp_path / "bin"
        folder.mkdir()
        (folder / tool).write_text(f"#!/bin/sh\n{script}\n")
        (folder / tool).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    return replace


def test_open_fails(control, name, big, replace_tool):
    real = shutil.which("cryptsetup")
    replace_tool("cryptsetup", f'[ "$1" = luksOpen ] && {{ echo no >&2; exit 5; }}; exec {real} "$@"')
    with pytest.raises(ToolFailed) as caught:
        containers.encrypt_device(big.path, name)
    assert (caught.value.status, caught.value.output) == (5, "no")
    clean(control, name, big)


@pytest.mark.newest_kernel
@pytest.mark.parametrize("script", ["echo broken; exit 3", "kill -9 $$", "sleep 100"])
def test_mkfs_fails(control, name, big, replace_tool, script):
    replace_tool("mkfs.ext4", script)
    with pytest.raises(ToolFailed) as caught:
        containers.encrypt_device(big.path, name, timeout=10 if "sleep" in script else 120)
    assert caught.value.status == {"e": 3, "k": -9, "s": None}[script[0]]
    clean(control, name, big)


def test_bad_options_for_mkfs(control, name, big):
    with pytest.raises(ToolFailed, match="mkfs"):
        containers.encrypt_device(big.path, name, mkfs_options=["--nonsense"])
    clean(control, name, big)


def test_the_copy_fails(control, name, big):
    """The disk below fails where the file system's root folder goes."""
    start, length, end = 18 * MIB // 512, 44 * MIB // 512, 2 * MIB // 512
    tail = Line(start + length, end, Linear(dev=big.ref, offset=start + length))  # cryptsetup reads there
    broken = Table([Line(0, start, Linear(dev=big.ref)), Line(start, length, Error()), tail])
    path = containers.create_device(f"{name}-broken", CreateFlags.NONE, broken)
    with pytest.raises(OSError) as caught:
        containers.encrypt_device(path, name)
    assert caught.value.errno == errno.EIO
    clean(control, name, big)
    containers.remove_device(f"{name}-broken")


def test_no_cryptsetup(control, name, big, tmp_path, monkeypatch):
    monkeypatch.setattr(containers.shutil, "which", lambda *_args, **_more: None)
    with pytest.raises(Unsupported, match="cryptsetup-bin"):
        containers.encrypt_device(big.path, name)
    assert set(raw(big)) == {0}


def test_a_source_that_is_not_there(name):
    with pytest.raises(OSError) as caught:
        containers.encrypt_device("/dev/nonexistent", name)
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(SpecError, match="path"):
        containers.encrypt_device("relative", name)


@pytest.mark.skipif(udev.running(), reason="udev makes the nodes")
def test_nothing_is_left_in_dev(name, scratch):
    containers.cleanup_crypt_device(name)
    assert [path for path in Path("/dev/mapper").iterdir() if path.name.startswith(name)] == []
