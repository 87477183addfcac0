from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import pickle
import platform
import struct
from collections.abc import Iterator
from dataclasses import replace

import pytest
from ground import Ground

from dmcore import targets
from dmcore.abi.dm import TableLine
from dmcore.errors import IoctlError, ParseError, SpecError, TableRejected
from dmcore.params import masked
from dmcore.ref import Ref
from dmcore.table import Line, Table
from dmcore.target import NO_FEATURES, Target
from dmcore.targets.crypt import Cipher, Key, KeyringKey, SetKey, Tags, WipeKey

DEV = Ref("7:0")
HEX = bytes(range(64)).hex()
WORDS = f"aes-xts-plain64 {HEX} 8 7:0 2048"
CRYPT = targets.Crypt(cipher="aes-xts-plain64", key=Key(bytes(range(64))), iv_offset=8, dev=DEV, start=2048)
NULL = targets.Crypt(cipher="cipher_null-ecb", key=Key(b""), dev=DEV)
RING = replace(CRYPT, key=KeyringKey(64, "logon", "pytest:one"))


class CryptGround(Ground):
    """The kernel must have the cipher, and the keyring the key, which the library cannot know."""

    def fits(self, target: Target, length: int) -> bool:
        assert isinstance(target, targets.Crypt)
        return isinstance(target.key, Key) and "aes" in target.cipher and len(target.key) > 0


@contextlib.contextmanager
def ground(lab) -> Iterator[Ground]:
    yield CryptGround(lab)


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (WORDS, CRYPT),
        (WORDS.upper().replace("AES-XTS-PLAIN64", "aes-xts-plain64"), CRYPT),
        (f"{WORDS} 0 ignored", CRYPT),
        ("cipher_null-ecb - 0 7:0 0", NULL),
        (f"{WORDS} 1 ALLOW_discards", replace(CRYPT, allow_discards=True)),
        (
            f"{WORDS} 4 iv_large_sectors sector_size:4096 sector_size:66560 integrity:28:None",
            replace(CRYPT, sector_size=1024, iv_large_sectors=True, tags=Tags(28, aead=False)),
        ),
        (
            f"capi:gcm(aes)-random {HEX[:64]} 0 7:0 0 3 integrity:28:aead integrity_key_size:20 high_priority",
            targets.Crypt(
                cipher="capi:gcm(aes)-random", key=Key(bytes(range(32))), dev=DEV, tags=Tags(28),
                integrity_key_size=20, high_priority=True,
            ),
        ),
        ("aes-xts-plain64 :64:logon:pytest:one 8 7:0 2048", RING),
    ],
)  # fmt: skip
def test_reads_what_the_kernel_reads(words, value):
    (line,) = Table.from_lines([TableLine(0, 32, "crypt", words)]).lines
    assert line.target == value
    assert Table.from_lines(Table.of(value, 32).encode(str)) == Table.of(value, 32)


@pytest.mark.parametrize(
    ("words", "index"),
    [
        (WORDS.rsplit(maxsplit=1)[0], 7),
        (WORDS.replace(HEX, HEX[:-1]), 4),
        (WORDS.replace(HEX, "x" + HEX[1:]), 4),
        (WORDS.replace(HEX, ":64:login:x"), 4),
        (WORDS.replace(HEX, ":0:user:x"), 4),
        (WORDS.replace(HEX, ":64:user"), 4),
        (WORDS.replace(" 8 ", " +8 "), 5),
        (f"{WORDS} 2 allow_discards", 8),
        (f"{WORDS} 1 sector_size:513", 9),
        (f"{WORDS} 1 sector_size:512x", 9),
        (f"{WORDS} 1 integrity:0:aead", 9),
        (f"{WORDS} 1 integrity:16:mac", 9),
        (f"{WORDS} 1 integrity_key_size:0", 9),
        (f"{WORDS} 1 what", 9),
    ],
)
def test_refuses_what_the_kernel_refuses_and_names_the_word(words, index):
    with pytest.raises(ParseError) as caught:
        Table.parse(f"0 32 crypt {words}")
    assert caught.value.index == index


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("cipher", {"cipher": ""}),
        ("cipher", {"cipher": "aes xts"}),
        ("cipher", {"cipher": "xts(aes)-plain64"}),
        ("cipher", {"cipher": "aes:3-cbc-plain"}),
        ("cipher", {"cipher": "aes:0-cbc-plain"}),
        ("cipher", {"cipher": "aes-xts"}),
        ("cipher", {"cipher": "aes-cbc-essiv"}),
        ("cipher", {"cipher": "capi:cbc(aes)-essiv"}),
        ("cipher", {"cipher": "aes-xts-plain63"}),
        ("cipher", {"cipher": "aes-xts-plain64", "tags": Tags(16)}),
        ("cipher", {"cipher": f"{'a' * 128}-cbc-plain"}),
        ("key", {"key": Key(bytes(63))}),
        ("key", {"key": Key(b"")}),
        ("key", {"key": b"bytes"}),
        ("key", {"key": KeyringKey(63, "user", "x")}),
        ("key", {"cipher": "aes-cbc-tcw", "key": Key(bytes(32))}),
        ("key", {"cipher": "aes:64-cbc-lmk", "key": Key(bytes(64))}),
        ("sector_size", {"cipher": "aes:64-cbc-lmk", "key": Key(bytes(1024)), "sector_size": 4096}),
        ("sector_size", {"sector_size": 8192}),
        ("sector_size", {"sector_size": 1536}),
        ("iv_offset", {"iv_offset": -1}),
        ("iv_offset", {"iv_offset": 9, "sector_size": 4096}),
        ("dev", {"dev": "7:0"}),
        ("start", {"start": 2**64}),
        ("start", {"start": 7, "sector_size": 1024}),
        ("allow_discards", {"allow_discards": 1}),
        ("tags", {"tags": 16}),
        ("tags", {"cipher": "aes-cbc-random", "key": Key(bytes(16))}),
        ("integrity_key_size", {"integrity_key_size": 0}),
    ],
)
def test_refuses_bad_values_and_names_the_field(field, values):
    with pytest.raises(SpecError) as caught:
        replace(CRYPT, **values)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("size", lambda: Tags(481)),
        ("aead", lambda: Tags(16, "none")),
        ("size", lambda: KeyringKey(0, "user", "x")),
        ("type", lambda: KeyringKey(16, "login", "x")),
        ("description", lambda: KeyringKey(16, "user", "a b")),
        ("key", lambda: Key("secret")),
        ("key", lambda: SetKey(b"secret")),
    ],
)
def test_refuses_bad_parts(field, make):
    with pytest.raises(SpecError) as caught:
        make()
    assert caught.value.field == field
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("aes", ("cbc(aes)", 1, "plain", None)),
        ("aes-plain", ("cbc(aes)", 1, "plain", None)),
        ("aes-ecb", ("ecb(aes)", 1, None, None)),
        ("aes-ecb-what", ("ecb(aes)", 1, "what", None)),
        ("aes:64-cbc-lmk", ("cbc(aes)", 64, "lmk", None)),
        ("aes-cbc-essiv:sha256", ("essiv(cbc(aes),sha256)", 1, "essiv", "sha256")),
        ("capi:xts(aes)-plain64", ("xts(aes)", 1, "plain64", None)),
        ("capi:cbc(aes)-essiv:sha256", ("essiv(cbc(aes),sha256)", 1, "essiv", "sha256")),
        ("capi:cbc(aes)-lmk", ("cbc(aes)", 64, "lmk", None)),
        ("capi:cbc(aes)", ("cbc(aes)", 1, None, None)),
        ("capi:authenc(hmac(sha256),xts(aes))-random", ("authenc(hmac(sha256),xts(aes))", 1, "random", None)),
    ],
)
def test_both_grammars_of_ciphers(text, parts):
    assert Cipher.parse(text) == Cipher(*parts)


def test_refuses_half_a_sector():
    with pytest.raises(SpecError) as caught:
        Line(0, 9, replace(CRYPT, sector_size=4096))
    assert caught.value.field == "sector_size"


def test_value():
    assert CRYPT.refs() == (DEV,)
    assert CRYPT.encode(str) == WORDS
    assert NULL.encode(str) == "cipher_null-ecb - 0 7:0 0"
    assert RING.encode(str) == WORDS.replace(HEX, ":64:logon:pytest:one")
    assert CRYPT.readback(NO_FEATURES) == CRYPT
    assert replace(CRYPT, high_priority=True).needs().features == {"crypt.high_priority"}
    assert (CRYPT.secret, NULL.secret, RING.secret) == (True, False, False)
    assert Table.of(CRYPT, 32).secret


def test_messages():
    assert SetKey(Key(b"\1\xff")).encode() == "key set 01ff"
    assert SetKey(KeyringKey(64, "user", "x")).encode() == "key set :64:user:x"
    assert WipeKey().encode() == "key wipe"
    assert SetKey.secret
    assert not WipeKey.secret


def test_keys_are_values():
    assert Key(b"ab") == Key(b"ab")
    assert Key(b"ab") != Key(b"ac")
    assert Key(b"ab") != b"ab"
    assert hash(Key(b"ab")) == hash(Key(b"ab"))
    assert pickle.loads(pickle.dumps(Key(b"ab"))) == Key(b"ab")
    assert Key(b"ab").reveal() == b"ab"


def _texts_of(value: object) -> Iterator[str]:
    yield from (str(value), repr(value), f"{value}")


def test_no_text_shows_a_key():
    table = Table.of(CRYPT, 32)
    (line,) = table.encode(str)
    shown = [
        text
        for value in (CRYPT, table, table.lines[0], line, CRYPT.key, SetKey(CRYPT.key))
        for text in _texts_of(value)
    ]
    wrong = [
        f"0 32 crypt {words}"
        for words in (
            HEX, f"{HEX} {WORDS}", f"aes {HEX}0 0 7:0 0", f"aes-xts-plain64 x{HEX} 0 7:0 0", f"{WORDS} 1 {HEX}",
            f"aes-xts-plain64 {HEX[:62]} 0 7:0 0", f"aes-xts-plain64 :{HEX} 0 7:0 0", f"aes-xts-plain64 x {HEX} 7:0 0",
        )
    ]  # fmt: skip
    wrong += [f"0 x crypt {WORDS}", f"crypt {WORDS}"]
    for text in wrong:
        with pytest.raises((ParseError, SpecError)) as caught:
            Table.parse(text)
        shown += [*_texts_of(caught.value), *map(str, caught.value.args)]
    for text in shown:
        assert HEX[2:24] not in text.lower(), text
        assert str(bytes(range(4, 20)))[2:-1] not in text
    assert "<64-byte-key>" in str(table)
    with pytest.raises(ParseError):
        Table.parse(str(table))
    assert masked("crypt", RING.encode(str)) == RING.encode(str)
    assert masked("linear", "7:0 0") == "7:0 0"


# On a kernel.

DATA = bytes(range(256)) * 32
KEY = bytes(range(100, 164))


def _encrypted(mode, key: bytes, data: bytes) -> bytes:
    from cryptography.hazmat.primitives.ciphers import Cipher as Engine
    from cryptography.hazmat.primitives.ciphers import algorithms

    encryptor = Engine(algorithms.AES(key), mode).encryptor()
    return encryptor.update(data) + encryptor.finalize()


def _through(lab, value: targets.Crypt, start: int = 0) -> bytes:
    """Write `DATA` through the device, see it come back, and return what is below."""
    with lab.open(value, 64) as (device, file):
        assert device.table() == Table.of(value, 64)
        file.write(0, DATA)
        assert file.read(0, len(DATA)) == DATA
    with lab.disk() as below:
        return below.read(start * 512, len(DATA))


@pytest.mark.dm
@pytest.mark.parametrize(("size", "large"), [(512, False), (4096, False), (4096, True)])
def test_xts_is_what_cryptography_computes(lab, size, large):
    from cryptography.hazmat.primitives.ciphers import modes

    value = targets.Crypt(
        cipher="aes-xts-plain64", key=Key(KEY), iv_offset=16, dev=lab.refs[0], start=24, sector_size=size,
        iv_large_sectors=large,
    )  # fmt: skip
    expected = b""
    for at in range(0, len(DATA), size):
        number = 16 + at // 512
        tweak = struct.pack("<QQ", number * 512 // size if large else number, 0)
        expected += _encrypted(modes.XTS(tweak), KEY, DATA[at : at + size])
    assert _through(lab, value, 24) == expected


def _iv(iv: str, number: int, key: bytes) -> bytes:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.ciphers import modes

    little = struct.pack("<QQ", number, 0)
    if iv == "essiv:sha256":
        digest = hashes.Hash(hashes.SHA256())
        digest.update(key)
        return _encrypted(modes.ECB(), digest.finalize(), little)
    if iv == "eboiv":
        return _encrypted(modes.ECB(), key, struct.pack("<QQ", number * 512, 0))
    return {
        "plain": struct.pack("<IIQ", number % 2**32, 0, 0),
        "plain64": little,
        "plain64be": struct.pack(">QQ", 0, number),
        "benbi": struct.pack(">QQ", 0, number * 32 + 1),
        "null": bytes(16),
    }[iv]


@pytest.mark.dm
@pytest.mark.parametrize("iv", ["plain", "plain64", "plain64be", "benbi", "null", "essiv:sha256", "eboiv"])
def test_every_simple_iv(lab, iv):
    from cryptography.hazmat.primitives.ciphers import modes

    offset = 2**32 - 2
    value = targets.Crypt(cipher=f"aes-cbc-{iv}", key=Key(KEY[:32]), iv_offset=offset, dev=lab.refs[0])
    expected = b"".join(
        _encrypted(modes.CBC(_iv(iv, offset + at // 512, KEY[:32])), KEY[:32], DATA[at : at + 512])
        for at in range(0, len(DATA), 512)
    )
    assert _through(lab, value) == expected


@pytest.mark.dm
@pytest.mark.parametrize(
    ("cipher", "size"),
    [("aes:64-cbc-lmk", 1024), ("aes:64-cbc-lmk", 1040), ("aes-cbc-tcw", 64), ("aes-cbc-elephant", 64),
     ("aes:2-cbc-plain64", 32), ("capi:essiv(cbc(aes),sha256)-plain64", 32), ("aes-ecb", 16)],
)  # fmt: skip
def test_the_other_ciphers_give_back_what_was_written(lab, cipher, size):
    value = targets.Crypt(cipher=cipher, key=Key(os.urandom(size)), dev=lab.refs[0], no_read_workqueue=True)
    below = _through(lab, value)
    assert (
        len(
            {DATA[at : at + 16] for at in range(0, len(DATA), 16)}
            & {below[at : at + 16] for at in range(0, len(below), 16)}
        )
        == 0
    )


@pytest.mark.dm
def test_key_wipe_and_key_set_while_suspended(lab):
    value = targets.Crypt(cipher="aes-xts-plain64", key=Key(KEY), dev=lab.refs[0])
    other = Key(bytes(64 * [7]))
    with lab.open(value, 64) as (device, file):
        file.write(0, DATA)
        for message in (WipeKey(), SetKey(other)):
            with pytest.raises(IoctlError) as caught:
                device.send(message)
            assert caught.value.errno == errno.EINVAL
            assert other.reveal().hex() not in str(caught.value)
        device.suspend()
        device.send(WipeKey())
        assert device.table() == Table.of(replace(value, key=Key(bytes(64))), 64)
        with pytest.raises(IoctlError) as again:
            lab.control.resume(device.selector)
        assert again.value.errno == errno.EAGAIN
        with pytest.raises(IoctlError):
            device.send(SetKey(Key(bytes(32))))
        device.send(SetKey(other))
        device.resume()
        assert device.table() == Table.of(replace(value, key=other), 64)
        assert file.read(0, len(DATA)) != DATA
        with device.suspended():
            device.send(SetKey(Key(KEY)))
        assert file.read(0, len(DATA)) == DATA


@pytest.mark.dm
def test_no_failure_shows_the_key(lab):
    value = targets.Crypt(cipher="capi:no-such-cipher(aes)-plain64", key=Key(KEY), dev=lab.refs[0])
    with pytest.raises(TableRejected) as caught, lab.device(value, 64):
        pass
    assert caught.value.errno == errno.ENOENT
    assert KEY.hex()[:16] not in str(caught.value)
    assert KEY.hex()[:16] not in repr(caught.value.__dict__)
    with lab.device(replace(value, cipher="aes-xts-plain64"), 64) as device:
        assert "<64-byte-key>" in device.table_text()
        assert KEY.hex()[:16] not in device.table_text() + repr(lab.control.table(device.selector)) + repr(
            device.table()
        )
        assert KEY.hex() in lab.control.table(device.selector)[0].params


def _keyctl(name: str, *args: object) -> int:
    """Do a keyring system call of 64-bit x86 or ARM; return its result."""
    numbers = {"x86_64": {"add_key": 248, "keyctl": 250}, "aarch64": {"add_key": 217, "keyctl": 219}}
    if platform.machine() not in numbers:
        pytest.skip(f"the numbers of system calls on {platform.machine()} are not known to this test")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    result = libc.syscall(ctypes.c_long(numbers[platform.machine()][name]), *args)
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


PROCESS_KEYRING, UNLINK = -2, 9


@pytest.mark.dm
@pytest.mark.parametrize("kind", ["logon", "user"])
def test_a_key_from_the_keyring(lab, kind):
    description = "pytest-dm:crypt"
    value = targets.Crypt(cipher="aes-xts-plain64", key=KeyringKey(64, kind, description), dev=lab.refs[0])
    with pytest.raises(TableRejected) as caught, lab.device(value, 64):
        pass
    assert caught.value.errno == errno.ENOKEY
    serial = _keyctl(
        "add_key",
        kind.encode(),
        description.encode(),
        KEY,
        ctypes.c_size_t(len(KEY)),
        ctypes.c_long(PROCESS_KEYRING),
    )
    try:
        with (
            pytest.raises(TableRejected) as wrong,
            lab.device(replace(value, cipher="aes-xts-plain64", key=KeyringKey(32, kind, description)), 64),
        ):
            pass
        assert wrong.value.errno == errno.EINVAL
        with_key = _through(lab, value)
    finally:
        _keyctl("keyctl", ctypes.c_long(UNLINK), ctypes.c_long(serial), ctypes.c_long(PROCESS_KEYRING))
    assert with_key == _through(lab, replace(value, key=Key(KEY)))


@pytest.mark.dm
def test_authenticating_ciphers_need_an_integrity_device(lab):
    value = targets.Crypt(cipher="capi:gcm(aes)-random", key=Key(KEY[:32]), dev=lab.refs[0], tags=Tags(28))
    with pytest.raises(TableRejected) as caught, lab.device(value, 64):
        pass
    assert caught.value.errno == errno.EINVAL


@pytest.mark.dm
def test_discards_pass_only_if_allowed(lab):
    value = targets.Crypt(cipher="aes-xts-plain64", key=Key(KEY), dev=lab.refs[0])
    with lab.open(value, 64) as (_, file), pytest.raises(OSError) as caught:
        file.discard(0, 4096)
    assert caught.value.errno == errno.EOPNOTSUPP
    with lab.disk() as below:
        below.write(0, b"x" * 4096)
    with lab.open(replace(value, allow_discards=True), 64) as (_, file):
        file.discard(0, 4096)
    with lab.disk() as below:
        assert below.read(0, 4096) == bytes(4096)
