"""LUKS images that cryptsetup made: opened without it, with the key that it says; hostile headers are refused."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dmcore import open_luks
from dmcore.errors import DmError, FormatError, SpecError, Unsupported, WrongPassphrase
from dmcore.formats.luks import parse_luks
from dmcore.luks import Limits, read_luks_header, unlock_luks
from dmcore.model.stores import MemoryStore

PASSPHRASE = b"correct horse\nbattery"
FAST = ("--pbkdf-force-iterations", "1000")
ARGON = ("--pbkdf-force-iterations", "4", "--pbkdf-memory", "64", "--pbkdf-parallel", "1")
KINDS = {
    "luks1": ("--type", "luks1", *FAST),
    "luks1-essiv": ("--type", "luks1", *FAST, "--cipher", "aes-cbc-essiv:sha256", "--key-size", "128", "--hash", "sha1"),
    "argon2id": ("--type", "luks2", "--pbkdf", "argon2id", *ARGON, "--sector-size", "4096"),
    "argon2i": ("--type", "luks2", "--pbkdf", "argon2i", *ARGON, "--label", "disk"),
    "pbkdf2": ("--type", "luks2", "--pbkdf", "pbkdf2", *FAST, "--hash", "sha512", "--key-slot", "5"),
    "cbc": ("--type", "luks2", "--pbkdf", "pbkdf2", *FAST, "--cipher", "camellia-cbc-plain64", "--key-size", "192"),
}  # fmt: skip


def _cryptsetup(*words: object, data: bytes = PASSPHRASE) -> str:
    run = subprocess.run(
        ["cryptsetup", "-q", *map(str, words)], input=data, capture_output=True, timeout=60, check=True
    )
    return run.stdout.decode()


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("luks")
    found = {}
    for name, words in KINDS.items():
        path = found[name] = folder / name
        with path.open("wb") as file:
            file.truncate(18 << 20)
        _cryptsetup("luksFormat", *words, "--key-file", "-", path)
    return found


@pytest.mark.parametrize("name", KINDS)
def test_opens_with_the_key_that_cryptsetup_says(images, name, tmp_path):
    path = images[name]
    _, key = unlock_luks(path, PASSPHRASE)
    _cryptsetup(
        "luksDump", "--dump-volume-key", "--volume-key-file", tmp_path / "key", "--key-file", "-", path
    )
    assert key.reveal() == (tmp_path / "key").read_bytes()
    assert key.reveal().hex() not in repr(key)
    with pytest.raises(WrongPassphrase):
        unlock_luks(path, PASSPHRASE + b"\n")


@pytest.mark.parametrize("name", KINDS)
def test_what_is_written_lies_encrypted_behind_the_header(images, name, tmp_path):
    path = images[name]
    dump = _cryptsetup("luksDump", path)
    with open_luks(path, PASSPHRASE) as volume:
        assert volume.size % volume.block_size == 0
        assert 0 < volume.size < 18 << 20
        volume.write(4096, b"text" * 1024)
        assert volume.read(4096, 4096) == b"text" * 1024
        assert "-byte-key>" in volume.table_text()
    key_file = tmp_path / "file"
    key_file.write_bytes(PASSPHRASE)
    with open_luks(path, key_file=key_file, mode="r") as volume:
        assert volume.read(4096, 4096) == b"text" * 1024
    assert b"texttext" not in path.read_bytes()
    assert _cryptsetup("luksDump", path) == dump
    _cryptsetup("open", "--test-passphrase", "--key-file", "-", path)


def test_a_second_slot_opens_and_a_removed_one_does_not(images, tmp_path):
    path = tmp_path / "image"
    path.write_bytes(images["pbkdf2"].read_bytes())
    (tmp_path / "one").write_bytes(PASSPHRASE)
    _cryptsetup(
        "luksAddKey", "--pbkdf", "pbkdf2", *FAST, "--key-file", tmp_path / "one", path, "-", data=b"two"
    )
    assert {slot.number for slot in read_luks_header(path).keyslots} == {0, 5}
    one, two = unlock_luks(path, PASSPHRASE)[1], unlock_luks(path, b"two")[1]
    assert one == two
    with pytest.raises(WrongPassphrase):
        unlock_luks(path, b"two", slot=5)
    with pytest.raises(SpecError):
        unlock_luks(path, b"two", slot=3)
    _cryptsetup("luksKillSlot", "--key-file", tmp_path / "one", path, 0)
    with pytest.raises(WrongPassphrase):
        unlock_luks(path, b"two")


def test_a_detached_header(images, tmp_path):
    header, data = tmp_path / "header", tmp_path / "data"
    with data.open("wb") as file:
        file.truncate(1 << 20)
    _cryptsetup("luksFormat", *KINDS["pbkdf2"], "--key-file", "-", "--header", header, data)
    with open_luks(data, PASSPHRASE, header=header) as volume:
        assert volume.size == 1 << 20
        volume.write(0, bytes(4096))
    assert data.read_bytes()[:512] != bytes(512)


@pytest.mark.parametrize("damage", [0, 16384])
def test_one_copy_of_a_header_is_enough_and_the_newer_one_counts(images, damage):
    whole = bytearray(images["argon2i"].read_bytes()[: 1 << 20])
    whole[damage + 5000] ^= 1
    assert _parse(whole).label == "disk"
    whole[16384 - damage + 5000] ^= 1
    with pytest.raises(FormatError, match="checksum"):
        _parse(whole)
    whole[damage : damage + 6] = whole[16384 - damage : 16384 - damage + 6] = bytes(6)
    with pytest.raises(FormatError, match="no LUKS header"):
        _parse(whole)


def test_says_what_is_wrong_with_the_arguments(images, tmp_path):
    for arguments in ({}, {"passphrase": b"x", "key_file": tmp_path}):
        with pytest.raises(SpecError):
            open_luks(images["pbkdf2"], **arguments)
    with pytest.raises(FormatError, match="limit"):
        open_luks(images["pbkdf2"], PASSPHRASE, limits=Limits(iterations=999))
    with pytest.raises(FormatError, match="limits"):
        open_luks(images["argon2id"], PASSPHRASE, limits=Limits(memory=1 << 15))


def _parse(raw: bytes | bytearray):
    return parse_luks(lambda offset, length: bytes(raw[offset : offset + length]), len(raw))


def _with_json(raw: bytes, tree: object) -> bytes:
    """Return the first copy of a header with other JSON and a right checksum."""
    head = bytearray(raw[:16384])
    text = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
    head[4096:] = text[:12287].ljust(12288, b"\0")
    head[448:512] = bytes(64)
    head[448:480] = hashlib.sha256(head).digest()
    return bytes(head) + bytes(16384)


def _tree(raw: bytes) -> dict:
    return json.loads(raw[4096:16384].split(b"\0", 1)[0])


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["0", "512", "luks2"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["0", "type", "x"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def _paths(tree: object, at: tuple = ()) -> list[tuple]:
    below = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [at, *(path for key, value in below for path in _paths(value, (*at, key)))]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_json_gives_a_header_or_a_clear_error(images, data):
    raw = images["argon2id"].read_bytes()[:32768]
    tree = _tree(raw)
    *way, last = data.draw(st.sampled_from(_paths(tree)[1:]))
    where = tree
    for step in way:
        where = where[step]
    if data.draw(st.booleans()):
        where[last] = data.draw(_JSON)
    else:
        del where[last]
    try:
        header = _parse(_with_json(raw, tree))
    except (FormatError, Unsupported):
        return
    assert all(slot.area_size <= 16384 * 512 for slot in header.keyslots)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["luks1", "argon2id"]),
    at=st.integers(0, 591),
    value=st.binary(min_size=1, max_size=8),
    size=st.integers(0, 20000) | st.just(18 << 20),
)
def test_any_bytes_give_a_header_or_a_clear_error(images, name, at, value, size):
    with images[name].open("rb") as file:
        raw = bytearray(file.read(32768))
    raw[at : at + len(value)] = value
    try:
        header = parse_luks(lambda offset, length: bytes(raw[offset : offset + length]), size)
    except (FormatError, Unsupported):
        return
    assert all(slot.area_size <= 16384 * 512 for slot in header.keyslots)


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 9000,
        b"{" * 9000,
        b"1" * 9000,
        b'{"a":' * 2000,
        b"\xff",
        b"",
        b"nul",
        b"NaN",
        b'{"segments": {}}',
    ],
)
def test_json_that_is_made_to_hurt(images, text):
    with pytest.raises(FormatError):
        _parse(_with_json(images["argon2id"].read_bytes()[:32768], text))


def test_hostile_numbers_are_refused_before_anything_is_computed(images):
    raw = images["argon2id"].read_bytes()[:32768]
    for field, value in (("memory", 2**31), ("time", 2**31), ("cpus", 17)):
        tree = _tree(raw)
        tree["keyslots"]["0"]["kdf"][field] = value
        store = MemoryStore(18 << 20)
        store.write(0, memoryview(_with_json(raw, tree)))
        with pytest.raises(DmError):
            open_luks(store, PASSPHRASE)
    tree = _tree(raw)
    tree["config"]["requirements"] = {"mandatory": ["online-reencrypt"]}
    store = MemoryStore(18 << 20)
    store.write(0, memoryview(_with_json(raw, tree)))
    with pytest.raises(Unsupported, match="online-reencrypt"):
        open_luks(store, PASSPHRASE)
    luks1 = bytearray(images["luks1"].read_bytes()[: 1 << 20])
    struct.pack_into(">I", luks1, 208 + 44, 2**31)
    with pytest.raises(FormatError, match="stripes"):
        _parse(luks1)
