"""The model of era, and its metadata in both directions."""

from __future__ import annotations

import errno
import random
import subprocess

import pytest
from failing import BreakingStore, damage, damage_superblock
from ground import check_offline
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from persistent_audit import array_blocks, audit
from twins import outcome, twins

from dmcore.errors import FormatError
from dmcore.formats.era import SUPERBLOCK, WRITESET, SuperBlock
from dmcore.formats.persistent_data import BLOCK, Reader
from dmcore.model.block import Suspended
from dmcore.model.stores import MemoryStore
from dmcore.targets.era import EraStatus
from dmcore.volume import open_volume

LENGTH = 100


def _disks(metadata_blocks=128):
    return {"meta": BreakingStore(metadata_blocks * BLOCK), "origin": MemoryStore(LENGTH * 512)}


def _open(disks, block=8, length=LENGTH):
    return open_volume(f"0 {length} era meta origin {block}", disks)


def _status(volume) -> EraStatus:
    (status,) = volume.status()
    assert isinstance(status, EraStatus)
    return status


def _super(disk) -> SuperBlock:
    found = SuperBlock.read(Reader(disk))
    assert found is not None
    return found


def _writesets(reader, node, counts):
    return [(WRITESET.unpack(value)[1], 8, array_blocks) for value in node.values]


def _audit(disk):
    now = _super(disk)
    roots = []
    supers = [now]
    if now.snapshot:
        supers.append(SuperBlock.read(Reader(disk), now.snapshot))
    for each in supers:
        roots += [
            (each.writesets, 12, lambda node, counts: _writesets(None, node, counts)),
            (each.eras, 8, array_blocks),
        ]
    if now.writeset.root:
        roots.append((now.writeset.root, 8, array_blocks))
    audit(disk, now.space_map, roots, more=(now.snapshot,) if now.snapshot else ())


def _eras(disk, number=0) -> dict[int, int]:
    """Return the era of every written block, from array and writesets."""
    reader = Reader(disk)
    found = SuperBlock.read(reader, number)
    assert found is not None
    data = reader.array(found.eras, 4, found.blocks, "eras").data
    eras = {block: int.from_bytes(data[4 * block : 4 * block + 4], "little") for block in range(found.blocks)}
    sets = [(era, *WRITESET.unpack(value)) for era, value in reader.btree(found.writesets, 12)]
    if found.writeset.root and not number:
        sets.append((found.era, *found.writeset))
    for era, bits, root in sorted(sets):
        data = reader.bitset(root, bits, "writeset").data
        eras.update({bit: era for bit in range(min(bits, found.blocks)) if data[bit // 8] >> bit % 8 & 1})
    return {block: era for block, era in eras.items() if era}


def _refused(error, request):
    with pytest.raises(OSError) as caught:
        request()
    assert caught.value.errno == error


def test_writes_are_known_by_their_era():
    disks = _disks()
    with _open(disks) as volume:
        assert _status(volume).era == 1
        volume.write(0, b"a" * 512)
        volume.write(20 * 512, b"b" * 8192)
        assert _eras(disks["meta"]) == {0: 1, 2: 1, 3: 1, 4: 1}, "recorded before the write is done"
        volume.message("checkpoint")
        volume.write(512, b"c" * 512)
        assert _eras(disks["meta"]) == {0: 2, 2: 1, 3: 1, 4: 1}
        _audit(disks["meta"])
        volume.settle()
        assert _eras(disks["meta"]) == {0: 2, 2: 1, 3: 1, 4: 1}
        assert list(Reader(disks["meta"]).btree(_super(disks["meta"]).writesets, 12)) == []
        _audit(disks["meta"])
        assert volume.read(0, 1024) == b"a" * 512 + b"c" * 512
    _audit(disks["meta"])
    with _open(disks) as volume:
        assert _status(volume).era == 3
        volume.discard(40 * 512, 40 * 512)
        assert _eras(disks["meta"])[5] == 3
        assert 6 not in _eras(disks["meta"]), "of a discard the kernel records the first block only"


def test_a_metadata_snapshot_stays_as_it_is():
    disks = _disks()
    with _open(disks) as volume:
        volume.write(0, b"a" * 512)
        _refused(errno.EINVAL, lambda: volume.message("drop_metadata_snap"))
        volume.message("TAKE_metadata_snap")
        status = _status(volume)
        assert status.era == 2
        snapshot = status.metadata_snap
        volume.write(0, b"b" * 4096)
        volume.write(4096, b"b" * 4096)
        volume.message("checkpoint")
        volume.settle()
        assert _eras(disks["meta"], snapshot) == {0: 1}
        assert _eras(disks["meta"]) == {0: 2, 1: 2}
        _audit(disks["meta"])
        _refused(errno.EINVAL, lambda: volume.message("take_metadata_snap"))
        volume.message("drop_metadata_snap")
        assert _status(volume).metadata_snap is None
    _audit(disks["meta"])


def test_an_unclean_end_keeps_the_writeset_of_its_era():
    disks = _disks()
    _open(disks).write(0, b"a" * 512)
    with _open(disks) as volume:
        volume.write(8 * 512, b"a" * 512)
        assert _eras(disks["meta"]) == {0: 1, 1: 2}


def test_a_longer_and_a_shorter_line():
    disks = _disks()
    with _open(disks, length=40) as volume:
        volume.write(32 * 512, b"a" * 4096)
    with _open(disks, length=96) as volume:
        volume.write(88 * 512, b"a" * 4096)
        volume.settle()
        assert _eras(disks["meta"]) == {4: 1, 11: 2}
    with _open(disks, length=16):
        assert _super(disks["meta"]).blocks == 2
    _audit(disks["meta"])


def test_past_the_origins_end_requests_fail():
    with _open(_disks(), length=LENGTH + 8) as volume:
        _refused(errno.EIO, lambda: volume.read(LENGTH * 512, 512))
        _refused(errno.EIO, lambda: volume.write((LENGTH - 1) * 512, bytes(1024)))
        _refused(errno.EIO, lambda: volume.discard(0, volume.size))


def test_metadata_that_cannot_be_written_fail_writes_to_new_blocks():
    disks = _disks()
    volume = _open(disks)
    volume.write(0, b"a" * 512)
    disks["meta"].broken = "write"
    volume.write(512, b"b" * 512)
    _refused(errno.EIO, lambda: volume.write(4096, b"b" * 512))
    _refused(errno.EIO, lambda: volume.message("checkpoint"))
    assert volume.status_text().endswith(" Error")
    disks["meta"].broken = ""
    volume.write(4096, b"b" * 512)
    assert _eras(disks["meta"]) == {0: 1, 1: 1}
    _audit(disks["meta"])
    volume.close()


def test_a_suspended_device_would_hold_back_status_and_messages():
    with _open(_disks()) as volume:
        volume.device.suspend()
        for request in (volume.status_text, lambda: volume.message("checkpoint")):
            with pytest.raises(Suspended):
                request()
        volume.device.resume()


@pytest.mark.parametrize("message", ["", "check", "checkpoint now"])
def test_refuses_other_messages(message):
    with _open(_disks()) as volume:
        _refused(errno.EINVAL, lambda: volume.message(message))


@pytest.mark.parametrize(
    ("at", "data", "words"),
    [
        (32, b"\0", "magic"),
        (40, b"\2", "version 2"),
        (44, b"\0", "for 0 blocks"),
        (172, b"\x10", "blocks of 16"),
        (180, b"\x01\x10", "not 1018"),
        (200, b"\xff", "block 255"),
        (208, b"\xff", "block 255"),
    ],
)
def test_refuses_damaged_metadata_and_says_what_is_wrong(at, data, words):
    disks = _disks()
    _open(disks).close()
    damage_superblock(disks["meta"], SUPERBLOCK, at, data)
    with pytest.raises(FormatError, match=words):
        _open(disks)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 12), st.integers(0, 300) | st.integers(0, BLOCK - 8), st.binary(min_size=1, max_size=8))
def test_any_damage_ends_in_an_error_or_a_working_volume(number, at, data):
    disks = _disks()
    with _open(disks) as volume:
        volume.write(0, b"a" * 512)
        volume.message("take_metadata_snap")
    damage(disks["meta"], number * BLOCK + at, data)
    try:
        volume = _open(disks)
    except (FormatError, OSError):
        return
    volume.settle()
    assert len(volume.read(0, volume.size)) == volume.size


# On a kernel. The block layer cuts a discard at the first multiple of the granularity, here 4 KiB, before era sees it.

PIECES = {"meta": (0, 0, 1024), "origin": (1, 0, 1024)}
TABLE = f"0 {LENGTH} era {{meta}} {{origin}} 8"
_MESSAGES = [
    "flush",
    "again",
    "message checkpoint",
    "message take_metadata_snap",
    "message drop_metadata_snap",
]
_STEPS = st.one_of(
    st.tuples(st.just("write"), st.integers(0, LENGTH - 1), st.integers(1, 20), st.integers(1, 255)),
    st.tuples(st.just("read"), st.integers(0, LENGTH - 1), st.integers(1, 30), st.just(0)),
    st.tuples(st.just("discard"), st.integers(0, 11).map(lambda at: 8 * at), st.integers(1, 30), st.just(0)),
    st.tuples(st.sampled_from(_MESSAGES), *[st.just(0)] * 3),
)


def _facts(status):
    return status.era, status.metadata_snap is None


@pytest.mark.dm
def test_model_and_kernel_agree_on_data_eras_and_use_of_metadata(lab):
    with twins(lab, **PIECES) as both:

        @settings(
            max_examples=8,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.generate],
        )
        @given(st.lists(_STEPS, min_size=3, max_size=12))
        def check(script):
            both.wipe()
            with both.kernel(TABLE) as (device, file), both.model(TABLE) as volume:
                for step in script:
                    assert outcome(volume.device, volume, step) == outcome(device, file, step), step
                assert _facts(_status(volume)) == _facts(device.status()[0])
            models = both.stores["meta"]
            kernels = MemoryStore(models.sectors * 512)
            kernels.write(0, memoryview(both.bytes("meta")))
            assert _eras(models) == _eras(kernels)
            for disk in (models, kernels):
                _audit(disk)
            assert bytes(both.stores["origin"].read(0, 1024)) == both.bytes("origin")

        check()


@pytest.mark.dm
def test_metadata_go_both_ways_and_the_offline_tools_agree(lab):
    rng = random.Random(3)
    expected: dict[int, int] = {}

    def write(volume, era):
        for _ in range(4):
            block = rng.randrange(LENGTH // 8)
            volume.write(block * 4096, rng.randbytes(512))
            expected[block] = era

    with twins(lab, **PIECES) as both:
        for era in range(1, 7):
            side = both.kernel(TABLE) if era % 2 else both.model(TABLE)
            with side as opened:
                write(opened[1] if era % 2 else opened, era)
                if era == 4:
                    opened.settle()
            both.pull() if era % 2 else both.push()
            assert _eras(both.stores["meta"]) == expected
            _audit(both.stores["meta"])
            path = both.devices["meta"].path
            check_offline("era_check", path)
            command = ["era_invalidate", "--written-since", "4", str(path)]
            text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
            assert len(text.splitlines()) > 1 or era < 4
        with both.kernel(TABLE) as (device, file):
            assert device.status()[0].era == 7
            assert file.read(0, LENGTH * 512) == bytes(both.stores["origin"].read(0, LENGTH))
