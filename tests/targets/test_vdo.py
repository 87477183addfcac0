from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from formatted import BLOCK, vdo_image

from dmcore.errors import IoctlError, ParseError, SpecError, TableRejected
from dmcore.kernel.block import BlockFile
from dmcore.kernel.device import Device
from dmcore.kernel.loop import LoopDevice
from dmcore.ref import Ref
from dmcore.table import Line, Table
from dmcore.target import Target
from dmcore.targets import Delay, Flakey, Linear
from dmcore.targets.delay import Delayed
from dmcore.targets.vdo import (
    Config,
    Dump,
    DumpOnShutdown,
    IndexAction,
    IndexMessage,
    SetCompression,
    Stats,
    Vdo,
    VdoMode,
    VdoStatus,
)

A = Ref("7:0")


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("V4 7:0 262144 4096 32768 16380", Vdo(dev=A, physical_blocks=262144)),
        (
            "V4 7:0 +262144 512 32768 1 bio 4 compression on hash 1 logical 2 physical 1 deduplication off bio 2",
            Vdo(
                dev=A,
                physical_blocks=262144,
                minimum_io=512,
                era_length=1,
                bio=2,
                hash=1,
                logical=2,
                physical=1,
                compression=True,
                deduplication=False,
            ),
        ),
    ],
)
def test_reads_what_the_kernel_reads(words, value):
    assert Table.parse(f"0 2048 vdo {words}") == Table.of(value, 2048)
    assert Table.parse(str(Table.of(value, 2048))) == Table.of(value, 2048)


@pytest.mark.parametrize(
    ("words", "index"),
    [
        ("", 3),
        ("V5 7:0 1 4096 32768 1", 3),
        ("V4 7:0 x 4096 32768 1", 5),
        ("V4 7:0 1 1024 32768 1", 6),
        ("V4 7:0 1 4096 32768", 8),
        ("V4 7:0 1 4096 32768 1 bio", 10),
        ("V4 7:0 1 4096 32768 1 compression yes", 10),
        ("V4 7:0 1 4096 32768 1 Bio 1", 9),
    ],
)
def test_refuses_what_the_kernel_refuses_and_names_the_word(words, index):
    with pytest.raises(ParseError) as caught:
        Table.parse(f"0 2048 vdo {words}")
    assert caught.value.index == index


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("minimum_io", lambda: Vdo(dev=A, physical_blocks=1, minimum_io=1024)),
        ("bio", lambda: Vdo(dev=A, physical_blocks=1, bio=0)),
        ("logical", lambda: Vdo(dev=A, physical_blocks=1, logical=1)),
        ("cache_blocks", lambda: Vdo(dev=A, physical_blocks=1, logical=9, physical=1, hash=1)),
        ("maxDiscard", lambda: Vdo(dev=A, physical_blocks=1, maxDiscard=2**20)),
        ("compression", lambda: Vdo(dev=A, physical_blocks=1, compression="on")),
        ("length", lambda: Line(0, 7, Vdo(dev=A, physical_blocks=1))),
        ("on", lambda: SetCompression(1)),
        ("action", lambda: IndexMessage("index-close")),
    ],
)
def test_refuses_bad_values_and_names_the_field(field, make):
    with pytest.raises(SpecError) as caught:
        make()
    assert caught.value.field == field


def test_status_and_messages():
    value = Vdo(dev=A, physical_blocks=262144)
    assert value.parse_status("/dev/dm-3 normal - online offline 91 262144") == VdoStatus(
        Ref("/dev/dm-3"), VdoMode.NORMAL, False, "online", False, 91, 262144
    )
    assert value.parse_status("/dev/sdb read-only recovering error online 0 1").recovering
    for text in ("", "/dev/sdb broken - online online 1 1", "/dev/sdb normal - online online 1"):
        with pytest.raises(ParseError):
            value.parse_status(text)
    sent = (
        SetCompression(True),
        IndexMessage(IndexAction.CLOSE),
        Dump(),
        DumpOnShutdown(),
        Stats(),
        Config(),
    )
    words = ["compression on", "index-close", "dump", "dump-on-shutdown", "stats", "config"]
    assert [message.encode() for message in sent] == words
    assert Stats().parse_reply("{ version : 36, }") == "{ version : 36, }"


# On a kernel.

LOGICAL = 4096


@pytest.fixture
def value(lab, tmp_path) -> Iterator[Vdo]:
    """A new vdo of two slabs, without an index."""
    size, blocks = vdo_image(2, LOGICAL)
    image = tmp_path / "vdo"
    with image.open("wb") as file:
        file.truncate(size * BLOCK)
        for at, content in blocks.items():
            file.seek(at * BLOCK)
            file.write(content)
    with LoopDevice.attach(image) as disk:
        yield Vdo(
            dev=Ref(str(disk.path)),
            physical_blocks=size,
            cache_blocks=4096,
            era_length=16,
            deduplication=False,
        )


@contextlib.contextmanager
def _running(lab, value: Vdo) -> Iterator[tuple[Device, BlockFile]]:
    with lab.open(value, LOGICAL * 8) as (device, file):
        assert device.table() == Table.of(value, LOGICAL * 8)
        yield device, file


@pytest.mark.dm
def test_keeps_what_is_written_and_says_how_many_blocks_that_takes(lab, value):
    with _running(lab, value) as (device, file):
        (status,) = device.status()
        assert (status.dev, status.mode, status.recovering) == (value.dev, VdoMode.NORMAL, False)
        assert (status.index, status.compressing, status.total) == ("closed", False, value.physical_blocks)
        empty = status.used
        for number in range(8):
            file.write(number * BLOCK, bytes([number + 1]) * BLOCK)
        file.write(8 * BLOCK, bytes(BLOCK))
        file.flush()
        assert device.status()[0].used >= empty + 8, "zeros take none; the map's own blocks do"
    with _running(lab, value) as (device, file):
        for number in range(8):
            assert file.read(number * BLOCK, BLOCK) == bytes([number + 1]) * BLOCK
        assert not any(file.read(8 * BLOCK, 2 * BLOCK))
        file.discard(0, 8 * BLOCK)
        assert not any(file.read(0, BLOCK))


@pytest.mark.dm
def test_every_message(lab, value):
    with _running(lab, value) as (device, _):
        device.send(SetCompression(True))
        assert device.status()[0].compressing
        device.send(SetCompression(False))
        assert not device.status()[0].compressing
        assert "dataBlocksUsed" in device.send(Stats())
        assert "physicalSize" in device.send(Config())
        device.send(Dump())
        device.send(DumpOnShutdown())
        device.send(IndexMessage(IndexAction.DISABLE))
        with pytest.raises(IoctlError) as unknown:
            device.message("nonsense")
        assert unknown.value.errno == errno.EINVAL


@pytest.mark.dm
def test_the_kernel_prints_the_words_that_it_was_given(lab, value, record_property):
    given = [
        replace(value, minimum_io=512, ack=0, bio=2, bioRotationInterval=1, cpu=2),
        replace(value, cache_blocks=8192, hash=1, logical=2, physical=1, maxDiscard=9, compression=True),
        replace(value, hash=0, logical=0, physical=0, deduplication=None, compression=False),
    ]
    for one in given:
        table = Table.of(one, LOGICAL * 8)
        lab.supports(table)
        with lab.empty() as device:
            lab.control.load(device, table.encode(str))
            assert Table.from_lines(lab.control.table(device, inactive=True)) == table
    record_property("dm_read_back", f"vdo {len(given)}")


@pytest.mark.dm
def test_what_was_formatted_for_another_size_is_refused(lab, value):
    for wrong, length in (
        (replace(value, physical_blocks=value.physical_blocks - 1), LOGICAL * 8),
        (replace(value, dev=lab.refs[0]), LOGICAL * 8),
        (value, LOGICAL * 8 - 8),
    ):
        with pytest.raises(TableRejected), lab.device(wrong, length):
            pass


@contextlib.contextmanager
def _over(lab, value: Vdo) -> Iterator[tuple[Device, Vdo]]:
    """Put the vdo on a device that can be told to fail."""
    with lab.device(Linear(dev=value.dev), value.physical_blocks * 8) as below:
        yield below, replace(value, dev=below.ref)


def _become(below: Device, target: Target, value: Vdo) -> None:
    below.reload(Table.of(target, value.physical_blocks * 8))


def _write_through(file: BlockFile, byte: bytes) -> None:
    file.write(0, byte * BLOCK)
    file.flush()


@pytest.mark.dm
def test_a_disk_that_takes_no_writes_makes_it_read_only(lab, value):
    with _over(lab, value) as (below, vdo), _running(lab, vdo) as (device, file):
        _write_through(file, b"k")
        _become(below, Flakey(dev=value.dev, up=0, down=1, error_writes=True), value)
        with pytest.raises(OSError) as failed:
            _write_through(file, b"l")
        assert failed.value.errno == errno.EIO
        assert device.status()[0].mode is VdoMode.READ_ONLY
        assert file.read(0, BLOCK) == b"k" * BLOCK
        _become(below, Linear(dev=value.dev), value)


@pytest.mark.dm
def test_a_power_cut_is_recovered_from_and_the_status_says_so(lab, value):
    with _over(lab, value) as (below, vdo):
        with _running(lab, vdo) as (_, file):
            file.write(0, b"k" * BLOCK)
            file.flush()
            _become(below, Flakey(dev=value.dev, up=0, down=1, drop_writes=True), value)
        _become(below, Delay(read=Delayed(value.dev, 0, 400)), value)
        with _running(lab, vdo) as (device, file):
            (status,) = device.status()
            assert (status.mode, status.recovering) == (VdoMode.RECOVERING, True)
            deadline = time.monotonic() + 60
            while (status := device.status()[0]).recovering:
                assert time.monotonic() < deadline, f"still {status}"
                time.sleep(0.1)
            assert status.mode is VdoMode.NORMAL
            assert file.read(0, BLOCK) == b"k" * BLOCK
            _become(below, Linear(dev=value.dev), value)
