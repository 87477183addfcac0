"""dm.crypt, dm.verity and dm.integrity on a real kernel."""

from __future__ import annotations

import errno

import pytest

from dmcore.errors import SpecError
from dmcore.targets.crypt import Key
from dmcore.targets.verity import OnCorruption

KIB = 1024
pytestmark = pytest.mark.dm(size="1M")


def refused(number, action, *args):
    with pytest.raises(OSError) as caught:
        action(*args)
    assert caught.value.errno == number


def test_an_encrypted_disk_and_its_key(dm):
    disk = dm.crypt(sector_size=4096)
    disk.write(0, b"plain" * 4096)
    hidden = disk.lower.read(0, 4096)
    assert b"plain" not in hidden
    with disk.locked():
        assert disk.device.info().suspended
    assert disk.read(0, 4096) == (b"plain" * 4096)[:4096]
    old = disk.key
    disk.set_key(Key(bytes(64)))
    assert disk.read(0, 4096) != (b"plain" * 4096)[:4096]
    disk.set_key(old)
    assert disk.read(0, 4096) == (b"plain" * 4096)[:4096]
    assert old.reveal().hex() not in disk.describe() + repr(disk.table())


def test_an_encrypted_disk_with_a_key_and_faults_of_the_tests(dm):
    flakey = dm.flakey()
    disk = dm.crypt(flakey, cipher="aes-cbc-essiv:sha256", key=bytes(range(32)), start=8)
    assert disk.size == flakey.size - 4096
    flakey.fail(writes=True)
    refused(errno.EIO, disk.write, 0, b"x" * 512)
    with pytest.raises(SpecError):
        dm.crypt(dm.loop("4K"), start=8)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_verity_disk_finds_what_was_changed(dm, algorithm):
    data = dm.loop()
    data.write(0, bytes(range(256)) * 4 * KIB)
    disk = dm.verity(data, algorithm=algorithm)
    assert disk.read(0, disk.size) == bytes(range(256)) * 4 * KIB
    assert not disk.corrupted
    disk.corrupt(5000)
    refused(errno.EIO, disk.read, 4096, 4096)
    assert disk.read(0, 4096) == bytes(range(256)) * 16
    assert disk.corrupted
    refused(errno.EPERM, disk.write, 0, b"x" * 4096)
    disk.corrupt_tree()
    refused(errno.EIO, disk.read, 512 * KIB, 4096)
    with pytest.raises(SpecError, match="offset"):
        disk.corrupt(1 << 20)


def test_a_verity_disk_with_options(dm):
    disk = dm.verity(block_size=1024, salt=b"", on_corruption=OnCorruption.IGNORE, size="64K")
    disk.corrupt(0)
    assert disk.read(0, 1024) == b"\xff" + bytes(1023)
    assert disk.corrupted
    single = dm.verity(size="4K")
    assert single.read(0, 4096) == bytes(4096)
    with pytest.raises(SpecError, match="algorithm"):
        dm.verity(algorithm="md7")


def test_a_verity_disk_with_parity_repairs(dm, dm_backend):
    if not dm_backend.has("verity.fec"):
        pytest.skip("this kernel does not repair (CONFIG_DM_VERITY_FEC)")
    data = dm.loop()
    data.write(0, bytes(range(256)) * 4 * KIB)
    disk = dm.verity(data, fec_roots=8)
    disk.corrupt(5000, 3)
    disk.corrupt_tree(1)
    assert disk.read(0, disk.size) == bytes(range(256)) * 4 * KIB
    assert disk.state.corrected
    with pytest.raises(SpecError, match="fec_roots"):
        dm.verity(fec_roots=1)
    with pytest.raises(SpecError, match="block_size"):
        dm.verity(block_size=0)


@pytest.mark.parametrize("mode", ["J", "B", "D"])
def test_an_integrity_disk_finds_what_was_changed(dm, mode):
    disk = dm.integrity(mode=mode)
    assert disk.size == 1 << 20
    disk.write(0, b"i" * 16 * KIB)
    disk.corrupt(5000, 2)
    refused(errno.EILSEQ, disk.read, 4608, 512)
    assert disk.read(0, 4096) == b"i" * 4096
    assert disk.mismatches == 1
    disk.write(4096, b"n" * 4096)
    assert disk.read(4096, 4096) == b"n" * 4096


def test_an_integrity_disk_in_one_piece(dm):
    disk = dm.integrity(metadata=False, recalculate=True, internal_hash="sha256", block_size=4096)
    assert disk.size < 1 << 20
    disk.wait_recalculated()
    assert disk.read(0, 64 * KIB) == bytes(64 * KIB)
    with pytest.raises(SpecError, match="metadata"):
        disk.corrupt(0)
    with pytest.raises(SpecError, match="mode"):
        dm.integrity(mode="X")
