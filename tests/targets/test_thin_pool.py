from __future__ import annotations

import contextlib
import errno
import subprocess
import threading
import time
from pathlib import Path

import pytest
from ground import Blank, check_offline, fail_next_writes

from dmcore import targets
from dmcore.errors import IoctlError, ParseError, SpecError, TableRejected
from dmcore.ref import Ref
from dmcore.table import Line, Table
from dmcore.target import NO_FEATURES
from dmcore.targets.thin import ThinStatus
from dmcore.targets.thin_pool import (
    CreateSnap,
    CreateThin,
    Delete,
    Discards,
    Failed,
    NoSpace,
    PoolMode,
    ReleaseMetadataSnap,
    ReserveMetadataSnap,
    SetTransactionId,
    ThinPoolStatus,
    Unreadable,
    Usage,
)

META, DATA = Ref("7:0"), Ref("7:1")
POOL = targets.ThinPool(metadata=META, data=DATA, block_sectors=128, low_water=3)
BLOCK = 128 * 512


class Formatted(Blank):
    """Blank disks, but where a line wants read-only metadata: those must have been formatted before."""

    def prepare(self, line):
        super().prepare(line)
        words = line.params.split()
        if "read_only" in line.params.lower() and len(words) >= 3:
            with self.lab.empty() as device, contextlib.suppress(IoctlError):
                self.lab.control.load(device, [type(line)(0, 8, "thin-pool", f"{' '.join(words[:3])} 0")])


@contextlib.contextmanager
def ground(lab):
    yield Formatted(lab)


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("7:0 7:1 128 3", POOL),
        ("7:0 7:1 +128 03 0", POOL),
        ("7:0 7:1 128 3 0 and more", POOL),
        ("7:0 7:1 256 0 1 READ_only", targets.ThinPool(metadata=META, data=DATA, block_sectors=256, read_only=True)),
        (
            "7:0 7:1 128 3 4 error_if_no_space skip_block_zeroing no_discard_passdown error_if_no_space",
            targets.ThinPool(
                metadata=META,
                data=DATA,
                low_water=3,
                error_if_no_space=True,
                skip_block_zeroing=True,
                no_discard_passdown=True,
            ),
        ),
        ("7:0 7:1 128 3 1 ignore_discard", targets.ThinPool(metadata=META, data=DATA, low_water=3, ignore_discard=True)),
    ],
)  # fmt: skip
def test_reads_what_the_kernel_reads(words, value):
    assert Table.parse(f"0 256 thin-pool {words}") == Table.of(value, 256)


@pytest.mark.parametrize(
    ("words", "index"),
    [
        ("", 3),
        ("7:0 7:1 128", 6),
        ("7:0 7:1 0x80 0", 5),
        ("7:0 7:1 128 -1", 6),
        ("7:0 7:1 128 0 5 read_only", 7),
        ("7:0 7:1 128 0 1", 8),
        ("7:0 7:1 128 0 1 writable", 8),
        ("7:0 7:1 128 18446744073709551616", 6),
    ],
)
def test_refuses_what_the_kernel_refuses_and_names_the_word(words, index):
    with pytest.raises(ParseError) as caught:
        Table.parse(f"0 256 thin-pool {words}")
    assert caught.value.index == index


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("metadata", {"metadata": "7:0"}),
        ("data", {"data": META}),
        ("block_sectors", {"block_sectors": 0}),
        ("block_sectors", {"block_sectors": 64}),
        ("block_sectors", {"block_sectors": 129}),
        ("block_sectors", {"block_sectors": 2097152 + 128}),
        ("low_water", {"low_water": 2**64}),
        ("read_only", {"read_only": 1}),
        (
            "no_discard_passdown",
            dict.fromkeys(
                [
                    "skip_block_zeroing",
                    "ignore_discard",
                    "no_discard_passdown",
                    "read_only",
                    "error_if_no_space",
                ],
                True,
            ),
        ),
    ],
)
def test_refuses_bad_values_and_names_the_field(field, values):
    with pytest.raises(SpecError) as caught:
        targets.ThinPool(**{"metadata": META, "data": DATA, **values})
    assert caught.value.field == field


def test_must_be_alone_in_its_table():
    with pytest.raises(SpecError) as caught:
        Line(8, 256, POOL)
    assert caught.value.field == "start"
    with pytest.raises(SpecError) as caught:
        Table([Line(0, 256, POOL), Line(256, 8, targets.Error())])
    assert caught.value.field == "lines"


def test_value():
    assert POOL.refs() == (META, DATA)
    assert POOL.encode(str) == "7:0 7:1 128 3"
    assert POOL.readback(NO_FEATURES) == POOL
    value = targets.ThinPool(metadata=META, data=DATA, error_if_no_space=True, skip_block_zeroing=True)
    assert value.encode(str) == "7:0 7:1 128 0 2 skip_block_zeroing error_if_no_space"


FRESH = ThinPoolStatus(
    7,
    Usage(113, 1024),
    Usage(2, 512),
    None,
    PoolMode.WRITABLE,
    Discards.PASSED_DOWN,
    NoSpace.QUEUE,
    needs_check=False,
    metadata_low_water=256,
)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("7 113/1024 2/512 - rw discard_passdown queue_if_no_space - 256 ", FRESH),
        (
            "0 1/2 3/4 9 out_of_data_space no_discard_passdown error_if_no_space - 1",
            ThinPoolStatus(
                0, Usage(1, 2), Usage(3, 4), 9, PoolMode.OUT_OF_DATA_SPACE, Discards.UNMAP_ONLY, NoSpace.ERROR, False, 1
            ),
        ),
        (
            "0 1/2 3/4 - ro ignore_discard queue_if_no_space needs_check 1",
            ThinPoolStatus(
                0, Usage(1, 2), Usage(3, 4), None, PoolMode.READ_ONLY, Discards.IGNORED, NoSpace.QUEUE, True, 1
            ),
        ),
        ("Fail", Failed()),
        ("Error", Unreadable()),
    ],
)  # fmt: skip
def test_status(text, status):
    assert POOL.parse_status(text) == status


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fail",
        "Fail x",
        "7 113/1024 2/512 - rw discard_passdown queue_if_no_space -",
        "7 113 2/512 - rw discard_passdown queue_if_no_space - 256",
        "7 113/1024 2/512 x rw discard_passdown queue_if_no_space - 256",
        "7 113/1024 2/512 - wr discard_passdown queue_if_no_space - 256",
        "7 113/1024 2/512 - rw discard_passdown queue_if_no_space - 256 x",
    ],
)
def test_bad_status(text):
    with pytest.raises(ParseError):
        POOL.parse_status(text)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (CreateThin(2**24 - 1), "create_thin 16777215"),
        (CreateSnap(1, 0), "create_snap 1 0"),
        (Delete(0), "delete 0"),
        (SetTransactionId(0, 2**64 - 1), "set_transaction_id 0 18446744073709551615"),
        (ReserveMetadataSnap(), "reserve_metadata_snap"),
        (ReleaseMetadataSnap(), "release_metadata_snap"),
    ],
)
def test_messages(message, text):
    assert message.encode() == text
    assert message.parse_reply("") is None
    with pytest.raises(ParseError):
        message.parse_reply("x")


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("dev_id", lambda: CreateThin(2**24)),
        ("dev_id", lambda: CreateSnap(-1, 0)),
        ("origin", lambda: CreateSnap(0, "1")),
        ("dev_id", lambda: Delete(True)),
        ("current", lambda: SetTransactionId(-1, 0)),
        ("new", lambda: SetTransactionId(0, 2**64)),
    ],
)
def test_refuses_bad_messages(field, make):
    with pytest.raises(SpecError) as caught:
        make()
    assert caught.value.field == field


# On a kernel.


def _refused(number: int, request) -> None:
    with pytest.raises(OSError) as caught:
        request()
    assert caught.value.errno == number


def _pool(lab, **values) -> targets.ThinPool:
    return targets.ThinPool(**{"metadata": lab.refs[0], "data": lab.refs[1], **values})


def _mode(pool) -> PoolMode:
    (status,) = pool.status()
    return status.mode


def _await_mode(pool, mode: PoolMode, *, no_space: NoSpace | None = None) -> ThinPoolStatus:
    deadline = time.monotonic() + 10
    while True:
        (status,) = pool.status()
        if status.mode is mode and no_space in {None, status.no_space}:
            return status
        assert time.monotonic() < deadline, status
        time.sleep(0.02)


@pytest.mark.dm(needs="thin_check")
def test_thin_devices_share_and_keep_their_blocks(lab):
    with lab.device(_pool(lab, low_water=2), 4096) as pool:
        assert pool.table() == Table.of(_pool(lab, low_water=2), 4096)
        (status,) = pool.status()
        assert status.data == Usage(0, 32)
        assert status.metadata.total == 512
        assert 0 < status.metadata.used < 512
        assert (status.transaction_id, status.held_root, status.mode) == (0, None, PoolMode.WRITABLE)
        assert (status.discards, status.no_space) == (Discards.PASSED_DOWN, NoSpace.QUEUE)
        assert (status.needs_check, status.metadata_low_water) == (False, 128)

        pool.send(CreateThin(0))
        with lab.open(targets.Thin(pool=pool.ref, dev_id=0), 1000) as (device, file):
            file.write(512, b"a" * 512)
            file.write(3 * BLOCK, b"b" * 512)
            assert device.status() == [ThinStatus(256, 4 * 128 - 1)]
            with device.suspended():
                pool.send(CreateSnap(1, 0))
            file.write(0, b"c" * 512)
            with lab.open(targets.Thin(pool=pool.ref, dev_id=1), 1000) as (_, copy):
                assert copy.read(0, 1024) == bytes(512) + b"a" * 512
                assert file.read(0, 1024) == b"c" * 512 + b"a" * 512
                copy.write(3 * BLOCK, b"d" * 512)
                assert file.read(3 * BLOCK, 512) == b"b" * 512
                (status,) = pool.status()
                assert status.data.used == 4
                _refused(errno.EBUSY, lambda: pool.send(Delete(1)))
            pool.send(Delete(1))
            (status,) = pool.status()
            assert status.data.used == 2
            file.discard(0, BLOCK)
            assert device.status() == [ThinStatus(128, 4 * 128 - 1)]
            assert file.read(0, 1024) == bytes(1024)
            (status,) = pool.status()
            assert status.data.used == 1
    check_offline("thin_check", lab.disks[0].path)


@pytest.mark.dm(needs="thin_check")
def test_every_message_and_what_it_refuses(lab):
    with lab.device(_pool(lab), 4096) as pool:
        pool.send(CreateThin(5))
        _refused(errno.EEXIST, lambda: pool.send(CreateThin(5)))
        _refused(errno.EEXIST, lambda: pool.send(CreateSnap(5, 5)))
        _refused(errno.ENODATA, lambda: pool.send(CreateSnap(6, 7)))
        _refused(errno.ENODATA, lambda: pool.send(Delete(7)))
        _refused(errno.EINVAL, lambda: pool.message("create_thin 16777216"))
        _refused(errno.EINVAL, lambda: pool.message("resize"))

        pool.send(SetTransactionId(0, 9))
        _refused(errno.EINVAL, lambda: pool.send(SetTransactionId(0, 10)))
        _refused(errno.EINVAL, lambda: pool.send(ReleaseMetadataSnap()))
        pool.send(ReserveMetadataSnap())
        _refused(errno.EBUSY, lambda: pool.send(ReserveMetadataSnap()))
        (status,) = pool.status()
        assert status.transaction_id == 9
        assert 0 < status.held_root < 512
        pool.send(ReleaseMetadataSnap())
        (status,) = pool.status()
        assert status.held_root is None
        pool.send(Delete(5))
    with lab.device(_pool(lab), 4096) as pool:
        (status,) = pool.status()
        assert status.transaction_id == 9, "kept on the metadata device"
    check_offline("thin_check", lab.disks[0].path)


@pytest.mark.dm
def test_features_show_in_the_status(lab):
    words = dict.fromkeys(["skip_block_zeroing", "no_discard_passdown", "error_if_no_space"], True)
    with lab.disk(1) as disk:
        disk.write(0, b"old " * 16384)
    with lab.device(_pool(lab, **words), 4096) as pool:
        (status,) = pool.status()
        assert (status.discards, status.no_space) == (Discards.UNMAP_ONLY, NoSpace.ERROR)
        pool.send(CreateThin(0))
        with lab.open(targets.Thin(pool=pool.ref, dev_id=0), 256) as (_, file):
            file.write(0, b"new!" * 128)
            assert file.read(0, 1024) == b"new!" * 128 + b"old " * 128
    with lab.device(_pool(lab, ignore_discard=True), 4096) as pool:
        (status,) = pool.status()
        assert status.discards is Discards.IGNORED
        with lab.open(targets.Thin(pool=pool.ref, dev_id=0), 256) as (_, file):
            _refused(errno.EOPNOTSUPP, lambda: file.discard(0, BLOCK))


@pytest.mark.dm
def test_an_event_tells_that_the_low_water_mark_is_passed(lab):
    with lab.device(_pool(lab, low_water=31), 4096) as pool:
        pool.send(CreateThin(0))
        before = pool.info().event_nr
        with lab.open(targets.Thin(pool=pool.ref, dev_id=0), 4096) as (_, file):
            file.write(0, b"x" * 512)
            file.write(BLOCK, b"x" * 512)
            assert pool.wait(before) > before


@pytest.mark.dm(needs="thin_check")
def test_out_of_data_space_with_error(lab):
    value = _pool(lab, error_if_no_space=True)
    with lab.device(value, 4 * 128) as pool:
        pool.send(CreateThin(0))
        with lab.open(targets.Thin(pool=pool.ref, dev_id=0), 4096) as (_, file):
            file.write(0, b"x" * 4 * BLOCK)
            _refused(errno.ENOSPC, lambda: file.write(4 * BLOCK, b"y" * BLOCK))
            status = _await_mode(pool, PoolMode.OUT_OF_DATA_SPACE)
            assert status.data == Usage(4, 4)
            assert file.read(0, 512) == b"x" * 512
            file.write(0, b"z" * 512)
            pool.reload(Table.of(value, 8 * 128))
            assert _mode(pool) is PoolMode.WRITABLE
            file.write(4 * BLOCK, b"y" * BLOCK)
            _refused(errno.EINVAL, lambda: pool.reload(Table.of(value, 4 * 128)))
            assert pool.info().suspended, "the refused table is the live one by now"
            pool.reload(Table.of(value, 8 * 128))
            assert file.read(4 * BLOCK, 512) == b"y" * 512
    check_offline("thin_check", lab.disks[0].path)


@contextlib.contextmanager
def _no_space_timeout(seconds: int):
    file = Path("/sys/module/dm_thin_pool/parameters/no_space_timeout")
    before = file.read_text()
    file.write_text(str(seconds))
    try:
        yield
    finally:
        file.write_text(before)


@pytest.mark.dm
def test_out_of_data_space_waits_until_the_pool_grows(lab):
    with lab.device(_pool(lab), 4 * 128) as pool:
        pool.send(CreateThin(0))
        with lab.open(targets.Thin(pool=pool.ref, dev_id=0), 4096) as (_, file):
            file.write(0, b"x" * 4 * BLOCK)
            writer = threading.Thread(target=file.write, args=(4 * BLOCK, b"y" * BLOCK), daemon=True)
            writer.start()
            status = _await_mode(pool, PoolMode.OUT_OF_DATA_SPACE)
            assert status.no_space is NoSpace.QUEUE
            assert writer.is_alive()
            pool.reload(Table.of(_pool(lab), 8 * 128))
            writer.join(10)
            assert not writer.is_alive()
            assert _mode(pool) is PoolMode.WRITABLE
            assert file.read(4 * BLOCK, 512) == b"y" * 512


@pytest.mark.dm
def test_out_of_data_space_gives_up_after_the_timeout(lab):
    with lab.device(_pool(lab), 4 * 128) as pool, _no_space_timeout(1):
        pool.send(CreateThin(0))
        with lab.open(targets.Thin(pool=pool.ref, dev_id=0), 4096) as (_, file):
            file.write(0, b"x" * 4 * BLOCK)
            _refused(errno.ENOSPC, lambda: file.write(4 * BLOCK, b"y" * BLOCK))
            _await_mode(pool, PoolMode.OUT_OF_DATA_SPACE, no_space=NoSpace.ERROR)


@pytest.mark.dm
def test_read_only(lab):
    with pytest.raises(TableRejected), lab.device(_pool(lab, read_only=True), 4096):
        pytest.fail("never formatted")
    with lab.device(_pool(lab), 4096) as pool:
        pool.send(CreateThin(0))
        with lab.open(targets.Thin(pool=pool.ref, dev_id=0), 4096) as (_, file):
            file.write(0, b"x" * 512)
    with lab.device(_pool(lab, read_only=True), 4096) as pool:
        assert _mode(pool) is PoolMode.READ_ONLY
        _refused(errno.EOPNOTSUPP, lambda: pool.send(CreateThin(1)))
        with lab.open(targets.Thin(pool=pool.ref, dev_id=0), 4096) as (_, file):
            assert file.read(0, 512) == b"x" * 512
            file.write(0, b"y" * 512)
            _refused(errno.EIO, lambda: file.write(BLOCK, b"y" * 512))
            assert file.read(0, 512) == b"y" * 512


@pytest.mark.dm
def test_metadata_without_space_need_a_check(lab):
    small = targets.Linear(dev=lab.refs[0])
    with lab.device(small, 16 * 8) as meta, lab.device(_pool(lab, metadata=meta.ref), 4096) as pool:
        made = 0
        with contextlib.suppress(IoctlError):
            for made in range(20):
                pool.send(CreateThin(made))
        assert 0 < made < 19
        (status,) = pool.status()
        assert (status.mode, status.needs_check) == (PoolMode.READ_ONLY, True)
        assert status.metadata.total == 16
        _refused(errno.EOPNOTSUPP, lambda: pool.send(CreateThin(30)))


@pytest.mark.dm
def test_a_failing_metadata_device_fails_pool_and_thin(lab):
    linear = targets.Linear(dev=lab.refs[0])
    with lab.device(linear, 4096) as meta, lab.device(_pool(lab, metadata=meta.ref), 4096) as pool:
        pool.send(CreateThin(0))
        with lab.open(targets.Thin(pool=pool.ref, dev_id=0), 4096) as (device, file):
            file.write(0, b"x" * 512)
            meta.reload(Table.of(targets.Error(), 4096))
            pool.send(CreateThin(1))  # its reply does not tell that the commit failed
            assert pool.status() == [Failed()]
            assert device.status() == [Failed()]
            _refused(errno.EIO, lambda: file.read(0, 512))
            _refused(errno.EOPNOTSUPP, lambda: pool.send(CreateThin(2)))
            assert device.table_text().split()[3:] == ["Fail"]
            meta.reload(Table.of(linear, 4096))
            assert pool.status() == [Failed()]


@pytest.mark.dm(needs="thin_check")
def test_one_failed_commit_makes_the_pool_read_only_until_it_is_checked(lab):
    metadata = targets.Dust(dev=lab.refs[0], block_size=4096)
    with lab.device(metadata, 4096) as dust, lab.device(_pool(lab, metadata=dust.ref), 4096) as pool:
        pool.send(CreateThin(0))
        with lab.open(targets.Thin(pool=pool.ref, dev_id=0), 4096) as (_, file):
            file.write(0, b"x" * 512)
            file.flush()
            fail_next_writes(dust, lab.disks[0].path, 512)
            pool.send(CreateThin(1))
            (status,) = pool.status()
            assert (status.mode, status.needs_check) == (PoolMode.READ_ONLY, True)
            assert file.read(0, 512) == b"x" * 512
            _refused(errno.EIO, lambda: file.write(BLOCK, b"y" * 512))
    with lab.device(_pool(lab), 4096) as pool:
        (status,) = pool.status()
        assert (status.mode, status.needs_check) == (PoolMode.READ_ONLY, True), "kept on the metadata device"
    subprocess.run(["thin_check", "--clear-needs-check-flag", lab.disks[0].path], check=True, timeout=30)
    with lab.device(_pool(lab), 4096) as pool:
        assert _mode(pool) is PoolMode.WRITABLE
        _refused(errno.ENODATA, lambda: pool.send(Delete(1)))
