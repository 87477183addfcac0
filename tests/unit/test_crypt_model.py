"""Crypt volumes: what the library's own ciphers give unit by unit, keys that no text shows, tags, messages."""

from __future__ import annotations

import errno
import hashlib
import struct

import pytest
from cryptography.hazmat.decrepit.ciphers import algorithms as decrepit
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from failing import FailingStore

from dmcore import open_volume
from dmcore.errors import KeyMissing, SpecError, Unsupported
from dmcore.model.block import SYNC
from dmcore.model.stores import MemoryStore

KEY = bytes(range(7, 135))
DATA = hashlib.shake_256(b"data").digest(3 * 4096)
SECTORS = len(DATA) // 512


class TaggedStore(MemoryStore):
    """A disk that keeps tags, as an integrity device without a hash of its own does."""

    def __init__(self, size: int, tag_size: int, interval: int = 512) -> None:
        super().__init__(size, word="tagged")
        self.tags = bytearray(size // interval * tag_size)
        self._size, self._interval = tag_size, interval

    @property
    def tag_size(self) -> int:
        return self._size

    @property
    def tag_interval(self) -> int:
        return self._interval

    def _place(self, sector: int, tags: memoryview) -> slice:
        first = sector * 512 // self._interval * self._size
        return slice(first, first + len(tags))

    def readinto_tagged(self, sector, buffer, tags, flags=SYNC):
        self.readinto(sector, buffer, flags)
        tags[:] = self.tags[self._place(sector, tags)]

    def write_tagged(self, sector, data, tags, flags=SYNC):
        self.write(sector, data, flags)
        self.tags[self._place(sector, tags)] = tags


def _table(cipher: str, key: bytes | str, options: str = "", *, iv_offset: int = 0, start: int = 0) -> str:
    word = key if isinstance(key, str) else key.hex() or "-"
    count = f" {len(options.split())} {options}" if options else ""
    return f"0 {SECTORS} crypt {cipher} {word} {iv_offset} disk {start}{count}"


def _encrypted(table: str, disk: MemoryStore | None = None) -> bytes:
    """Write `DATA` through a volume, see it come back whole and in pieces, and return what is below."""
    disk = disk or MemoryStore(len(DATA) + 8 * 512)
    with open_volume(table, {"disk": disk}) as volume:
        volume.write(0, DATA)
        assert volume.read(0, len(DATA)) == DATA
        step = volume.block_size
        assert volume.read(step, 2 * step) == DATA[step : 3 * step]
        volume.write(step, DATA[step : 2 * step])
        assert volume.read(0, len(DATA)) == DATA
    return bytes(disk.read(0, disk.sectors))


def _by_units(algorithm, mode, unit: int) -> bytes:
    """Encrypt `DATA` unit by unit, with `mode(first sector)`."""
    parts = []
    for at in range(0, len(DATA), unit):
        encryptor = Cipher(algorithm, mode(at // 512)).encryptor()
        parts.append(encryptor.update(DATA[at : at + unit]) + encryptor.finalize())
    return b"".join(parts)


@pytest.mark.parametrize("size", [32, 48, 64])
@pytest.mark.parametrize(
    ("unit", "large"), [(512, False), (1024, False), (2048, True), (4096, False), (4096, True)]
)
def test_xts_is_what_the_library_gives_unit_by_unit(size, unit, large):
    first, key = 2**33 + 8, KEY[:size]
    options = (f"sector_size:{unit}" if unit > 512 else "") + (" iv_large_sectors" if large else "")
    below = _encrypted(_table("aes-xts-plain64", key, options.strip(), iv_offset=first, start=8))
    assert below[:4096] == bytes(4096)
    if size == 48:  # the library refuses XTS of AES-192
        assert below[4096:] != DATA
        return

    def tweak(sector):
        number = first + sector
        return modes.XTS(struct.pack("<QQ", number // (unit // 512) if large else number, 0))

    assert below[4096 : 4096 + len(DATA)] == _by_units(algorithms.AES(key), tweak, unit)


@pytest.mark.parametrize(
    ("iv", "make"),
    [
        ("plain", lambda number, key: struct.pack("<IIQ", number % 2**32, 0, 0)),
        ("plain64", lambda number, key: struct.pack("<QQ", number, 0)),
        ("plain64be", lambda number, key: struct.pack(">QQ", 0, number)),
        ("benbi", lambda number, key: struct.pack(">QQ", 0, number * 32 + 1)),
        ("null", lambda number, key: bytes(16)),
    ],
)
@pytest.mark.parametrize("first", [0, 2**32 - 2, 2**64 - 3])
def test_ivs_count_sectors_past_every_border(iv, make, first):
    def mode(sector):
        number = (first + sector) % 2**64
        if iv == "benbi":
            return modes.CBC(struct.pack(">QQ", 0, (number * 32 + 1) % 2**64))
        return modes.CBC(make(number, KEY[:32]))

    table = _table(f"aes-cbc-{iv}", KEY[:32], iv_offset=first)
    assert _encrypted(table)[: len(DATA)] == _by_units(algorithms.AES(KEY[:32]), mode, 512)


def _ecb(key: bytes, data: bytes) -> bytes:
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(data)


def test_essiv_both_ways_of_writing_it_and_eboiv():
    salt = hashlib.sha256(KEY[:16]).digest()
    expected = _by_units(
        algorithms.AES(KEY[:16]), lambda sector: modes.CBC(_ecb(salt, struct.pack("<QQ", sector, 0))), 512
    )
    for cipher in (
        "aes-cbc-essiv:sha256",
        "capi:cbc(aes)-essiv:sha256",
        "capi:essiv(cbc(aes),sha256)-plain64",
    ):
        assert _encrypted(_table(cipher, KEY[:16]))[: len(DATA)] == expected
    expected = _by_units(
        algorithms.AES(KEY[:16]),
        lambda sector: modes.CBC(_ecb(KEY[:16], struct.pack("<QQ", sector * 1024, 0))),
        1024,
    )
    assert _encrypted(_table("aes-cbc-eboiv", KEY[:16], "sector_size:1024"))[: len(DATA)] == expected


def test_counters_carry_and_keys_take_turns():
    key = algorithms.AES(KEY[:32])
    below = _encrypted(_table("capi:ctr(aes)-plain64be", KEY[:32], iv_offset=2**64 - 2))
    expected = _by_units(
        key, lambda sector: modes.CTR(struct.pack(">QQ", 0, (2**64 - 2 + sector) % 2**64)), 512
    )
    assert below[: len(DATA)] == expected
    below = _encrypted(_table("aes:2-cbc-plain64", KEY[:32], iv_offset=1))
    for sector in range(SECTORS):
        half = KEY[16:32] if (sector + 1) % 2 else KEY[:16]
        mode = modes.CBC(struct.pack("<QQ", sector + 1, 0))
        one = Cipher(algorithms.AES(half), mode).encryptor().update(DATA[sector * 512 : (sector + 1) * 512])
        assert below[sector * 512 : (sector + 1) * 512] == one, sector


@pytest.mark.parametrize(
    ("name", "algorithm", "size"),
    [
        ("camellia", decrepit.Camellia, 32), ("seed", decrepit.SEED, 16), ("sm4", algorithms.SM4, 16),
        ("des3_ede", decrepit.TripleDES, 24), ("blowfish", decrepit.Blowfish, 56), ("cast5", decrepit.CAST5, 16),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_every_cipher_of_the_library(name, algorithm, size):
    key = KEY[:size]
    width = algorithm(key).block_size // 8
    expected = _by_units(algorithm(key), lambda sector: modes.CBC(struct.pack("<QQ", sector, 0)[:width]), 512)
    assert _encrypted(_table(f"{name}-cbc-plain64", key))[: len(DATA)] == expected


@pytest.mark.parametrize(
    ("cipher", "size", "options"),
    [
        ("aes:64-cbc-lmk", 1024, ""), ("aes:64-cbc-lmk", 1040, ""), ("aes-cbc-tcw", 64, ""), ("aes-xts-tcw", 96, ""),
        ("blowfish-cbc-tcw", 40, ""), ("aes-cbc-elephant", 64, "sector_size:4096 iv_large_sectors"),
        ("aes-lrw-benbi", 32, ""), ("aes-pcbc-plain64", 16, ""), ("aes-ecb", 16, ""), ("des-cbc-plain", 8, ""),
        ("capi:chacha20-plain64", 32, ""), ("aes-xts-eboiv", 64, ""), ("cipher_null-ecb", 0, ""), ("aes", 16, ""),
    ],
)  # fmt: skip
def test_what_was_written_comes_back(cipher, size, options):
    below = _encrypted(_table(cipher, (KEY * 9)[:size], options))
    assert (below[: len(DATA)] == DATA) == (size == 0)


def test_the_counter_of_a_stream_goes_on_from_0_and_the_nonce_stays():
    def stream(counter, size):
        nonce = struct.pack("<Q", counter) + bytes(8)
        return Cipher(algorithms.ChaCha20(KEY[:32], nonce), None).encryptor().update(bytes(size))

    table = _table("capi:chacha20-plain64", KEY[:32], iv_offset=2**32 - 4)
    found = _encrypted(table)
    for sector, blocks in enumerate([4, 3, 2, 1]):
        expected = stream(2**32 - blocks, 64 * blocks) + stream(0, 512 - 64 * blocks)
        part = slice(sector * 512, (sector + 1) * 512)
        assert bytes(a ^ b for a, b in zip(DATA[part], found[part], strict=True)) == expected


def _outcome(do, *arguments):
    """Return what a request gives, or its errno."""
    try:
        return do(*arguments)
    except OSError as error:
        return error.errno


@pytest.mark.parametrize(
    ("cipher", "size", "tag", "kind", "options"),
    [
        ("capi:gcm(aes)-random", 32, 28, "aead", ""), ("capi:gcm(aes)-plain64", 16, 12, "aead", "sector_size:4096"),
        ("capi:rfc7539(chacha20,poly1305)-random", 32, 28, "aead", ""),
        ("capi:authenc(hmac(sha256),xts(aes))-random", 96, 48, "aead", ""),
        ("capi:authenc(hmac(sha256),cbc(aes))-plain64", 64, 32, "aead", "sector_size:4096"),
        ("capi:authenc(hmac(sha256),cbc(aes))-essiv:sha256", 64, 20, "aead", ""),
        ("capi:authenc(hmac(sha1),cbc(aes))-plain64", 48, 20, "aead", "integrity_key_size:16"),
        ("capi:xts(aes)-random", 64, 16, "none", ""),
    ],
)  # fmt: skip
def test_tags_authenticate_and_keep_random_ivs(cipher, size, tag, kind, options):
    unit = 4096 if "4096" in options else 512
    disk = TaggedStore(len(DATA), tag, unit)
    table = _table(cipher, KEY[:size], f"integrity:{tag}:{kind} {options}".strip())
    with open_volume(table, {"disk": disk}) as volume:
        if kind == "aead":
            with pytest.raises(OSError) as fresh:
                volume.read(0, unit)
            assert fresh.value.errno == errno.EILSEQ
    below = _encrypted(table, disk)
    for spoil in (
        lambda: disk.write(8, memoryview(bytes(512))),
        lambda: disk.tags.__setitem__(slice(2 * tag, 3 * tag), bytes(tag)),
    ):
        disk.write(0, memoryview(below))
        kept = bytes(disk.tags)
        spoil()
        with open_volume(table, {"disk": disk}) as volume:
            outcomes = [_outcome(volume.read, at, unit) for at in range(0, len(DATA), unit)]
        wrong = [
            outcome
            for at, outcome in zip(range(0, len(DATA), unit), outcomes, strict=True)
            if outcome != DATA[at : at + unit]
        ]
        assert len(wrong) == 1
        assert wrong[0] == errno.EILSEQ or kind == "none"
        disk.tags[:] = kept


def test_gcm_is_what_the_library_gives():
    disk = TaggedStore(len(DATA), 28)
    below = _encrypted(_table("capi:gcm(aes)-random", KEY[:32], "integrity:28:aead", iv_offset=5), disk)
    for sector in range(SECTORS):
        tag = bytes(disk.tags[sector * 28 : (sector + 1) * 28])
        sealed = below[sector * 512 : (sector + 1) * 512] + tag[:16]
        clear = AESGCM(KEY[:32]).decrypt(tag[16:], sealed, struct.pack("<Q", sector) + tag[16:])
        assert clear == DATA[sector * 512 : (sector + 1) * 512]


def test_random_ivs_do_not_repeat():
    disk = TaggedStore(len(DATA), 16)
    table = _table("capi:xts(aes)-random", KEY[:64], "integrity:16:none")
    assert _encrypted(table, disk) != _encrypted(table, disk)
    ivs = {bytes(disk.tags[at : at + 16]) for at in range(0, len(disk.tags), 16)}
    assert len(ivs) == SECTORS


@pytest.mark.parametrize("cipher", ["twofish-xts-plain64", "serpent-cbc-essiv:sha256", "capi:adiantum(xchacha12,aes)-plain64",
                                    "aes-xyz-plain64", "des3_ede-xts-plain64", "aes-cbc-essiv:wp512"])  # fmt: skip
def test_says_which_algorithm_is_not_there(cipher):
    with pytest.raises(Unsupported, match=r"not supported here|does not have it"):
        open_volume(_table(cipher, KEY[:32]), {"disk": MemoryStore(1 << 20)})


@pytest.mark.parametrize(
    ("table", "disk", "field"),
    [
        (_table("camellia-cbc-plain64", KEY[:20]), MemoryStore(1 << 20), "key"),
        (_table("aes-cbc-essiv:sha1", KEY[:16]), MemoryStore(1 << 20), "key"),
        (_table("des-cbc-eboiv", KEY[:9]), MemoryStore(1 << 20), "key"),
        (_table("capi:ctr(aes)-eboiv", KEY[:16]), MemoryStore(1 << 20), "cipher"),
        (_table("capi:gcm(aes)-random", KEY[:32], "integrity:28:aead"), MemoryStore(1 << 20), "tags"),
        (_table("capi:gcm(aes)-random", KEY[:32], "integrity:28:aead"), TaggedStore(1 << 20, 29), "tags"),
        (_table("capi:gcm(aes)-random", KEY[:32], "integrity:30:aead"), TaggedStore(1 << 20, 30), "tags"),
        (_table("capi:gcm(aes)-random", KEY[:32], "integrity:28:aead"), TaggedStore(1 << 20, 28, 4096), "sector_size"),
        (_table("capi:xts(aes)-random", KEY[:32], "integrity:8:none"), TaggedStore(1 << 20, 8), "tags"),
        (_table("capi:gcm(aes)-random", KEY[:31], "integrity:28:aead"), TaggedStore(1 << 20, 28), "key"),
        (_table("capi:authenc(hmac(sha512),cbc(aes))-plain64", KEY[:60], "integrity:64:aead"), TaggedStore(1 << 20, 64), "key"),
    ],
)  # fmt: skip
def test_refuses_what_the_kernel_refuses_and_names_the_field(table, disk, field):
    with pytest.raises(SpecError) as caught:
        open_volume(table, {"disk": disk})
    assert caught.value.field == field
    assert KEY[2:10].hex() not in str(caught.value)


def test_keys_in_a_keyring_are_the_callers():
    table = _table("aes-xts-plain64", ":64:logon:pytest:one")
    disk = MemoryStore(1 << 20)
    with pytest.raises(KeyMissing) as caught:
        open_volume(table, {"disk": disk})
    assert caught.value.errno == errno.ENOKEY
    with pytest.raises(SpecError):
        open_volume(table, {"disk": disk}, keys={"pytest:one": KEY[:63]})
    with open_volume(table, {"disk": disk}, keys={"logon:pytest:one": KEY[:64]}) as volume:
        volume.write(0, DATA)
        assert volume.table_text() == f"0 {SECTORS} crypt aes-xts-plain64 :64:logon:pytest:one 0 disk 0"
    with open_volume(_table("aes-xts-plain64", KEY[:64]), {"disk": disk}) as volume:
        assert volume.read(0, len(DATA)) == DATA
        assert volume.table_text() == f"0 {SECTORS} crypt aes-xts-plain64 <64-byte-key> 0 disk 0"


def test_keys_are_set_and_wiped_while_suspended():
    disk = MemoryStore(1 << 20)
    other = KEY[64:128]
    with open_volume(
        _table("aes-xts-plain64", KEY[:64]), {"disk": disk}, keys={"user:x": KEY[:64]}
    ) as volume:
        volume.write(0, DATA)
        device = volume.device
        for message in ("key wipe", f"key set {other.hex()}", "key", "what is"):
            assert _outcome(volume.message, message) == errno.EINVAL
        device.suspend()
        assert _outcome(volume.message, "KEY Wipe") in {None, ""}
        assert _outcome(device.resume) == errno.EAGAIN
        for wrong in (
            f"key set {other[:32].hex()}",
            f"key set {'x' * 128}",
            "key set -",
            "key set :64:user:",
            "key wipe now",
        ):
            assert _outcome(volume.message, wrong) == errno.EINVAL
        assert _outcome(volume.message, "key set :64:user:none") == errno.ENOKEY
        assert _outcome(volume.message, f"key set {other.hex()}") in {None, ""}
        device.resume()
        assert volume.read(0, len(DATA)) != DATA
        device.suspend()
        volume.message("key set :64:user:x")
        device.resume()
        assert volume.read(0, len(DATA)) == DATA
        assert ":64:user:x" in volume.table_text()


def test_discards_pass_only_if_allowed_and_read_as_noise():
    disk = MemoryStore(1 << 20)
    with open_volume(_table("aes-xts-plain64", KEY[:64]), {"disk": disk}) as volume:
        assert _outcome(volume.discard, 0, 4096) == errno.EOPNOTSUPP
    with open_volume(_table("aes-xts-plain64", KEY[:64], "allow_discards"), {"disk": disk}) as volume:
        volume.write(0, DATA)
        volume.discard(512, 4096)
        assert disk.read(1, 8) == bytes(4096)
        assert volume.read(512, 4096) not in {bytes(4096), DATA[512:4608]}
        volume.write_zeroes(0, 1024)
        assert volume.read(0, 1024) == bytes(1024)


def test_failures_below_come_through():
    disk = FailingStore(2048)
    disk.unwritten, disk.error = {3}, errno.ENOSPC
    with open_volume(_table("aes-xts-plain64", KEY[:64]), {"disk": disk}) as volume:
        assert _outcome(volume.write, 0, DATA) == errno.ENOSPC
        assert _outcome(volume.write, 2048, DATA[2048:]) in {None, ""}


@pytest.mark.parametrize(
    ("cipher", "size_of_key"), [("aes-cbc-essiv:sha256", 32), ("aes-xts-plain64", 64), ("aes-ecb", 16)]
)
def test_large_requests_are_what_small_ones_are(cipher, size_of_key):
    size = 5 << 19
    data = hashlib.shake_128(b"large").digest(size)
    one, two = MemoryStore(size), MemoryStore(size)
    table = f"0 {size // 512} crypt {cipher} {KEY[:size_of_key].hex()} 0 disk 0"
    with open_volume(table, {"disk": one}) as volume, open_volume(table, {"disk": two}) as other:
        volume.write(0, data)
        for at in range(0, size, 61440):
            other.write(at, data[at : at + 61440])
        assert volume.read(0, size) == data
    assert one.read(0, size // 512) == two.read(0, size // 512)
