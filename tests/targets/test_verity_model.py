"""verity in userspace: images as veritysetup makes them, reads as kernels do them, repair from parity."""

from __future__ import annotations

import errno
import random
import shutil
import subprocess
from uuid import UUID

import pytest
from failing import FailingStore
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dmcore.errors import FormatError, SpecError, Unsupported
from dmcore.formats.reed_solomon import TooManyErrors, correct, parity, syndromes
from dmcore.formats.verity import Superblock
from dmcore.kernel.block import BlockFile
from dmcore.model.clock import Clock
from dmcore.model.stores import MemoryStore
from dmcore.model.target import Context
from dmcore.model.targets.verity import MODEL
from dmcore.table import Table
from dmcore.targets.verity import OnCorruption
from dmcore.verity import format_verity, open_verity
from dmcore.volume import open_volume

SALT = bytes(range(20))
ID = UUID("11111111-2222-3333-4444-555555555555")
TOOL = shutil.which("veritysetup") or shutil.which("veritysetup", path="/usr/sbin:/sbin")
needs_tool = pytest.mark.skipif(
    TOOL is None, reason="veritysetup is not installed: apt-get install cryptsetup-bin"
)


def _noise(blocks, size=4096):
    return random.Random(blocks).randbytes(blocks * size)


def _disk(content: bytes, word="disk") -> MemoryStore:
    store = MemoryStore(len(content), word=word)
    store.write(0, memoryview(content))
    return store


def _damage(store: MemoryStore, offset: int, count: int = 1) -> None:
    first = offset // 512
    sectors = -(-(offset % 512 + count) // 512)
    content = store.read(first, sectors)
    for at in range(offset % 512, offset % 512 + count):
        content[at] ^= 0x5A
    store.write(first, memoryview(content))


class _Image:
    """A formatted image in memory: data, tree, parity."""

    def __init__(self, blocks=40, roots=2, **more):
        self.content = _noise(blocks, more.get("data_block_size", 4096))
        self.data = _disk(self.content, "data")
        self.hashes = MemoryStore(64 * 4096, word="hashes")
        fec = more.get("data_block_size", 4096) == more.get("hash_block_size", 4096)
        self.parity = MemoryStore(roots * 4096 * 4, word="parity") if fec else None
        self.roots = roots
        self.root = format_verity(self.data, self.hashes, salt=SALT, fec=self.parity, fec_roots=roots, **more)

    def open(self, *, fec=False, **more):
        parity_of = self.parity if fec else None
        return open_verity(self.data, self.hashes, self.root, fec=parity_of, fec_roots=self.roots, **more)


def _failed(request) -> int:
    with pytest.raises(OSError) as caught:
        request()
    assert caught.value.errno is not None
    return caught.value.errno


@needs_tool
@pytest.mark.parametrize(
    ("blocks", "sizes", "words", "more"),
    [
        (300, (4096, 4096), [], {}),
        (1, (4096, 4096), [], {}),
        (129, (512, 1024), ["--format=0", "--hash=sha1"], {"version": 0, "algorithm": "sha1"}),
        (500, (1024, 512), ["--hash=sha384"], {"algorithm": "sha384"}),
        (17, (4096, 4096), ["--fec-roots=24", "--fec-device=FEC"], {"fec_roots": 24}),
        (
            600,
            (512, 512),
            ["--fec-roots=3", "--fec-device=FEC", "--fec-offset=512"],
            {"fec_roots": 3, "fec_offset": 512},
        ),
        (9, (4096, 4096), ["--hash-offset=4096", "--data-blocks=8"], {"hash_offset": 4096, "data_blocks": 8}),
        (9, (4096, 4096), ["--no-superblock"], {"superblock": False}),
    ],
)
def test_images_are_those_of_veritysetup(tmp_path, blocks, sizes, words, more):
    data_size, hash_size = sizes
    data, theirs, ours = tmp_path / "data", tmp_path / "theirs", tmp_path / "ours"
    data.write_bytes(_noise(blocks, data_size))
    has_fec = any(word.startswith("--fec-d") for word in words)
    command = [
        TOOL, "format", data, theirs, f"--salt={SALT.hex()}", f"--data-block-size={data_size}",
        f"--hash-block-size={hash_size}", *([] if "superblock" in more else [f"--uuid={ID}"]),
        *(word.replace("FEC", str(tmp_path / "theirs.fec")) for word in words),
    ]  # fmt: skip
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    root = format_verity(
        data, ours, salt=SALT, uuid=ID, data_block_size=data_size, hash_block_size=hash_size,
        fec=tmp_path / "ours.fec" if has_fec else None, threads=2, **more,
    )  # fmt: skip
    assert root.hex() == said.rsplit("Root hash:")[1].split()[0]
    assert ours.read_bytes() == theirs.read_bytes()
    if has_fec:
        assert (tmp_path / "ours.fec").read_bytes() == (tmp_path / "theirs.fec").read_bytes()


@needs_tool
def test_data_tree_and_parity_on_one_disk_are_those_of_veritysetup(tmp_path):
    images = [tmp_path / "theirs", tmp_path / "ours"]
    for image in images:
        image.write_bytes(_noise(300).ljust(400 * 4096, b"\0"))
    theirs, ours = images
    command = [
        TOOL, "format", theirs, theirs, f"--salt={SALT.hex()}", f"--uuid={ID}", "--data-blocks=300",
        f"--hash-offset={300 * 4096}", f"--fec-device={theirs}", f"--fec-offset={330 * 4096}",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    root = format_verity(
        ours,
        ours,
        salt=SALT,
        uuid=ID,
        data_blocks=300,
        hash_offset=300 * 4096,
        fec=ours,
        fec_offset=330 * 4096,
    )
    assert ours.read_bytes() == theirs.read_bytes()
    with theirs.open("r+b") as file:
        file.write(b"damage")
    with open_verity(
        theirs, theirs, root, hash_offset=300 * 4096, fec=theirs, fec_offset=330 * 4096
    ) as volume:
        assert volume.size == 300 * 4096
        assert volume.read(0, 300 * 4096) == _noise(300)
        assert volume.status()[0].corrected == 1


def test_blocks_that_match_are_read_and_others_fail():
    image = _Image()
    _damage(image.data, 7 * 4096 + 100)
    with image.open() as volume:
        assert volume.block_size == 4096
        assert volume.read(0, 7 * 4096) == image.content[: 7 * 4096]
        assert volume.status_text() == "0 320 verity V -"
        assert _failed(lambda: volume.read(0, 9 * 4096)) == errno.EIO
        assert volume.status_text() == "0 320 verity C -"
        assert volume.read(8 * 4096, 32 * 4096) == image.content[8 * 4096 :]
        assert _failed(lambda: volume.device.write(0, memoryview(bytes(4096)))) == errno.EPERM
        assert volume.message is not None
        assert _failed(lambda: volume.message("x")) == errno.EINVAL


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize(
    ("data_size", "hash_size"), [(512, 512), (512, 4096), (4096, 512), (8192, 1024), (65536, 65536)]
)
def test_all_block_sizes_and_both_hash_types(version, data_size, hash_size):
    data, hashes = _disk(_noise(37, data_size)), MemoryStore(1 << 20)
    options = {
        "version": version,
        "data_block_size": data_size,
        "hash_block_size": hash_size,
        "hash_offset": 65536,
    }
    root = format_verity(data, hashes, salt=SALT, **options)
    with open_verity(data, hashes, root, hash_offset=65536) as volume:
        assert volume.read(0, volume.size) == _noise(37, data_size)
    _damage(data, 36 * data_size)
    with open_verity(data, hashes, root, hash_offset=65536) as volume:
        assert volume.read(0, 36 * data_size) == _noise(37, data_size)[: 36 * data_size]
        assert _failed(lambda: volume.read(36 * data_size, data_size)) == errno.EIO


def test_a_damaged_tree_fails_what_is_below_it_until_the_cache_is_dropped():
    image = _Image(300)
    _damage(image.hashes, 3 * 4096 + 5)  # superblock, top, leaves
    with image.open() as volume:
        assert volume.read(0, 128 * 4096) == image.content[: 128 * 4096]
        assert _failed(lambda: volume.read(128 * 4096, 4096)) == errno.EIO
        assert volume.read(256 * 4096, 4096) == image.content[256 * 4096 : 257 * 4096]
        _damage(image.hashes, 3 * 4096 + 5)
        _damage(image.hashes, 2 * 4096 + 5)
        assert volume.read(0, 4096) == image.content[:4096], (
            "what was checked stays checked while it is cached"
        )
        volume.device.suspend()
        volume.device.resume()
        assert _failed(lambda: volume.read(0, 4096)) == errno.EIO
        assert volume.read(128 * 4096, 4096) == image.content[128 * 4096 : 129 * 4096]


def test_a_wrong_root_loads_and_fails_every_read():
    image = _Image()
    image.root = bytes(32)
    with image.open() as volume:
        assert _failed(lambda: volume.read(4096, 4096)) == errno.EIO


def test_damage_can_be_ignored_and_zeros_need_not_be_read():
    image = _Image()
    _damage(image.data, 0)
    with image.open(on_corruption=OnCorruption.IGNORE) as volume:
        assert volume.read(0, 4096) == bytes(image.data.read(0, 8))
        assert volume.status()[0].corrupted
    with image.open(on_corruption=OnCorruption.PANIC) as volume, pytest.raises(Unsupported, match="panic"):
        volume.read(0, 4096)
    zeros = MemoryStore(8 * 4096)
    root = format_verity(zeros, image.hashes, salt=SALT)
    _damage(zeros, 4096)
    with open_verity(zeros, image.hashes, root, ignore_zero_blocks=True) as volume:
        assert volume.read(0, 8 * 4096) == bytes(8 * 4096)
        assert not volume.status()[0].corrupted


def test_blocks_can_be_checked_at_their_first_read_only():
    image = _Image()
    with image.open(check_at_most_once=True) as volume:
        volume.read(0, 4096)
        _damage(image.data, 0)
        _damage(image.data, 4096)
        assert volume.read(0, 4096) == bytes(image.data.read(0, 8))
        assert _failed(lambda: volume.read(4096, 4096)) == errno.EIO


@pytest.mark.parametrize("roots", [2, 5, 24])
def test_parity_repairs_data_and_tree(roots):
    image = _Image(300, roots)
    _damage(image.data, 7 * 4096, 300)
    _damage(image.hashes, 2 * 4096 + 1000, 40)
    with image.open(fec=True) as volume:
        assert volume.read(0, volume.size) == image.content
        assert volume.status()[0].corrected == 2


def test_parity_repairs_as_many_lost_blocks_of_a_word_as_it_has_roots():
    image = _Image(300, 4)
    region = -(-(300 + 63) // 251)
    for block in range(4):
        _damage(image.data, block * region * 4096, 30)
    with image.open(fec=True) as volume:
        assert volume.read(0, volume.size) == image.content
    _damage(image.data, 4 * region * 4096, 10)
    with image.open(fec=True) as volume:
        assert _failed(lambda: volume.read(0, 4096)) == errno.EIO
        assert volume.read(4096, 4096) == image.content[4096:8192]
        assert volume.status()[0].corrupted


def test_parity_repairs_what_cannot_be_read():
    image = _Image()
    image.data = FailingStore(len(image.content) // 512)
    image.data.write(0, memoryview(image.content))
    image.data.unread = set(range(16, 24))
    with image.open() as volume:
        assert _failed(lambda: volume.read(8192, 4096)) == errno.EIO
        assert not volume.status()[0].corrupted
    with image.open(fec=True) as volume:
        assert volume.read(8192, 8192) == image.content[8192:16384]


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_code_words_are_repaired_up_to_their_limit(data):
    roots = data.draw(st.integers(2, 24))
    word = bytearray(data.draw(st.binary(min_size=255 - roots, max_size=255 - roots)))
    word += b"".join(parity([bytes([byte]) for byte in word], roots, 1))
    damaged = bytearray(word)
    places = data.draw(st.permutations(range(255)))
    erased = places[: data.draw(st.integers(0, roots))]
    wrong = places[len(erased) : len(erased) + (roots - len(erased)) // 2]
    for place in [*erased, *wrong]:
        damaged[place] ^= data.draw(st.integers(0 if place in erased else 1, 255))
    found = [column[0] for column in syndromes([bytes([byte]) for byte in damaged], roots)]
    for place, value in correct(found, erased).items():
        damaged[place] ^= value
    assert damaged == word


def test_more_damage_than_parity_can_repair_is_noticed():
    with pytest.raises(TooManyErrors):
        correct([1, 2], range(3))
    with pytest.raises(TooManyErrors):
        correct([0, 1])


def test_disks_that_end_too_early_and_bad_arguments_are_refused():
    image = _Image()
    table = open_verity(image.data, image.hashes, image.root).table_text()
    disks = {"data": image.data, "hashes": MemoryStore(4096)}
    assert _failed(lambda: open_volume(table, disks, "r")) == errno.E2BIG
    opener = {"data": image.data, "hashes": image.hashes}
    context = Context(start=0, length=8, block_size=512, open=lambda ref: opener[ref.name], clock=Clock())
    with pytest.raises(SpecError, match="read-only"):
        MODEL(Table.parse(table).lines[0].target, context)
    for field, values in {
        "version": {"version": 2},
        "salt": {"salt": None, "superblock": False},
        "data_block_size": {"data_block_size": 1000},
        "hash_block_size": {"data_block_size": 512, "fec": MemoryStore(4096)},
        "hash_offset": {"hash_offset": 7},
        "data_blocks": {"data_blocks": 41},
        "fec": {"fec": MemoryStore(4096)},
        "hashes": {"hash_offset": 63 * 4096},
    }.items():
        with pytest.raises(SpecError) as caught:
            format_verity(image.data, image.hashes, **({"salt": SALT} | values))
        assert caught.value.field == field
    with pytest.raises(SpecError):
        format_verity(image.data, image.data, hash_offset=4096)


@given(st.integers(0, 511), st.integers(0, 255), st.binary(max_size=8))
@settings(max_examples=100, deadline=None)
def test_any_superblock_opens_or_is_refused_with_a_reason(at, byte, more):
    good = Superblock(
        version=1,
        uuid=ID,
        algorithm="sha256",
        data_block_size=4096,
        hash_block_size=4096,
        data_blocks=8,
        salt=SALT,
    ).encode()
    bad = bytearray(good)
    bad[at] = byte
    bad[at : at + len(more)] = more
    hashes = MemoryStore(16 * 4096)
    hashes.write(0, memoryview(bytes(bad[:512])))
    try:
        with open_verity(MemoryStore(8 * 4096), hashes, bytes(32)) as volume:
            assert volume.size <= 8 * 4096
            if volume.size:
                assert _failed(lambda: volume.read(0, volume.block_size)) == errno.EIO
    except (FormatError, SpecError, Unsupported, OSError):
        pass


def test_no_superblock_is_said():
    with pytest.raises(FormatError, match="no verity superblock"):
        open_verity(MemoryStore(4096), MemoryStore(4096), bytes(32))
    with pytest.raises(FormatError, match="ends before"):
        open_verity(MemoryStore(4096), MemoryStore(4096), bytes(32), hash_offset=4096)


# -- on kernels --------------------------------------------------------------------------------------------------------


@pytest.mark.dm
@pytest.mark.parametrize(
    "options", ["", "1 ignore_corruption", "1 ignore_zero_blocks", "1 check_at_most_once"]
)
@pytest.mark.parametrize("version", [0, 1])
def test_kernel_and_model_agree_on_every_damaged_block(lab, version, options):
    blocks, size, words = 200, 512, [ref.name for ref in lab.refs]

    @settings(max_examples=6, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def check(draw):
        content = bytearray(_noise(blocks, size))
        content[:4096] = bytes(4096)
        stores = [MemoryStore(disk.size, word=word) for disk, word in zip(lab.disks, words, strict=True)]
        stores[0].write(0, memoryview(content))
        root = format_verity(
            stores[0], stores[1], version=version, data_block_size=size, hash_block_size=1024, data_blocks=blocks,
            salt=SALT,
        )  # fmt: skip
        for offset in draw.draw(st.lists(st.integers(0, blocks * size - 1), max_size=6)):
            _damage(stores[0], offset)
        for offset in draw.draw(st.lists(st.integers(1024, 8 * 1024 - 1), max_size=1)):
            _damage(stores[1], offset)
        for number, store in enumerate(stores):
            with lab.disk(number) as disk:
                disk.write(0, bytes(store.read(0, 512)))
        text = (
            f"0 {blocks} verity {version} {words[0]} {words[1]} {size} 1024 {blocks} 1 sha256 {root.hex()} "
            f"{SALT.hex()} {options}"
        )
        table = Table.parse(text)
        disks = dict(zip(words, stores, strict=True))
        with (
            lab.device(table) as device,
            BlockFile(device.path, readonly=True) as file,
            open_volume(table, disks, "r", features=lab.features) as volume,
        ):
            for first in draw.draw(st.permutations(range(0, blocks, 5))):
                count = min(draw.draw(st.integers(1, 8)), blocks - first)
                assert _read(volume, first * size, count * size) == _read(file, first * size, count * size), (
                    first
                )
            assert volume.table_text() == device.table_text().rstrip()
            assert volume.status() == device.status()

    check()


def _read(disk, offset, length):
    try:
        return disk.read(offset, length)
    except OSError as error:
        return error.errno


@pytest.mark.dm
@pytest.mark.parametrize("roots", [2, 7])
def test_kernels_repair_from_our_parity_as_the_model_does(lab, roots):
    image = _Image(200, roots)
    words = [ref.name for ref in lab.refs]
    for block in (3, 50):
        _damage(image.data, block * 4096 + 10, 50)
    _damage(image.hashes, 3 * 4096 + 5, 40)
    with lab.disk(0) as first, lab.disk(1) as second:
        first.write(0, bytes(image.data.read(0, 1600)))
        second.write(0, bytes(image.hashes.read(0, 512)))
        second.write(512 * 512, bytes(image.parity.read(0, roots * 8 * 2)))
    with image.open(fec=True) as volume:
        parts = volume.table_text().split()
        fec_blocks = parts[parts.index("fec_blocks") + 1]
        text = (
            f"0 1600 verity 1 {words[0]} {words[1]} 4096 4096 200 1 sha256 {image.root.hex()} {SALT.hex()} 8 "
            f"use_fec_from_device {words[1]} fec_blocks {fec_blocks} fec_start 64 fec_roots {roots}"
        )
        with lab.device(Table.parse(text)) as device, BlockFile(device.path, readonly=True) as file:
            assert file.read(0, 200 * 4096) == volume.read(0, 200 * 4096) == image.content
            (theirs,), (ours,) = device.status(), volume.status()
            assert theirs.corrupted == ours.corrupted
            assert theirs.corrected in {None, ours.corrected}
