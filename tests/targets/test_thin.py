from __future__ import annotations

import contextlib
import errno
from dataclasses import replace

import pytest
from ground import Ground

from dmcore import targets
from dmcore.errors import IoctlError, ParseError, SpecError, TableRejected
from dmcore.formats.persistent_data import Reader
from dmcore.formats.thin import SuperBlock
from dmcore.model.stores import FileStore
from dmcore.ref import Ref
from dmcore.table import Table
from dmcore.target import NO_FEATURES
from dmcore.targets.dust import AddBadBlock, Disable, Enable
from dmcore.targets.thin import Failed, ThinStatus, Unreadable
from dmcore.targets.thin_pool import CreateThin, Delete, PoolMode

POOL, ORIGIN = Ref("252:0"), Ref("7:1")
THIN = targets.Thin(pool=POOL, dev_id=5)


class Pools(Ground):
    """Two pools in place of the disks; a line finds the device that it names, if that is a device's id."""

    def __init__(self, lab, pools):
        super().__init__(lab)
        self.pools = pools
        self.refs = {pool.ref: pool.size // 512 for pool in pools}
        self.made: set[int] = set()

    def prepare(self, line):
        for pool in self.pools:
            for dev_id in self.made:
                pool.send(Delete(dev_id))
        words = [word.strip("\\+\n") for word in line.params.split()]
        self.made = {int(word) for word in words if word.isdecimal() and int(word) < 2**24}
        for pool in self.pools:
            for dev_id in self.made:
                pool.send(CreateThin(dev_id))


@contextlib.contextmanager
def ground(lab):
    lab.wipe()
    with contextlib.ExitStack() as stack:
        pools = []
        for ref in lab.refs:
            metadata = stack.enter_context(lab.device(targets.Linear(dev=ref), 2048))
            data = stack.enter_context(lab.device(targets.Linear(dev=ref, offset=2048), 2048))
            pool = targets.ThinPool(metadata=metadata.ref, data=data.ref)
            pools.append(stack.enter_context(lab.device(pool, 2048)))
        yield Pools(lab, pools)


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("252:0 5", THIN),
        ("252:0 +05", THIN),
        ("252:0 0 7:1", targets.Thin(pool=POOL, dev_id=0, origin=ORIGIN)),
    ],
)
def test_reads_what_the_kernel_reads(words, value):
    assert Table.parse(f"0 256 thin {words}") == Table.of(value, 256)


@pytest.mark.parametrize(
    ("words", "index"),
    [("", 3), ("252:0", 4), ("252:0 x", 4), ("252:0 -1", 4), ("252:0 5 7:1 x", 6), ("Fail", 4)],
)
def test_refuses_what_the_kernel_refuses_and_names_the_word(words, index):
    with pytest.raises(ParseError) as caught:
        Table.parse(f"0 256 thin {words}")
    assert caught.value.index == index


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("pool", {"pool": "252:0"}),
        ("dev_id", {"dev_id": 2**24}),
        ("dev_id", {"dev_id": -1}),
        ("origin", {"origin": "7:1"}),
        ("origin", {"origin": POOL}),
    ],
)
def test_refuses_bad_values_and_names_the_field(field, values):
    with pytest.raises(SpecError) as caught:
        targets.Thin(**{"pool": POOL, "dev_id": 0, **values})
    assert caught.value.field == field


def test_value():
    assert THIN.refs() == (POOL,)
    assert THIN.encode(str) == "252:0 5"
    assert THIN.readback(NO_FEATURES) == THIN
    value = targets.Thin(pool=POOL, dev_id=1, origin=ORIGIN)
    assert value.refs() == (POOL, ORIGIN)
    assert value.encode(str) == "252:0 1 7:1"


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("0 -", ThinStatus(0, None)),
        ("256 20095", ThinStatus(256, 20095)),
        ("Fail", Failed()),
        ("Error", Unreadable()),
    ],
)
def test_status(text, status):
    assert THIN.parse_status(text) == status


@pytest.mark.parametrize("text", ["", "0", "- -", "0 - x", "0 x"])
def test_bad_status(text):
    with pytest.raises(ParseError):
        THIN.parse_status(text)


@pytest.fixture
def pool(lab):
    with lab.device(targets.ThinPool(metadata=lab.refs[0], data=lab.refs[1]), 2048) as device:
        yield device


@pytest.mark.dm
def test_reads_zeros_until_written_and_may_be_larger_than_its_pool(lab, pool):
    pool.send(CreateThin(0))
    value = targets.Thin(pool=pool.ref, dev_id=0)
    with lab.open(value, 1 << 30) as (device, file):
        assert device.table() == Table.of(value, 1 << 30)
        assert device.status() == [ThinStatus(0, None)]
        assert file.read(0, 4096) == bytes(4096)
        file.write((1 << 39) - 512, b"x" * 512)
        assert device.status() == [ThinStatus(128, (1 << 30) - 1)]
        assert file.read((1 << 39) - 1024, 1024) == bytes(512) + b"x" * 512


@pytest.mark.dm
def test_needs_a_device_of_a_pool_that_runs(lab, pool):
    with pytest.raises(TableRejected) as caught, lab.device(targets.Thin(pool=pool.ref, dev_id=3), 8):
        pytest.fail("no such device")
    assert caught.value.errno == errno.ENODATA
    pool.send(CreateThin(3))
    with pool.suspended():
        with pytest.raises(TableRejected) as caught, lab.device(targets.Thin(pool=pool.ref, dev_id=3), 8):
            pytest.fail("the pool is suspended")
        assert caught.value.errno == errno.EINVAL
    with pytest.raises(TableRejected) as caught, lab.device(targets.Thin(pool=lab.refs[0], dev_id=3), 8):
        pytest.fail("not a pool")
    assert caught.value.errno == errno.EINVAL


@pytest.mark.dm
def test_the_external_origin_shows_where_nothing_is_written(lab):
    # Disk 0: metadata, and behind them the origin of 192 sectors, one block and a half.
    with (
        lab.device(targets.Linear(dev=lab.refs[0]), 2048) as metadata,
        lab.device(targets.Linear(dev=lab.refs[0], offset=2048), 192) as origin,
        lab.disk(0) as disk,
        lab.device(targets.ThinPool(metadata=metadata.ref, data=lab.refs[1]), 2048) as pool,
    ):
        disk.write(2048 * 512, b"o" * 192 * 512)
        pool.send(CreateThin(0))
        value = targets.Thin(pool=pool.ref, dev_id=0, origin=origin.ref)
        with lab.open(value, 512) as (device, file):
            assert device.table() == Table.of(value, 512)
            assert file.read(0, 256 * 512) == b"o" * 192 * 512 + bytes(64 * 512)
            file.write(512, b"new!" * 128)
            file.write(200 * 512, b"new!" * 128)
            whole = file.read(0, 512 * 512)
            assert whole[: 3 * 512] == b"o" * 512 + b"new!" * 128 + b"o" * 512
            assert whole[128 * 512 :] == (
                b"o" * 64 * 512 + bytes(8 * 512) + b"new!" * 128 + bytes(311 * 512)
            ), "a block is made of the origin, and zeros behind its end"
            assert disk.read(2048 * 512, 192 * 512) == b"o" * 192 * 512


@pytest.mark.dm
def test_one_device_may_be_open_twice(lab, pool):
    pool.send(CreateThin(0))
    value = targets.Thin(pool=pool.ref, dev_id=0)
    with lab.open(value, 256) as (_, one), lab.open(value, 256) as (_, other):
        one.write(0, b"x" * 512)
        assert other.read(0, 512) == b"x" * 512
        with pytest.raises(IoctlError) as caught:
            pool.send(Delete(0))
        assert caught.value.errno == errno.EBUSY


@pytest.mark.dm
def test_a_status_that_cannot_be_read(lab):
    """The number of the highest block comes from the device's mappings; the pool goes on where they cannot be read."""
    value = targets.ThinPool(metadata=lab.refs[0], data=lab.refs[1])
    with lab.device(value, 2048) as pool:
        pool.send(CreateThin(0))
        with lab.open(targets.Thin(pool=pool.ref, dev_id=0), 512) as (_, file):
            file.write(0, b"x" * 512)
    with contextlib.closing(FileStore(lab.disks[0].path, readonly=True)) as store:
        head = SuperBlock.read(reader := Reader(store))
        assert head is not None
        ((_, root),) = reader.btree(head.mappings, 8)
    with lab.device(targets.Dust(dev=lab.refs[0], block_size=4096), 4096) as dust:
        dust.send(AddBadBlock(int.from_bytes(root, "little")))
        dust.send(Enable())
        with (
            lab.device(replace(value, metadata=dust.ref), 2048) as again,
            lab.device(targets.Thin(pool=again.ref, dev_id=0), 512) as device,
        ):
            assert device.status() == [Unreadable()]
            assert again.status()[0].mode is PoolMode.WRITABLE
            dust.send(Disable())
            assert device.status() == [ThinStatus(128, 127)]
