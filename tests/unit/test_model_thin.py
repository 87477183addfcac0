"""The models of thin-pool and thin on a host: blocks, snapshots, space, metadata, and hostile metadata."""

from __future__ import annotations

import errno
import random
import shutil
import struct

import pytest
from failing import BreakingStore
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dmcore.errors import DmError, FormatError, SpecError
from dmcore.formats.persistent_data import Reader, stamp
from dmcore.formats.thin import SUPERBLOCK, SuperBlock
from dmcore.model.block import SYNC, Suspended
from dmcore.model.stores import MemoryStore
from dmcore.table import Table
from dmcore.targets.thin_pool import PoolMode
from dmcore.volume import open_volume

BLOCK = 128
DATA = 20
BYTES = BLOCK * 512


def _disks(blocks=DATA, metadata=256, **more):
    sizes = {"meta": 8 * metadata, "data": BLOCK * blocks, **more}
    return {name: BreakingStore(size * 512, word=name) for name, size in sizes.items()}


def _pool(disks, options="", blocks=DATA, low=0):
    return open_volume(f"0 {BLOCK * blocks} thin-pool meta data {BLOCK} {low} {options}", disks)


def _thin(pool, dev_id, length=10 * BLOCK, **disks):
    return open_volume(f"0 {length} thin pool {dev_id} {' '.join(disks)}", {"pool": pool, **disks})


def _fails(request, error):
    with pytest.raises(OSError) as caught:
        request()
    assert caught.value.errno == error


def test_a_full_pool_gives_only_blocks_that_were_free_at_the_last_commit():
    disks = _disks(4)
    with _pool(disks, "1 error_if_no_space", 4) as pool:
        pool.message("create_thin 0")
        with _thin(pool, 0) as thin:
            thin.write(0, b"a" * 3 * BYTES)
            thin.discard(0, BYTES)
            thin.write(0, b"b" * BYTES)
            thin.write(3 * BYTES, b"c" * BYTES)
            thin.discard(2 * BYTES, BYTES)
            thin.write(4 * BYTES, b"d" * BYTES)
            thin.flush()
            thin.discard(0, BYTES)
            _fails(lambda: thin.write(5 * BYTES, b"e" * BYTES), errno.ENOSPC)
            assert pool.status()[0].mode is PoolMode.WRITABLE, "the status committed"
            thin.write(5 * BYTES, b"e" * BYTES)
            _fails(lambda: thin.write(0, b"f" * BYTES), errno.ENOSPC)
            assert thin.read(0, 6 * BYTES) == b"".join(bytes([byte]) * BYTES for byte in b"\0a\0cde")


def _check(disks, tmp_path):
    """Let `thin_check` look at the metadata, where it is installed."""
    if shutil.which("thin_check") is None:
        pytest.skip("thin_check is not installed (package thin-provisioning-tools)")
    from ground import check_offline

    path = tmp_path / "meta"
    path.write_bytes(disks["meta"].read(0, disks["meta"].sectors))
    check_offline("thin_check", path)


def test_blocks_are_taken_when_they_are_written():
    disks = _disks()
    disks["data"].write(0, memoryview(b"x" * DATA * BYTES))
    with _pool(disks) as pool:
        pool.message("create_thin 0")
        with _thin(pool, 0) as thin:
            assert thin.status_text() == "0 1280 thin 0 -"
            thin.write(BYTES + 512, b"a" * 512)
            thin.write(5 * BYTES, b"b" * BYTES)
            assert thin.read(BYTES, 1536) == bytes(512) + b"a" * 512 + bytes(512)
            assert thin.read(2 * BYTES, BYTES) == bytes(BYTES)
            assert thin.status_text() == "0 1280 thin 256 767"
        assert pool.status()[0].data.used == 2
    with _pool(disks) as pool, _thin(pool, 0, 20000) as thin:
        assert thin.read(5 * BYTES, BYTES) == b"b" * BYTES
        assert thin.status_text() == "0 20000 thin 256 767"
        assert pool.message("set_transaction_id 0 7") == ""
        assert pool.status()[0].transaction_id == 7


def test_snapshots_share_blocks_until_either_is_written():
    disks = _disks()
    with _pool(disks) as pool:
        pool.message("create_thin 0")
        with _thin(pool, 0) as thin:
            for block in range(4):
                thin.write(block * BYTES, bytes([block + 1]) * BYTES)
        pool.message("create_snap 1 0")
        assert pool.status()[0].data.used == 4
        with _thin(pool, 0) as thin, _thin(pool, 1) as snap:
            thin.write(512, b"t" * 512)
            snap.write(BYTES, b"s" * 512)
            thin.discard(2 * BYTES, 2 * BYTES)
            assert pool.status()[0].data.used == 6
            assert snap.read(0, 4 * BYTES) == (
                b"\1" * BYTES + b"s" * 512 + b"\2" * (BYTES - 512) + b"\3" * BYTES + b"\4" * BYTES
            )
            assert thin.read(0, 4 * BYTES) == b"\1" * 512 + b"t" * 512 + b"\1" * (
                BYTES - 1024
            ) + b"\2" * BYTES + bytes(2 * BYTES)
            _fails(lambda: pool.message("delete 1"), errno.EBUSY)
        pool.message("delete 0")
        assert pool.status()[0].data.used == 4
        pool.message("delete 1")
        assert pool.status()[0].data.used == 0


def test_messages_fail_as_in_the_kernel():
    with _pool(_disks()) as pool:
        pool.message("create_thin 0")
        for text, error in [
            ("create_thin 0", errno.EEXIST),
            ("create_thin 16777216", errno.EINVAL),
            ("create_thin x", errno.EINVAL),
            ("create_snap 1 5", errno.ENODATA),
            ("create_snap 0 0", errno.EEXIST),
            ("delete 9", errno.ENODATA),
            ("set_transaction_id 3 4", errno.EINVAL),
            ("release_metadata_snap", errno.EINVAL),
            ("create_thin", errno.EINVAL),
            ("nonsense", errno.EINVAL),
        ]:
            _fails(lambda text=text: pool.message(text), error)
        pool.message("Reserve_Metadata_Snap")
        _fails(lambda: pool.message("reserve_metadata_snap"), errno.EBUSY)
        with pytest.raises(OSError) as caught:
            _thin(pool, 4)
        assert caught.value.errno == errno.ENODATA
        with pytest.raises(SpecError, match="thin-pool"):
            open_volume("0 8 thin pool 0", {"pool": MemoryStore(4096)})


def test_without_space_writes_fail_or_would_wait_and_a_larger_pool_goes_on():
    disks = _disks(blocks=DATA)
    with _pool(disks, "1 error_if_no_space", blocks=2, low=1) as pool:
        pool.message("create_thin 0")
        with _thin(pool, 0) as thin:
            thin.write(0, b"a" * 512)
            assert pool.device.event_nr == 0
            thin.write(BYTES, b"a" * 512)
            assert pool.device.event_nr == 1, "low water"
            _fails(lambda: thin.write(2 * BYTES, b"a" * 512), errno.ENOSPC)
            assert pool.status()[0].mode is PoolMode.OUT_OF_DATA_SPACE
            assert pool.device.event_nr == 2
            assert thin.read(0, 512) == b"a" * 512
            thin.write(0, b"b" * 512)
            thin.discard(BYTES, BYTES)
            assert pool.status()[0].mode is PoolMode.WRITABLE
            thin.write(2 * BYTES, b"a" * 512)
    with _pool(disks, blocks=2) as pool, _thin(pool, 0) as thin:
        with pytest.raises(Suspended, match="no free block"):
            thin.write(3 * BYTES, b"a" * 512)
        pool.device.load(Table.parse(f"0 {BLOCK * 5} thin-pool meta data {BLOCK} 0"))
        pool.device.resume()
        thin.write(3 * BYTES, b"a" * 512)
        assert pool.status()[0].data.total == 5
    _fails(lambda: _pool(disks, blocks=4), errno.EINVAL)


def test_external_origins_show_where_nothing_was_written():
    disks = _disks(origin=3 * BLOCK - 28)
    disks["origin"].write(0, memoryview(b"o" * (3 * BLOCK - 28) * 512))
    with _pool(disks) as pool:
        pool.message("create_thin 0")
        with _thin(pool, 0, origin=disks["origin"]) as thin:
            expected = bytearray(b"o" * (3 * BLOCK - 28) * 512 + bytes(28 * 512 + 7 * BYTES))
            assert thin.read(0, thin.size) == expected
            for sector in (3, 2 * BLOCK + 110, 5 * BLOCK):
                thin.write(sector * 512, b"w" * 512)
                expected[sector * 512 : sector * 512 + 512] = b"w" * 512
            assert thin.read(0, thin.size) == expected


def test_metadata_that_cannot_be_written_make_the_pool_read_only_and_need_a_check():
    disks = _disks()
    pool = _pool(disks)
    pool.message("create_thin 0")
    thin = _thin(pool, 0)
    thin.write(0, b"a" * 512)
    thin.flush()
    thin.write(BYTES, b"b" * 512)
    original = disks["meta"].write
    calls = iter(range(100))

    def write(sector, data, flags=SYNC):
        if next(calls) < 1:
            raise OSError(errno.EIO, "broken")
        original(sector, data, flags)

    disks["meta"].write = write
    _fails(thin.flush, errno.EIO)
    status = pool.status()[0]
    assert (status.mode, status.needs_check) == (PoolMode.READ_ONLY, True)
    assert thin.read(0, 2 * BYTES) == b"a" * 512 + bytes(2 * BYTES - 512)
    _fails(lambda: thin.write(BYTES, b"b" * 512), errno.EIO)
    _fails(lambda: pool.message("create_thin 1"), errno.EOPNOTSUPP)


class _Life:
    """What happens to a pool by chance, and what its devices must hold then."""

    def __init__(self, seed):
        self.chance = random.Random(seed)
        self.contents: dict[int, dict[int, int]] = {}

    def step(self, pool):
        what = self.chance.choice(["create", "snap", "write", "write", "write", "discard", "delete", "hold"])
        ids = sorted(self.contents)
        if what == "hold":
            held = pool.status()[0].held_root
            pool.message("release_metadata_snap" if held else "reserve_metadata_snap")
        elif what == "create" or not ids:
            self.create(pool, "create_thin", None)
        elif what == "snap":
            self.create(pool, "create_snap", self.chance.choice(ids))
        elif what == "delete" and len(ids) > 3:
            pool.message(f"delete {ids[0]}")
            del self.contents[ids[0]]
        elif what in {"write", "discard"}:
            self.change(pool, what, self.chance.choice(ids))

    def create(self, pool, message, origin):
        new = self.chance.choice([i for i in range(40) if i not in self.contents])
        pool.message(f"{message} {new}" + ("" if origin is None else f" {origin}"))
        self.contents[new] = dict(self.contents.get(origin, {}))

    def change(self, pool, what, one):
        first, count = self.chance.randrange(60), self.chance.randrange(1, 5)
        with _thin(pool, one, 64 * BLOCK) as thin:
            if what == "discard":
                thin.discard(first * BYTES, count * BYTES)
                for block in range(first, first + count):
                    self.contents[one].pop(block, None)
            else:
                byte = self.chance.randrange(1, 255)
                thin.write(first * BYTES, bytes([byte]) * (count * BYTES))
                self.contents[one].update(dict.fromkeys(range(first, first + count), byte))

    def check(self, pool):
        for one, blocks in self.contents.items():
            with _thin(pool, one, 64 * BLOCK) as thin:
                assert thin.read(0, thin.size) == b"".join(
                    bytes([blocks.get(b, 0)]) * BYTES for b in range(64)
                )


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_happens_the_checker_agrees_and_the_content_is_what_was_written(seed, tmp_path):
    disks = _disks(blocks=400, metadata=512)
    life = _Life(seed)
    for _ in range(4):
        with _pool(disks, blocks=400) as pool:
            for _ in range(25):
                life.step(pool)
            life.check(pool)
    _check(disks, tmp_path)


def test_metadata_of_something_else_are_refused():
    disks = _disks()
    disks["meta"].write(0, memoryview(b"\1" * 512))
    with pytest.raises(FormatError, match="magic"):
        _pool(disks)
    disks = _disks()
    _fails(lambda: _pool(disks, "1 read_only"), errno.EPERM)
    _pool(disks).close()
    with pytest.raises(FormatError, match="blocks of 128 sectors"):
        open_volume(f"0 {BLOCK * DATA} thin-pool meta data 256 0", disks)


def _image():
    disks = _disks(metadata=64)
    with _pool(disks) as pool:
        pool.message("create_thin 0")
        with _thin(pool, 0) as thin:
            for block in range(6):
                thin.write(block * BYTES, b"a" * 512)
        pool.message("create_snap 1 0")
        with _thin(pool, 1) as snap:
            snap.write(0, b"b" * 512)
    return bytes(disks["meta"].read(0, 64 * 8))


IMAGE = _image()


def _restamp(image: bytearray) -> None:
    """Make every checksum right again."""
    from dmcore.formats.persistent_data import BITMAP_BLOCK, INDEX_BLOCK, NODE

    for number in range(64):
        was = memoryview(IMAGE)[number * 4096 : number * 4096 + 4096]
        for kind in (NODE, INDEX_BLOCK, BITMAP_BLOCK, SUPERBLOCK):
            if bytes(stamp(kind, number, bytearray(was))) == bytes(was):
                block = bytearray(image[number * 4096 : number * 4096 + 4096])
                image[number * 4096 : number * 4096 + 4096] = stamp(kind, number, block)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.integers(1, 600), st.integers(0, 40) | st.integers(0, 2**64 - 1)),
        min_size=1,
        max_size=4,
    )
)
def test_hostile_metadata_are_refused_or_read_within_bounds(changes):
    image = bytearray(IMAGE)
    for block, word, value in changes:
        struct.pack_into("<Q", image, block * 4096 + (word * 8) % 4088, value)
    _restamp(image)
    disks = _disks(metadata=64)
    disks["meta"].write(0, memoryview(image))
    try:
        with _pool(disks) as pool, _thin(pool, 0) as thin:
            thin.read(0, thin.size)
            thin.write(7 * BYTES, b"w" * 512)
            pool.message("create_snap 2 1")
            pool.message("delete 2")
    except (DmError, OSError, ExceptionGroup):
        return
    assert SuperBlock.read(Reader(disks["meta"])) is not None
