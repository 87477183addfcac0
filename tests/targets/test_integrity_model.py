"""The model of integrity: tags, journal, bitmap, and images in both directions."""

from __future__ import annotations

import errno
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import twins

from dmcore.errors import FormatError, SpecError, Unsupported
from dmcore.formats.integrity import Flags, Superblock
from dmcore.model.block import SYNC
from dmcore.model.stores import MemoryStore
from dmcore.volume import open_volume

SIZE = 4096
LENGTH = 512
SHA = "internal_hash:sha256"
CRC = "internal_hash:crc32c"
MACS = "internal_hash:hmac(sha256):0102030405 journal_mac:hmac(sha256):0a0b fix_hmac"
OPTIONS = [
    ("J", CRC),
    ("J", f"{SHA} block_size:4096 fix_padding"),
    ("J", f"{MACS} fix_padding journal_sectors:300"),
    ("D", "internal_hash:crc32 block_size:1024"),
    ("D", f"{SHA} interleave_sectors:256 allow_discards fix_padding"),
    ("B", f"{CRC} sectors_per_bit:8"),
    ("B", f"{SHA} block_size:2048 meta_device:{{meta}} buffer_sectors:8"),
    ("J", f"{CRC} meta_device:{{meta}} allow_discards"),
]


def _table(mode, options, length=LENGTH, start=8, tag="-"):
    return f"0 {length} integrity {{dev}} {start} {tag} {mode} {len(options.split())} {options}"


def _disks(size=SIZE):
    return {"dev": MemoryStore(size * 512, word="dev"), "meta": MemoryStore(size * 512, word="meta")}


def _open(disks, mode="J", options=CRC, **more):
    features = more.pop("features", frozenset())
    text = _table(mode, options, **more).format(dev="dev", meta="meta")
    return open_volume(text, disks, features=features)


def _failed(request) -> int:
    with pytest.raises(OSError) as caught:
        request()
    assert caught.value.errno is not None
    return caught.value.errno


def _copy(disks):
    """Return the disks as a power cut now would leave them."""
    made = _disks(disks["dev"].sectors)
    for name, store in disks.items():
        made[name].write(0, memoryview(store.read(0, store.sectors)))
    return made


def _noise(sectors, seed=1):
    return random.Random(seed).randbytes(sectors * 512)


@pytest.mark.parametrize(("mode", "options"), OPTIONS)
def test_what_was_written_is_read_also_after_opening_again_and_damage_is_found(mode, options):
    disks = _disks()
    with _open(disks, mode, options) as volume:
        block = volume.block_size
        assert _failed(lambda: volume.read(block, block)) == errno.EILSEQ, "nothing was written there"
        volume.write(0, _noise(LENGTH))
        assert volume.read(0, LENGTH * 512) == _noise(LENGTH)
        volume.write(8 * block, _noise(block // 512, 2))
    expected = bytearray(_noise(LENGTH))
    expected[8 * block : 9 * block] = _noise(block // 512, 2)
    with _open(disks, mode, options) as volume:
        assert volume.read(0, LENGTH * 512) == expected
        at = volume.device.targets[0]._layout.data_sector(8 * block // 512)
        damaged = disks["dev"].read(at, 1)
        damaged[3] ^= 1
        disks["dev"].write(at, memoryview(damaged))
        assert _failed(lambda: volume.read(8 * block, block)) == errno.EILSEQ
        assert volume.read(0, 8 * block) == expected[: 8 * block]
        assert volume.status()[0].mismatches == 1


@pytest.mark.parametrize(
    "options",
    [
        CRC, f"{MACS} block_size:2048", f"{SHA} meta_device:{{meta}}", f"{CRC} journal_crypt:chacha20:{'09' * 32}",
        f"{CRC} journal_crypt:ecb(cipher_null)", f"{MACS} journal_crypt:cbc(des3_ede):{'0123456789abcdef' * 3}",
    ],
)  # fmt: skip
def test_a_dirty_journal_is_replayed(options):
    disks, options = _disks(), f"{options} journal_sectors:1200"
    with _open(disks, "J", options) as volume:
        volume.write(0, _noise(64))
        volume.flush()
        volume.write(4096, _noise(8, 2), fua=True)
        volume.write(16384, _noise(8, 3))
        after = _copy(disks)
        layout = volume.device.targets[0]._layout
        home = after["dev"].read(layout.data_sector(0), 8)
        assert home == bytes(4096), "it is in the journal only"
        expected = _noise(8) + _noise(8, 2) + _noise(64)[8192:]
    with _open(_copy(after), "D", options) as volume:
        assert volume.read(0, 64 * 512) == expected, "any mode replays"
    with _open(after, "J", options) as volume:
        assert volume.read(0, 64 * 512) == expected, "what was not flushed is lost"
        volume.write(0, _noise(8, 4))
    with _open(after, "J", options) as volume:
        assert volume.read(0, 64 * 512) == _noise(8, 4) + expected[4096:]


def test_a_full_journal_goes_home_and_goes_round():
    disks = _disks()
    model = random.Random(5)
    with _open(disks, "J", f"{SHA} journal_sectors:600") as volume:
        content = bytearray(_noise(LENGTH, 9))
        volume.write(0, bytes(content))
        for step in range(22):
            first = model.randrange(LENGTH - 40)
            data = _noise(model.randrange(1, 40), step)
            volume.write(first * 512, data)
            content[first * 512 : first * 512 + len(data)] = data
            if step % 7 == 0:
                volume.flush()
                with _open(_copy(disks), "J", f"{SHA} journal_sectors:600") as after:
                    assert after.read(0, LENGTH * 512) == content, step
        assert volume.read(0, LENGTH * 512) == content


def test_a_torn_journal_is_not_replayed_and_a_damaged_one_fails():
    disks = _disks()
    volume = _open(disks)
    layout = volume.device.targets[0]._layout
    volume.write(0, _noise(8))
    volume.flush()
    torn = _copy(disks)
    content = torn["dev"].read(8 + 8 + 3, 1)
    content[504:] = (0x1111111111111111 ^ 3).to_bytes(8, "little")
    torn["dev"].write(8 + 8 + 3, memoryview(content))
    with _open(torn) as after:
        assert _failed(lambda: after.read(0, 512)) == errno.EILSEQ
    for byte, error in ((8 * 512 + 5, errno.EILSEQ), (504, errno.EIO)):
        broken = _copy(disks)
        content = broken["dev"].read(16, layout.section_sectors)
        content[byte] ^= 1
        broken["dev"].write(16, memoryview(content))
        after = _open(broken)
        assert _failed(lambda after=after: after.read(0, 512)) == error
        assert _failed(lambda after=after: after.write(0, bytes(512))) == error


def test_bits_tell_what_was_being_written():
    disks = _disks()
    options = f"{CRC} sectors_per_bit:8 buffer_sectors:8"
    with _open(disks, "B", options) as volume:
        volume.write(0, _noise(LENGTH))
    volume = _open(disks, "B", options)
    volume.write(16 * 512, _noise(1, 2))
    after = _copy(disks)
    assert after["dev"].read(16, 1)[0] == 4
    at = volume.device.targets[0]._layout.data_sector(17)
    after["dev"].write(at, memoryview(b"?" * 512))
    with _open(after, "B", options) as again:
        assert again.read(17 * 512, 512) == b"?" * 512, "it may have been in flight"
        again.settle()
        assert again.read(0, 17 * 512) == _noise(LENGTH)[: 16 * 512] + _noise(1, 2)
        after["dev"].write(at, memoryview(b"!" * 512))
        assert _failed(lambda: again.read(17 * 512, 512)) == errno.EILSEQ


@pytest.mark.parametrize("mode", ["J", "B", "D"])
def test_recalculation_makes_all_tags(mode):
    disks = _disks()
    with _open(disks, mode, f"{CRC} recalculate") as volume:
        assert volume.read(0, 4096) == bytes(4096)
        volume.settle()
        status = volume.status()[0]
        assert status.recalculated == status.provided_sectors
    with _open(disks, mode) as volume:
        assert volume.read(0, LENGTH * 512) == bytes(LENGTH * 512)
    with pytest.raises(SpecError, match="legacy_recalculate"):
        _open(_disks(), "D", "internal_hash:hmac(sha256):0102 recalculate")


@pytest.mark.parametrize("mode", ["J", "B", "D"])
def test_discarded_blocks_fit_any_data(mode):
    disks = _disks()
    with _open(disks, mode, f"{CRC} allow_discards") as volume:
        volume.write(0, _noise(64))
        volume.discard(4096, 8192)
        assert volume.read(0, 64 * 512) == _noise(64)[:4096] + bytes(8192) + _noise(64)[12288:]
    with _open(disks, mode) as volume:
        assert _failed(lambda: volume.read(4096, 512)) == errno.EILSEQ
        assert _failed(lambda: volume.discard(0, 512)) == errno.EOPNOTSUPP


def test_recovery_mode_neither_checks_nor_writes():
    disks = _disks()
    with _open(disks, "D") as volume:
        volume.write(0, _noise(8))
    before = _copy(disks)["dev"].read(0, SIZE)
    with _open(disks, "R") as volume:
        assert volume.read(0, 4096) == _noise(8)
        assert volume.read(4096, 4096) == bytes(4096)
        assert _failed(lambda: volume.write(0, bytes(512))) == errno.EIO
    assert disks["dev"].read(0, SIZE) == before


@pytest.mark.parametrize("mode", ["J", "D"])
def test_tags_of_the_layer_above_are_kept(mode):
    disks = _disks()
    with _open(disks, mode, "block_size:1024", tag=12) as volume:
        device = volume.device
        assert (device.tag_size, device.tag_interval) == (12, 1024)
        device.write_tagged(4, memoryview(_noise(4)), memoryview(b"a" * 12 + b"b" * 12), SYNC)
        device.write(8, memoryview(_noise(2)), SYNC)
    with _open(disks, mode, "block_size:1024", tag=12) as volume:
        data, tags = bytearray(6 * 512), bytearray(36)
        volume.device.readinto_tagged(4, memoryview(data), memoryview(tags))
        assert data == _noise(4) + _noise(2)
        assert tags == b"a" * 12 + b"b" * 12 + bytes(12)


def test_what_does_not_fit_is_refused():
    disks = _disks()
    with _open(disks, "D"):
        pass
    for field, options, more in (
        ("tag_size", SHA, {}),
        ("block_size", f"{CRC} block_size:1024", {}),
        ("journal_mac", f"{CRC} journal_mac:hmac(sha256):01", {}),
        ("length", CRC, {"length": SIZE}),
    ):
        with pytest.raises(SpecError) as caught:
            _open(disks, "D", options, **more)
        assert caught.value.field == field
    with pytest.raises(FormatError, match="too small"):
        _open(_disks(64), "D")
    disks["dev"].write(8, memoryview(b"x" * 512))
    with pytest.raises(FormatError, match="no superblock"):
        _open(disks, "D")
    with pytest.raises(SpecError, match="key"):
        _open(_disks(), "D", f"{CRC} journal_crypt:ctr(aes):0102")
    with pytest.raises(Unsupported):
        _open(_disks(), "D", f"{CRC} journal_crypt:ctr(serpent):{'00' * 32}")
    assert _failed(lambda: _open(_disks(), "D", f"{CRC} journal_crypt:cbc(aes)")) == errno.ENOKEY
    with pytest.raises(SpecError, match="keeps no bytes of tags"):
        _open(_disks(), "I", CRC)
    keyed = _disks()
    with _open(keyed, "J", MACS):
        pass
    with pytest.raises(FormatError, match="MAC"):
        _open(keyed, "J", MACS.replace("0a0b", "0a0c"))


@given(st.lists(st.tuples(st.integers(0, 31), st.integers(0, 255)), min_size=1, max_size=6))
@settings(max_examples=15, deadline=None)
def test_any_superblock_opens_or_is_refused_with_a_reason(changes):
    disks = _disks(1024)
    with _open(disks, "D", f"{CRC} fix_padding interleave_sectors:256", length=64) as volume:
        volume.write(0, _noise(8))
    raw = disks["dev"].read(8, 1)
    for at, byte in changes:
        raw[at] = byte
    disks["dev"].write(8, memoryview(raw))
    try:
        with _open(disks, "J", f"{CRC} fix_padding", length=64) as volume:
            volume.read(0, 4096)
    except (FormatError, SpecError, Unsupported, OSError, ExceptionGroup):
        pass


@given(st.integers(0, 2**32), st.data())
@settings(max_examples=8, deadline=None)
def test_any_journal_is_replayed_or_fails(seed, data):
    disks = _disks(1024)
    options = f"{CRC} fix_padding journal_sectors:200 interleave_sectors:256"
    with _open(disks, "J", options, length=64) as volume:
        volume.write(0, _noise(40))
        volume.flush()
        after = _copy(disks)
    raw = after["dev"].read(16, 100)
    for _ in range(data.draw(st.integers(1, 5))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    after["dev"].write(16, memoryview(raw))
    found = _outcome(_open(after, "J", options, length=64), "read", 0, 40, 0)
    assert found in {_noise(40), errno.EILSEQ, errno.EIO}


def test_superblock_goes_both_ways():
    head = Superblock(
        log2_interleave=15, tag_size=4, journal_sections=7, provided=80, flags=Flags.FIXED_PADDING
    )
    assert Superblock.decode(bytearray(head.encode(bitmap=False, separate=False))) == head
    assert head.encode(bitmap=True, separate=True)[8] == 4


# -- on kernels --------------------------------------------------------------------------------------------------------

PIECES = {"dev": (0, 0, SIZE), "meta": (1, 0, 2048)}


def _outcome(disk, op, sector, count, seed):
    try:
        if op == "read":
            return disk.read(sector * 512, count * 512)
        if op == "write":
            return disk.write(sector * 512, _noise(count, seed))
        return disk.flush()
    except OSError as error:
        return error.errno


@pytest.mark.dm
@pytest.mark.parametrize(("mode", "options"), OPTIONS)
def test_kernel_and_model_agree_and_take_each_others_images(lab, mode, options):
    with twins(lab, **PIECES) as both:
        text, unit = _table(mode, options), 8
        rnd = random.Random(options + mode)
        script = [
            (
                rnd.choice(["read", "write", "write", "flush"]),
                rnd.randrange(56) * unit,
                rnd.randrange(1, 8) * unit,
                step,
            )
            for step in range(25)
        ]
        if "fix_hmac" in options:  # the salt is random: one formats, the other goes on
            with both.model(text):
                pass
            both.push()
        with both.kernel(text) as (device, file), both.model(text) as volume:
            for step in script:
                assert _outcome(volume, *step) == _outcome(file, *step), step
            assert volume.status()[0].provided_sectors == device.status()[0].provided_sectors
            assert volume.table_text().split()[:7] == device.table_text().split()[:7]
            ours = {word for word in volume.table_text().split()[8:] if "hmac(" not in word}
            assert set(device.table_text().split()[8:]) >= ours
            contents = [_outcome(volume, "read", at, unit, 0) for at in range(0, LENGTH, unit)]
        both.push()
        with both.kernel(text) as (_, file):
            assert [_outcome(file, "read", at, unit, 0) for at in range(0, LENGTH, unit)] == contents
            file.write(0, _noise(16, 77))
        both.pull()
        contents[:2] = [_noise(16, 77)[:4096], _noise(16, 77)[4096:]]
        with both.model(text) as volume:
            assert [_outcome(volume, "read", at, unit, 0) for at in range(0, LENGTH, unit)] == contents


@pytest.mark.dm
@pytest.mark.parametrize("options", [OPTIONS[0][1], MACS, OPTIONS[7][1]])
def test_dirty_journals_are_replayed_by_kernel_and_model(lab, options):
    with twins(lab, **PIECES) as both:
        text = _table("J", f"{options} journal_sectors:1200")
        with both.kernel(text) as (_, file):
            file.write(0, _noise(64))
            file.flush()
            file.write(4096, _noise(8, 2))
            file.flush()
            both.pull()
        expected = _noise(8) + _noise(8, 2) + _noise(64)[8192:]
        with both.model(text) as volume:
            assert volume.read(0, 64 * 512) == expected, "the kernel's journal"
            volume.write(8192, _noise(8, 3))
            volume.flush()
            both.push()
        with both.kernel(text) as (_, file):
            assert file.read(0, 64 * 512) == expected[:8192] + _noise(8, 3) + expected[12288:], (
                "the model's journal"
            )


@pytest.mark.dm
def test_the_kernel_finds_the_bits_of_the_model(lab):
    with twins(lab, **PIECES) as both:
        text = _table("B", f"{CRC} sectors_per_bit:8")
        with both.model(text) as volume:
            volume.write(0, _noise(LENGTH))
            volume.flush()
            both.push()
        with both.kernel(text) as (_, file):
            assert file.read(0, LENGTH * 512) == _noise(LENGTH)
