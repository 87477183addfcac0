"""Crypt volumes against the kernel: what it wrote they read, and what they write is what it writes, byte for byte."""

from __future__ import annotations

import contextlib
import errno
import hashlib

import pytest

from dmcore.errors import TableRejected
from dmcore.kernel.block import BlockFile
from dmcore.model.stores import MemoryStore
from dmcore.table import Table
from dmcore.volume import open_volume

pytestmark = pytest.mark.dm
DATA = hashlib.shake_256(b"pytest-dm").digest(4 * 4096)
KEY = hashlib.shake_256(b"key").digest(2048)
LENGTH = len(DATA) // 512
LARGE = "2 sector_size:4096 iv_large_sectors"
CASES = [
    ("aes", 16, 8, ""), ("aes-plain", 24, 2**32 - 8, ""), ("aes-ecb", 32, 0, ""), ("aes-cbc-null", 16, 0, ""),
    ("aes-cbc-plain", 32, 2**32 - 8, ""), ("aes-cbc-plain64", 32, 2**32 - 8, "1 sector_size:1024"),
    ("aes-cbc-plain64be", 32, 2**64 - 16, ""), ("aes-cbc-benbi", 16, 2**61, ""), ("aes-cbc-benbi", 16, 2**59 - 8, LARGE),
    ("aes-cbc-essiv:sha256", 16, 2**40, ""), ("aes-cbc-essiv:sha256", 32, 0, LARGE),
    ("capi:cbc(aes)-essiv:sha256", 24, 8, ""), ("capi:essiv(cbc(aes),sha256)-plain64", 32, 8, ""),
    ("aes-cbc-eboiv", 32, 8, ""), ("aes-cbc-eboiv", 16, 8, LARGE), ("aes-cbc-eboiv", 16, 8, "1 sector_size:2048"),
    ("aes-xts-eboiv", 64, 8, ""), ("aes-cbc-elephant", 32, 8, ""), ("aes-cbc-elephant", 64, 8, LARGE),
    ("aes:64-cbc-lmk", 1024, 8, ""), ("aes:64-cbc-lmk", 1040, 2**55, ""), ("aes:4-xts-lmk", 128, 0, ""),
    ("aes-cbc-tcw", 48, 8, ""), ("aes-cbc-tcw", 64, 2**33, ""), ("aes-xts-tcw", 96, 0, ""),
    ("aes:2-cbc-plain64", 32, 1, ""), ("aes:4-cbc-essiv:sha256", 128, 8, LARGE), ("capi:cbc(aes)-lmk", 1024, 0, ""),
    ("aes-ctr-plain64", 16, 8, ""), ("capi:ctr(aes)-plain64be", 32, 2**64 - 8, ""), ("aes-ctr-benbi", 32, 8, ""),
    ("aes-xts-plain64", 32, 0, ""), ("aes-xts-plain64", 48, 2**64 - 8, ""), ("aes-xts-plain64", 64, 2**32, LARGE),
    ("aes-xts-plain64", 64, 2**32 - 8, "1 sector_size:4096"), ("aes-xts-essiv:sha256", 64, 8, ""),
    ("aes-lrw-benbi", 32, 8, ""), ("aes-lrw-benbi", 48, 2**58 - 4, ""),
    ("cipher_null-ecb", 0, 0, ""), ("camellia-xts-plain64", 64, 0, ""),
    ("des3_ede-cbc-plain64", 24, 0, ""), ("des-cbc-plain", 8, 0, ""), ("blowfish-cbc-plain64be", 56, 0, ""),
    ("blowfish-cbc-tcw", 40, 0, ""), ("des3_ede-cbc-eboiv", 24, 8, ""), ("cast5-cbc-benbi", 16, 8, ""),
    ("seed-cbc-plain64", 16, 0, ""), ("aes-cbc-essiv:blake2b-256", 16, 0, ""),
    ("aes-cbc-essiv:md5", 16, 0, ""), ("aes-cbc-essiv:sha3-256", 16, 0, ""), ("capi:chacha20-plain64", 32, 8, ""),
    ("capi:chacha20-plain64", 32, 2**32 - 8, ""), ("capi:chacha20-plain64", 32, 2**32 - 8, LARGE),
]  # fmt: skip


@contextlib.contextmanager
def _encrypted(lab, text):
    """Make the device, or skip the test where the kernel was built without the cipher."""
    with contextlib.ExitStack() as stack:
        try:
            device = stack.enter_context(lab.device(Table.parse(text)))
        except TableRejected as refused:
            if refused.errno != errno.ENOENT:
                raise
            pytest.skip(f"this kernel has not the cipher of {text.split()[3]}: {refused.kernel_log[:1]}")
        yield device


@pytest.mark.parametrize(("cipher", "size", "iv_offset", "options"), CASES)
def test_images_are_the_kernels(lab, cipher, size, iv_offset, options):
    words = f"{cipher} {KEY[:size].hex() or '-'} {iv_offset} {{}} 16 {options}".rstrip()
    text = f"0 {LENGTH} crypt {words.format(lab.refs[0].name)}"
    with _encrypted(lab, text) as device, BlockFile(device.path) as file:
        file.write(0, DATA)
        seen = file.read(0, len(DATA))  # lmk with a mode other than cbc gives something else
        shown = device.table_text().rstrip()
    with lab.disk() as below:
        written = below.read(16 * 512, len(DATA))
    disk = MemoryStore(1 << 20, word=lab.refs[0].name)
    with open_volume(text, {lab.refs[0].name: disk}, features=lab.features) as volume:
        volume.write(0, DATA)
        assert disk.read(16, LENGTH) == written
        assert volume.read(0, len(DATA)) == seen
        assert volume.table_text() == shown
