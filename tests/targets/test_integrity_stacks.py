"""integrity below crypt, above tags that a disk keeps, and with an encrypted journal: images in both directions."""

from __future__ import annotations

import contextlib
import errno
import random

import pytest
from twins import outcome, twins

from dmcore.model.block import SYNC
from dmcore.model.stores import MemoryStore
from dmcore.volume import open_volume

SIZE = 4096
LENGTH = 512
CRC = "internal_hash:crc32c"
KEY = bytes(range(1, 33)).hex()
PIECES = {"dev": (0, 0, SIZE)}
TAGS = "0 {length} integrity {dev} 0 {size} {mode} 1 block_size:{block}"
INLINE = f"0 {LENGTH} integrity {{base}} 8 {{tag}} I 2 internal_hash:sha256 block_size:{{block}}"


def _noise(sectors, seed=1):
    return random.Random(seed).randbytes(sectors * 512)


class _Above:
    """A table above one that keeps tags, on a kernel and as models."""

    def __init__(self, both, below, above):
        self.both, self.below, self.above = both, below, above

    @contextlib.contextmanager
    def kernel(self):
        with self.both.kernel(self.below) as (device, _):
            words = {**self.both.words, "base": device.ref.name}
            with self.both.kernel_of(self.above, words) as pair:
                yield pair

    @contextlib.contextmanager
    def model(self):
        with (
            self.both.model(self.below) as base,
            open_volume(
                self.above.format(base="base"), {"base": base}, features=self.both.lab.features
            ) as volume,
        ):
            yield volume.device, volume


def _tags(size, block, mode="D", length=LENGTH + 16):
    return TAGS.format(dev="{dev}", length=length, size=size, mode=mode, block=block)


def _damage(both, at):
    """Change a byte on both sides."""
    for name in both.stores:
        data = bytearray(both.bytes(name))
        data[at] ^= 1
        both.fill(name, bytes(data))


# -- mode I ------------------------------------------------------------------------------------------------------------


def _inline(disk, tag="-", block=512, size=40):
    base = open_volume(
        TAGS.format(dev="dev", length=LENGTH + 16, size=size, mode="D", block=block), {"dev": disk}
    )
    return base, open_volume(INLINE.format(base="base", tag=tag, block=block), {"base": base})


@pytest.mark.parametrize(("tag", "block", "size"), [("-", 512, 32), (8, 1024, 11), (40, 512, 48)])
def test_mode_i_keeps_tags_beside_the_data_and_finds_damage(tag, block, size):
    disk = MemoryStore(SIZE * 512)
    base, volume = _inline(disk, tag, block, size)
    volume.write(0, _noise(64))
    volume.close()
    base.close()
    base, volume = _inline(disk, tag, block, size)
    assert volume.read(0, 64 * 512) == _noise(64)
    with pytest.raises(OSError) as caught:
        volume.read(65536, 4096)
    assert caught.value.errno == errno.EILSEQ, "nothing was written there"
    data, tags = bytearray(block), bytearray(size)
    base.device.readinto_tagged(16, memoryview(data), memoryview(tags))
    data[7] ^= 1
    base.device.write_tagged(16, memoryview(data), memoryview(tags), SYNC)
    assert volume.read(block, 4096) == _noise(64)[block : block + 4096]
    with pytest.raises(OSError):
        volume.read(0, block)
    assert volume.status()[0].mismatches == 2
    volume.close()
    base.close()


@pytest.mark.dm
def test_mode_i_on_kernel_and_model(lab):
    with twins(lab, **PIECES) as both:
        stack = _Above(both, _tags(40, 1024), INLINE.format(base="{base}", tag=36, block=1024))
        if lab.control.target_version("integrity") < (1, 12):
            with pytest.raises(OSError), stack.kernel():
                pass
            return
        chance = random.Random(3)
        with stack.kernel() as kernel, stack.model() as model:
            for byte in range(20):
                what = chance.choice(["read", "write", "write", "flush"])
                step = (what, chance.randrange(120) * 2, chance.randrange(1, 8) * 2, byte)
                assert outcome(*model, step) == outcome(*kernel, step), step
            assert model[0].status_text() == kernel[0].status_text()
            only = set(model[0].table_text().split()) - set(kernel[0].table_text().split())
            assert {word for word in only if not word.startswith("buffer_sectors:")} <= {"base"}
        assert both.stores["dev"].read(0, SIZE) == both.bytes("dev"), "superblock, data and tags"
        with stack.model() as (_, volume):
            volume.write(8192, _noise(8, 2))
        both.push()
        with stack.kernel() as (_, file):
            assert file.read(8192, 4096) == _noise(8, 2)
            file.write(12288, _noise(8, 3))
        both.pull()
        with stack.model() as (_, volume):
            assert volume.read(8192, 8192) == _noise(8, 2) + _noise(8, 3)


# -- an encrypted journal ----------------------------------------------------------------------------------------------


@pytest.mark.dm
@pytest.mark.parametrize(
    "options",
    [
        f"{CRC} journal_crypt:ctr(aes):{KEY}",
        f"{CRC} journal_crypt:cbc(aes):{KEY} journal_mac:hmac(sha256):0a0b block_size:1024",
        f"internal_hash:hmac(sha256):0102 journal_crypt:xts(aes):{KEY}",
    ],
)
def test_encrypted_journals_are_replayed_by_kernel_and_model(lab, options):
    with twins(lab, **PIECES) as both:
        words = f"{options} journal_sectors:1200 journal_watermark:90"
        text = f"0 {LENGTH} integrity {{dev}} 8 - J {len(words.split())} {words}"
        with both.kernel(text) as (_, file):
            file.write(0, _noise(64))
            file.flush()
            file.write(4096, _noise(8, 2))
            file.flush()
            both.pull()
        assert _noise(8, 2)[:496] not in both.stores["dev"].read(0, SIZE)
        expected = _noise(8) + _noise(8, 2) + _noise(64)[8192:]
        with both.model(text) as volume:
            assert volume.read(0, 64 * 512) == expected, "the kernel's journal"
            volume.write(8192, _noise(8, 3))
            volume.flush()
            both.push()
        with both.kernel(text) as (_, file):
            found = file.read(0, 64 * 512)
        assert found == expected[:8192] + _noise(8, 3) + expected[12288:], "the model's journal"


# -- crypt above -------------------------------------------------------------------------------------------------------


@pytest.mark.dm
@pytest.mark.parametrize(
    ("cipher", "key", "tags", "options"),
    [
        ("capi:gcm(aes)-random", 32, (28, "D"), "1 integrity:28:aead"),
        ("capi:authenc(hmac(sha256),xts(aes))-random", 96, (48, "J"), "1 integrity:48:aead"),
        (
            "capi:authenc(hmac(sha256),cbc(aes))-plain64",
            64,
            (32, "D"),
            "2 integrity:32:aead sector_size:4096",
        ),
        ("capi:xts(aes)-random", 64, (16, "D"), "1 integrity:16:none"),
        ("capi:rfc7539(chacha20,poly1305)-random", 32, (28, "J"), "1 integrity:28:aead"),
    ],
)
def test_ciphers_that_authenticate_go_both_ways(lab, cipher, key, tags, options):
    size, mode = tags
    block = 4096 if "sector_size" in options else 512
    with twins(lab, **PIECES) as both:
        secret = random.Random(9).randbytes(key).hex()
        above = f"0 {LENGTH} crypt {cipher} {secret} 8 {{base}} 16 {options}"
        stack = _Above(both, _tags(size, block, mode), above)
        with stack.kernel() as (_, file):
            file.write(0, _noise(64))
        both.pull()
        with stack.model() as (_, volume):
            assert volume.read(0, 64 * 512) == _noise(64)
            volume.write(4096, _noise(16, 2))
        both.push()
        expected = _noise(8) + _noise(16, 2) + _noise(64)[12288:]
        with stack.kernel() as (_, file):
            assert file.read(0, 64 * 512) == expected
        data = both.stores["dev"].read(0, SIZE)
        with both.model(_tags(size, block, mode)) as base:
            at = base.device.targets[0]._layout.data_sector(16 + 8) * 512
        assert data[at : at + 512] != bytes(512)
        _damage(both, at + 5)
        with stack.kernel() as kernel, stack.model() as model:
            for first in range(0, 64, 8):
                step = ("read", first, 8, 0)
                assert outcome(*model, step) == outcome(*kernel, step), step
            if "aead" in options:
                assert outcome(*model, ("read", 8, 8, 0)) == errno.EILSEQ
