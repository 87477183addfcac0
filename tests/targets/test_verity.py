from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest
from ground import Ground

from dmcore import targets
from dmcore.errors import ParseError, SpecError, TableRejected
from dmcore.kernel.block import BlockFile
from dmcore.ref import Ref
from dmcore.table import Line, Table
from dmcore.target import NO_FEATURES, Target
from dmcore.targets.verity import DIGEST_SIZES, Fec, OnCorruption, OnError, VerityStatus
from dmcore.targets.zero import Zero

DATA, HASHES, PARITY = Ref("7:0"), Ref("7:1"), Ref("7:2")
ROOT = hashlib.sha256().hexdigest()
WORDS = f"1 7:0 7:1 4096 1024 4 8 sha256 {ROOT} 00ff"
VERITY = targets.Verity(
    data=DATA,
    hashes=HASHES,
    hash_block_size=1024,
    data_blocks=4,
    hash_start=8,
    root=bytes.fromhex(ROOT),
    salt=b"\0\xff",
)
FEC = replace(VERITY, hash_block_size=4096, fec=Fec(dev=PARITY, start=3, blocks=5, roots=24))


class VerityGround(Ground):
    """Tree and parity must fit the devices, and the kernel must have the hash, which the library cannot know."""

    def fits(self, target: Target, length: int) -> bool:
        assert isinstance(target, targets.Verity)
        room = self.refs[target.hashes] * 512 // target.hash_block_size - target.hash_start
        least = target.tree_blocks
        if target.fec is not None:
            least = max(least, target.fec.blocks - target.data_blocks - target.hash_start)
        return target.algorithm in DIGEST_SIZES and least <= room


@contextlib.contextmanager
def ground(lab) -> Iterator[Ground]:
    yield VerityGround(lab)


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (WORDS, VERITY),
        (f"{WORDS} 0", VERITY),
        (f"{WORDS} 0 ignored", VERITY),
        (WORDS.upper().replace("SHA", "sha"), VERITY),
        (WORDS.replace("1 7:0", "4294967297 7:0"), VERITY),
        (WORDS.replace("00ff", "-"), replace(VERITY, salt=b"")),
        (f"{WORDS} 1 IGNORE_corruption", replace(VERITY, on_corruption=OnCorruption.IGNORE)),
        (
            f"{WORDS} 2 panic_on_error restart_on_corruption",
            replace(VERITY, on_corruption=OnCorruption.RESTART, on_error=OnError.PANIC),
        ),
        (
            f"{WORDS} 4 try_verify_in_tasklet ignore_zero_blocks ignore_zero_blocks check_at_most_once",
            replace(VERITY, try_verify_in_tasklet=True, ignore_zero_blocks=True, check_at_most_once=True),
        ),
        (
            f"{WORDS} 8 fec_roots 280 fec_blocks 5 use_fec_from_device 7:2 fec_start 3".replace(
                "1024", "4096"
            ),
            FEC,
        ),
        (f"{WORDS} 2 fec_roots 3", VERITY),
        (f"{WORDS} 2 root_hash_sig_key_desc a:b", replace(VERITY, root_hash_sig_key_desc="a:b")),
    ],
)
def test_reads_what_the_kernel_reads(words, value):
    assert Table.parse(f"0 32 verity {words}") == Table.of(value, 32)


@pytest.mark.parametrize(
    ("words", "index"),
    [
        (WORDS.rsplit(maxsplit=1)[0], 12),
        (WORDS.replace("1 7:0", "x 7:0"), 3),
        (WORDS.replace("4096", "+4096"), 6),
        (WORDS.replace(ROOT, ROOT[:-1]), 11),
        (WORDS.replace(ROOT, "x" + ROOT[1:]), 11),
        (WORDS.replace("00ff", "0"), 12),
        (f"{WORDS} 2 ignore_corruption", 13),
        (f"{WORDS} 2 ignore_corruption ignore_corruption", 15),
        (f"{WORDS} 2 panic_on_error restart_on_error", 15),
        (f"{WORDS} 1 fec_roots 2", 15),
        (f"{WORDS} 2 fec_roots 25", 15),
        (f"{WORDS} 1 what", 14),
    ],
)
def test_refuses_what_the_kernel_refuses_and_names_the_word(words, index):
    with pytest.raises(ParseError) as caught:
        Table.parse(f"0 32 verity {words}")
    assert caught.value.index == index


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("version", {"version": 2}),
        ("data", {"data": "7:0"}),
        ("hashes", {"hashes": None}),
        ("data_block_size", {"data_block_size": 256}),
        ("data_block_size", {"data_block_size": 1536}),
        ("data_block_size", {"data_block_size": 1 << 17}),
        ("hash_block_size", {"hash_block_size": 1 << 31}),
        ("hash_block_size", {"hash_block_size": 512, "algorithm": "x", "root": bytes(300)}),
        ("data_blocks", {"data_blocks": 2**61}),
        ("data_blocks", {"data_blocks": 2**31, "check_at_most_once": True}),
        ("hash_start", {"hash_start": -1}),
        ("algorithm", {"algorithm": ""}),
        ("root", {"root": ROOT}),
        ("root", {"root": bytes(31)}),
        ("root", {"root": b"", "algorithm": "x"}),
        ("salt", {"salt": "-"}),
        ("on_corruption", {"on_corruption": "ignore_corruption"}),
        ("on_error", {"on_error": "panic"}),
        ("ignore_zero_blocks", {"ignore_zero_blocks": 1}),
        ("fec", {"hash_block_size": 4096, "fec": PARITY}),
        ("hash_block_size", {"fec": Fec(dev=PARITY, blocks=9)}),
        ("fec.blocks", {"hash_block_size": 4096, "fec": Fec(dev=PARITY, blocks=4)}),
        ("fec.start", {"hash_block_size": 4096, "fec": Fec(dev=PARITY, blocks=9, start=2**62)}),
        ("root_hash_sig_key_desc", {"root_hash_sig_key_desc": ""}),
    ],
)
def test_refuses_bad_values_and_names_the_field(field, values):
    with pytest.raises(SpecError) as caught:
        replace(VERITY, **values)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("field", "values"), [("roots", {"roots": 1}), ("roots", {"roots": 25}), ("blocks", {"blocks": 0})]
)
def test_refuses_bad_parity(field, values):
    with pytest.raises(SpecError) as caught:
        Fec(**{"dev": PARITY, "blocks": 9, **values})
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("start", "length", "field"), [(8, 32, "start"), (0, 40, "data_blocks"), (0, 4, "data_block_size")]
)
def test_refuses_lines_it_cannot_serve(start, length, field):
    with pytest.raises(SpecError) as caught:
        Line(start, length, VERITY)
    assert caught.value.field == field


def test_must_be_alone_and_read_only():
    with pytest.raises(SpecError):
        Table([Line(0, 32, VERITY), Line(32, 8, Zero())])
    assert Table.of(VERITY, 32).readonly
    assert not Table.of(Zero(), 32).readonly


def test_value():
    assert VERITY.refs() == (DATA, HASHES)
    assert FEC.refs() == (DATA, HASHES, PARITY)
    assert VERITY.encode(str) == WORDS
    assert FEC.encode(str).endswith(" 8 use_fec_from_device 7:2 fec_blocks 5 fec_start 3 fec_roots 24")
    assert VERITY.readback(NO_FEATURES) == VERITY
    assert FEC.needs().features == {"verity.fec"}
    assert replace(VERITY, on_error=OnError.PANIC).needs().features == {"verity.on_error"}


@pytest.mark.parametrize(("blocks", "tree"), [(0, 0), (1, 0), (2, 1), (32, 1), (33, 3), (1025, 33 + 2 + 1)])
def test_size_of_the_tree(blocks, tree):
    assert replace(VERITY, data_blocks=blocks).tree_blocks == tree


@pytest.mark.parametrize(
    ("text", "corrupted", "corrected"),
    [("V", False, None), ("C", True, None), ("V -", False, None), ("C 3", True, 3)],
)
def test_status(text, corrupted, corrected):
    assert VERITY.parse_status(text) == VerityStatus(corrupted=corrupted, corrected=corrected)


@pytest.mark.parametrize("text", ["", "v", "V x", "V 1 2"])
def test_bad_status(text):
    with pytest.raises(ParseError):
        VERITY.parse_status(text)


# On a kernel.

BLOCK = 4096


def tree_of(data: bytes, value: targets.Verity) -> tuple[bytes, bytes]:
    """Return the tree, top first, and the root, as the documentation of the format has them."""

    def digest(block: bytes) -> bytes:
        parts = (value.salt, block) if value.version else (block, value.salt)
        return hashlib.new(value.algorithm, b"".join(parts)).digest()

    size = value.hash_block_size
    per_block = 1 << ((size // DIGEST_SIZES[value.algorithm]).bit_length() - 1)
    slot = size // per_block if value.version else DIGEST_SIZES[value.algorithm]
    digests = [
        digest(data[at : at + value.data_block_size]) for at in range(0, len(data), value.data_block_size)
    ]
    levels: list[bytes] = []
    while len(digests) > 1:
        blocks = [
            b"".join(one.ljust(slot, b"\0") for one in digests[at : at + per_block]).ljust(size, b"\0")
            for at in range(0, len(digests), per_block)
        ]
        levels.insert(0, b"".join(blocks))
        digests = [digest(block) for block in blocks]
    return b"".join(levels), digests[0]


@pytest.fixture
def image(lab) -> tuple[targets.Verity, bytes]:
    """40 blocks of data on the first disk, and their tree on the second."""
    data = b"".join(bytes([number]) * BLOCK for number in range(40))
    value = targets.Verity(
        data=lab.refs[0],
        hashes=lab.refs[1],
        hash_block_size=1024,
        data_blocks=40,
        hash_start=2,
        root=bytes(32),
        salt=b"salt",
    )
    tree, root = tree_of(data, value)
    with lab.disk(0) as file:
        file.write(0, data)
    with lab.disk(1) as file:
        file.write(2 * 1024, tree)
    return replace(value, root=root), data


def _flip(lab, disk: int, offset: int) -> None:
    """Change one byte."""
    at = offset // 512 * 512
    with lab.disk(disk) as file:
        sector = bytearray(file.read(at, 512))
        sector[offset - at] ^= 1
        file.write(at, bytes(sector))


def _fails(file: BlockFile, block: int, count: int = 1) -> None:
    with pytest.raises(OSError) as caught:
        file.read(block * BLOCK, count * BLOCK)
    assert caught.value.errno == errno.EIO


@pytest.mark.dm
@pytest.mark.parametrize("version", [0, 1])
def test_good_data_are_read_and_verified(lab, version):
    data = bytes(range(256)) * 16 * 7
    value = targets.Verity(
        version=version, data=lab.refs[0], hashes=lab.refs[1], data_blocks=7, algorithm="sha1", root=bytes(20)
    )
    tree, root = tree_of(data, value)
    with lab.disk(0) as file:
        file.write(0, data)
    with lab.disk(1) as file:
        file.write(0, tree)
    value = replace(value, root=root)
    with lab.device(value, 56) as device, BlockFile(device.path, readonly=True) as file:
        assert device.info().readonly
        assert device.table() == Table.of(value, 56)
        assert file.read(0, len(data)) == data
        (status,) = device.status()
        assert not status.corrupted


@pytest.mark.dm
def test_one_flipped_byte_fails_its_block_alone_and_shows_in_the_status(lab, image):
    value, data = image
    _flip(lab, 0, 7 * BLOCK + 99)
    with lab.device(value, 320) as device, BlockFile(device.path, readonly=True) as file:
        assert file.read(0, 7 * BLOCK) == data[: 7 * BLOCK]
        assert device.status()[0].corrupted is False
        _fails(file, 7)
        assert device.status()[0].corrupted is True
        assert file.read(8 * BLOCK, BLOCK) == data[8 * BLOCK : 9 * BLOCK]
        _fails(file, 6, 3)
        with BlockFile(device.path) as writable, pytest.raises(OSError) as caught:
            writable.write(0, bytes(BLOCK))
        assert caught.value.errno in {errno.EPERM, errno.EIO, errno.EROFS}


@pytest.mark.dm
def test_a_flipped_byte_in_the_tree_fails_all_below_it(lab, image):
    value, data = image
    _flip(lab, 1, 4 * 1024 + 3)  # of the leaves' second block, for blocks 32 to 39
    with lab.device(value, 320) as device, BlockFile(device.path, readonly=True) as file:
        assert file.read(0, 32 * BLOCK) == data[: 32 * BLOCK]
        for block in (32, 39):
            _fails(file, block)


@pytest.mark.dm
def test_a_wrong_root_fails_every_read(lab, image):
    value, _ = image
    with (
        lab.device(replace(value, root=bytes(32)), 320) as device,
        BlockFile(device.path, readonly=True) as file,
    ):
        _fails(file, 0)


@pytest.mark.dm
def test_ignored_corruption_is_read_and_still_shows(lab, image):
    value, data = image
    _flip(lab, 0, 0)
    value = replace(value, on_corruption=OnCorruption.IGNORE, try_verify_in_tasklet=True)
    with lab.device(value, 320) as device, BlockFile(device.path, readonly=True) as file:
        assert file.read(0, BLOCK) == b"\1" + data[1:BLOCK]
        assert device.status()[0].corrupted is True


@pytest.mark.dm
def test_zero_blocks_are_not_read(lab, image):
    value, _ = image  # block 0 is zeros
    _flip(lab, 0, 5)
    with lab.device(replace(value, ignore_zero_blocks=True), 320) as device:
        with BlockFile(device.path, readonly=True) as file:
            assert file.read(0, BLOCK) == bytes(BLOCK)
        assert device.status()[0].corrupted is False


@pytest.mark.dm
def test_checked_once_is_not_checked_again(lab, image):
    value, data = image
    once = replace(value, check_at_most_once=True)
    with lab.device(once, 320) as device, BlockFile(device.path, readonly=True) as file:
        assert file.read(BLOCK, BLOCK) == data[BLOCK : 2 * BLOCK]
        _flip(lab, 0, BLOCK)
        assert file.read(BLOCK, BLOCK) == b"\0" + data[BLOCK + 1 : 2 * BLOCK]
        _flip(lab, 0, 2 * BLOCK)
        _fails(file, 2)


@pytest.mark.dm
def test_a_tree_that_does_not_fit_and_a_hash_that_is_none(lab, image):
    value, _ = image
    for wrong, number in (
        (replace(value, hash_start=4096), errno.E2BIG),
        (replace(value, algorithm="no-such-hash"), errno.ENOENT),
    ):
        with pytest.raises(TableRejected) as caught, lab.device(wrong, 320):
            pass
        assert caught.value.errno == number


@pytest.mark.dm
def test_a_missing_signature_key(lab, image):
    value, _ = image
    signed = replace(value, root_hash_sig_key_desc="pytest-dm:none")
    with pytest.raises(TableRejected) as caught, lab.device(signed, 320):
        pass
    assert caught.value.errno == errno.ENOKEY


def _veritysetup(*words: object) -> subprocess.CompletedProcess[str]:
    tool = shutil.which("veritysetup") or shutil.which("veritysetup", path="/sbin:/usr/sbin")
    assert tool
    return subprocess.run([tool, *map(str, words)], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.dm(needs=("veritysetup",))
def test_veritysetup_agrees_on_the_tree(lab, image):
    value, _ = image
    words = (
        "verify", lab.disks[0].path, lab.disks[1].path, value.root.hex(), "--no-superblock", "--data-blocks=40",
        "--hash-block-size=1024", "--data-block-size=4096", f"--hash-offset={2 * 1024}", f"--salt={value.salt.hex()}",
        "--hash=sha256", "--format=1",
    )  # fmt: skip
    good = _veritysetup(*words)
    assert good.returncode == 0, good.stderr
    _flip(lab, 0, 20 * BLOCK)
    bad = _veritysetup(*words)
    assert bad.returncode
    assert "81920" in bad.stderr


@pytest.mark.dm(needs="veritysetup")
def test_fec_repairs_what_does_not_match(lab, image):
    if "verity.fec" not in lab.features:
        pytest.skip("this kernel is built without CONFIG_DM_VERITY_FEC")
    _, data = image
    made = _veritysetup(
        "format", lab.disks[0].path, lab.disks[1].path, "--no-superblock", "--data-blocks=40", "--salt=00ff",
        f"--hash-offset={64 * BLOCK}", f"--fec-device={lab.disks[0].path}", f"--fec-offset={64 * BLOCK}", "--fec-roots=4",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    os.sync()  # the parity may still be in the cache of a disk that stays open
    root = next(line.split()[-1] for line in made.stdout.splitlines() if line.startswith("Root hash"))
    covered = 40 + lab.disks[1].size // BLOCK - 64
    value = targets.Verity(
        data=lab.refs[0], hashes=lab.refs[1], data_blocks=40, hash_start=64, root=bytes.fromhex(root), salt=b"\0\xff",
        fec=Fec(dev=lab.refs[0], start=64, blocks=covered, roots=4),
    )  # fmt: skip
    _flip(lab, 0, 7 * BLOCK + 99)
    with lab.device(value, 320) as device, BlockFile(device.path, readonly=True) as file:
        assert device.table() == Table.of(value, 320)
        assert file.read(0, len(data)) == data
        (status,) = device.status()
        assert status.corrected in {None, 1}
