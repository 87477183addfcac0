from __future__ import annotations

import contextlib
import errno
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from ground import Blank, Ground

from dmcore import targets
from dmcore.abi.dm import TableLine
from dmcore.errors import DmError, ParseError, SpecError, TableRejected
from dmcore.model.stores import MemoryStore
from dmcore.ref import Ref
from dmcore.table import Line, Table
from dmcore.target import NO_FEATURES, Target
from dmcore.targets.crypt import Tags
from dmcore.targets.integrity import Algorithm, IntegrityStatus, Key, Mode
from dmcore.volume import Volume, open_volume

DEV, META = Ref("7:0"), Ref("7:1")
CRC = Algorithm("crc32c")
HMAC = Algorithm("hmac(sha256)", Key(bytes(range(16, 48))))
HEX = bytes(range(16, 48)).hex()
PLAIN = targets.Integrity(dev=DEV, start=16, internal_hash=CRC)
FULL = targets.Integrity(
    dev=DEV, tag_size=32, mode=Mode.BITMAP, journal_sectors=1000, interleave_sectors=256, buffer_sectors=64,
    journal_watermark=70, commit_time=5000, meta_device=META, block_size=4096, sectors_per_bit=512,
    bitmap_flush_interval=20, internal_hash=HMAC, journal_crypt=Algorithm("ctr(aes)", Key(bytes(16))),
    journal_mac=HMAC, recalculate=True, allow_discards=True, fix_padding=True, fix_hmac=True,
)  # fmt: skip
NUMBERS = (
    "journal_sectors", "interleave_sectors", "buffer_sectors", "journal_watermark", "commit_time", "sectors_per_bit",
    "bitmap_flush_interval",
)  # fmt: skip


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("7:0 16 - J 1 internal_hash:crc32c", PLAIN),
        ("7:0 16 - J 1 internal_hash:crc32c ignored", PLAIN),
        ("7:0 16 4 J 0", replace(PLAIN, tag_size=4, internal_hash=None)),
        ("7:0 16 4294967300 J 0", replace(PLAIN, tag_size=4, internal_hash=None)),
        (
            "7:0 16 - D 3 internal_hash:crc32c block_size:4096 block_size:1024",
            replace(PLAIN, mode=Mode.DIRECT, block_size=1024),
        ),
        ("7:0 16 - I 1 internal_hash:crc32c", replace(PLAIN, mode=Mode.INLINE)),
        (
            "7:0 16 4 R 1 commit_time:4294967297",
            replace(PLAIN, tag_size=4, internal_hash=None, mode=Mode.RECOVERY, commit_time=1),
        ),
    ],
)
def test_reads_what_the_kernel_reads(words, value):
    assert Table.parse(f"0 8 integrity {words}") == Table.of(value, 8)


@pytest.mark.parametrize(
    ("words", "index"),
    [
        ("7:0 16 4", 6),
        ("7:0 16 4 J", 7),
        ("7:0 16 0 J 0", 5),
        ("7:0 16 256 J 0", 5),
        ("7:0 16 4 j 0", 6),
        ("7:0 16 4 J 1", 7),
        ("7:0 16 4 J 19", 7),
        ("7:0 16 4 J 1 what", 8),
        ("7:0 16 4 J 1 RECALCULATE", 8),
        ("7:0 16 4 J 1 journal_sectors:", 8),
        ("7:0 16 4 J 1 journal_sectors:1x", 8),
        ("7:0 16 4 J 1 journal_watermark:101", 8),
        ("7:0 16 4 J 1 block_size:8192", 8),
        ("7:0 16 4 J 1 internal_hash:hmac(sha256):123", 8),
        ("7:0 16 4 J 1 internal_hash:", 8),
    ],
)
def test_refuses_what_the_kernel_refuses_and_names_the_word(words, index):
    with pytest.raises(ParseError) as caught:
        Table.parse(f"0 8 integrity {words}")
    assert caught.value.index == index


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("dev", {"dev": "7:0"}),
        ("start", {"start": -1}),
        ("tag_size", {"tag_size": 0}),
        ("tag_size", {"tag_size": 256}),
        ("tag_size", {"internal_hash": None}),
        ("mode", {"mode": "J"}),
        ("mode", {"mode": Mode.BITMAP, "internal_hash": None, "tag_size": 4}),
        ("journal_watermark", {"journal_watermark": 101}),
        ("journal_sectors", {"journal_sectors": 2**32}),
        ("meta_device", {"meta_device": "7:1"}),
        ("block_size", {"block_size": 8192}),
        ("block_size", {"block_size": 1000}),
        ("internal_hash", {"internal_hash": "crc32c"}),
        ("recalculate", {"recalculate": True, "internal_hash": None, "tag_size": 4}),
        ("recalculate", {"recalculate": True, "internal_hash": HMAC}),
        ("reset_recalculate", {"reset_recalculate": True, "internal_hash": HMAC, "fix_hmac": True}),
        ("allow_discards", {"allow_discards": True, "internal_hash": None, "tag_size": 4}),
        ("allow_discards_keyed", {"allow_discards_keyed": True}),
        ("fix_padding", {"fix_padding": 1}),
    ],
)
def test_refuses_bad_values_and_names_the_field(field, values):
    with pytest.raises(SpecError) as caught:
        replace(PLAIN, **values)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("name", lambda: Algorithm("")),
        ("name", lambda: Algorithm("a:b")),
        ("key", lambda: Algorithm("a", b"secret")),
    ],
)
def test_refuses_bad_algorithms(field, make):
    with pytest.raises(SpecError) as caught:
        make()
    assert caught.value.field == field
    assert "secret" not in str(caught.value)


def test_refuses_lines_it_cannot_serve():
    with pytest.raises(SpecError):
        Line(8, 8, PLAIN)
    with pytest.raises(SpecError) as caught:
        Line(0, 9, replace(PLAIN, block_size=4096))
    assert caught.value.field == "block_size"


def test_value():
    assert PLAIN.encode(str) == "7:0 16 - J 1 internal_hash:crc32c"
    assert FULL.refs() == (DEV, META)
    assert Table.from_lines(Table.of(FULL, 64).encode(str)) == Table.of(FULL, 64)
    assert FULL.readback(NO_FEATURES) == replace(FULL, fix_padding=False)
    both = replace(PLAIN, internal_hash=HMAC, allow_discards=True, allow_discards_keyed=True)
    assert both.readback(NO_FEATURES) == replace(both, allow_discards=False)
    again = replace(PLAIN, reset_recalculate=True)
    assert again.readback(NO_FEATURES) == replace(again, recalculate=True)
    keyed = replace(PLAIN, internal_hash=HMAC, allow_discards_keyed=True)
    assert keyed.needs().features == {"integrity.allow_discards_keyed"}
    assert (FULL.secret, PLAIN.secret) == (True, False)
    assert replace(PLAIN, interleave_sectors=64).overlaps
    assert not replace(PLAIN, interleave_sectors=64, buffer_sectors=64).overlaps
    assert not replace(PLAIN, interleave_sectors=64, fix_padding=True).overlaps


def test_no_text_shows_a_key():
    table = Table.of(FULL, 64)
    (line,) = table.encode(str)
    shown = [str(table), repr(table), repr(FULL), str(line), repr(line), repr(HMAC)]
    for words in (
        f"7:0 16 4 J 2 internal_hash:x:{HEX}",
        f"7:0 16 4 J 1 journal_mac:x:{HEX}0",
        f"7:0 16 x J 1 journal_mac:x:{HEX}",
    ):
        with pytest.raises(ParseError) as caught:
            Table.parse(f"0 8 integrity {words}")
        shown += [str(caught.value), repr(caught.value)]
    assert not [text for text in shown if HEX[:16] in text]
    assert "internal_hash:hmac(sha256):<32-byte-key>" in str(table)
    with pytest.raises(ParseError):
        Table.parse(str(table))


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("0 3656 -", IntegrityStatus(mismatches=0, provided_sectors=3656, recalculated=None)),
        ("7 3656 128", IntegrityStatus(mismatches=7, provided_sectors=3656, recalculated=128)),
    ],
)
def test_status(text, status):
    assert PLAIN.parse_status(text) == status


@pytest.mark.parametrize("text", ["", "0 1", "x 1 -", "0 1 x", "0 1 - 2"])
def test_bad_status(text):
    with pytest.raises(ParseError):
        PLAIN.parse_status(text)


# On a kernel.


def _provided(lab, value: targets.Integrity) -> int:
    """Format the device, and return the sectors that it has then."""
    with lab.device(value, 8) as device:
        (status,) = device.status()
        return status.provided_sectors


@contextlib.contextmanager
def ground(lab) -> Iterator[Ground]:
    yield _Formatting(lab)


class _Formatting(Blank):
    """Blank disks. What fits them, and the numbers that are printed, depend on their sizes: the model says both."""

    @contextlib.contextmanager
    def _model(self, target: targets.Integrity, length: int) -> Iterator[Volume]:
        disks = {ref.name: MemoryStore(size * 512, word=ref.name) for ref, size in self.refs.items()}
        with open_volume(Table.of(target, length), disks, features=self.lab.features) as volume:
            yield volume

    def printed(self, table: Table) -> Table:
        (line,) = table.lines
        assert isinstance(line.target, targets.Integrity)
        with self._model(line.target, line.length) as volume:
            text = volume.device.targets[0].params()
        shown = Table.from_lines([TableLine(0, line.length, "integrity", text)])
        (told,) = table.readback(self.lab.features).lines
        assert _without_numbers(shown.lines[0].target) == _without_numbers(told.target)
        return shown

    def fits(self, target: Target, length: int) -> bool:
        assert isinstance(target, targets.Integrity)
        try:
            with self._model(target, length):
                return True
        except (OSError, DmError):
            return False

    def later(self, line: TableLine) -> bool:
        """Half a block at the end is refused at resume only."""
        sizes = [int(size) for size in re.findall(r"\bblock_size:([0-9]{1,5})\b", line.params)]
        return any(size and line.length * 512 % size for size in sizes)


def _without_numbers(value: Target) -> targets.Integrity:
    assert isinstance(value, targets.Integrity)
    return replace(value, tag_size=99, **dict.fromkeys(NUMBERS))


@pytest.mark.dm
@pytest.mark.parametrize("mode", [Mode.JOURNAL, Mode.BITMAP, Mode.DIRECT])
def test_data_come_back_and_unwritten_blocks_fail(lab, mode):
    value = targets.Integrity(dev=lab.refs[0], mode=mode, internal_hash=CRC)
    size = _provided(lab, value)
    with lab.open(value, size) as (device, file):
        printed = device.table().lines[0].target
        assert (printed.tag_size, printed.mode) == (4, mode)
        file.write(4096, b"x" * 4096)
        assert file.read(4096, 4096) == b"x" * 4096
        assert device.status() == [IntegrityStatus(mismatches=0, provided_sectors=size, recalculated=None)]
        with pytest.raises(OSError) as caught:
            file.read(0, 512)
        assert caught.value.errno == errno.EILSEQ
        assert device.status()[0].mismatches == 1
    with lab.open(value, size) as (device, file):
        assert file.read(4096, 4096) == b"x" * 4096
    with pytest.raises(TableRejected) as longer, lab.device(value, size + 8):
        pass
    assert longer.value.errno == errno.EINVAL


@pytest.mark.dm
def test_a_changed_byte_below_is_found(lab):
    value = targets.Integrity(dev=lab.refs[0], meta_device=lab.refs[1], mode=Mode.DIRECT, internal_hash=CRC)
    with lab.open(value, 1024) as (device, file):
        file.write(0, b"a" * 8192)
        with lab.disk() as below:
            below.write(512, b"b" * 512)
        assert file.read(0, 512) == b"a" * 512
        with pytest.raises(OSError) as caught:
            file.read(512, 512)
        assert caught.value.errno == errno.EILSEQ
        assert file.read(1024, 512) == b"a" * 512
        assert device.status()[0].mismatches == 1
    with lab.open(replace(value, mode=Mode.RECOVERY), 1024) as (_, file):
        assert file.read(512, 512) == b"b" * 512
        with pytest.raises(OSError) as refused:
            file.write(0, b"c" * 512)
        assert refused.value.errno == errno.EIO


@pytest.mark.dm
def test_recalculation_makes_unwritten_blocks_good(lab):
    value = targets.Integrity(dev=lab.refs[0], internal_hash=CRC, recalculate=True)
    size = _provided(lab, value)
    with lab.open(value, size) as (device, file):
        deadline = time.monotonic() + 20
        while device.status()[0].recalculated != size:
            assert time.monotonic() < deadline, device.status()
            time.sleep(0.02)
        assert file.read(0, 65536) == bytes(65536)
        assert device.table().lines[0].target.recalculate


@pytest.mark.dm
def test_discards_with_a_hash(lab):
    value = targets.Integrity(
        dev=lab.refs[0], meta_device=lab.refs[1], mode=Mode.DIRECT, internal_hash=CRC, allow_discards=True
    )
    with lab.open(value, 1024) as (_, file):
        file.write(0, b"x" * 4096)
        file.discard(0, 4096)
        assert file.read(0, 4096) == bytes(4096)


@pytest.mark.dm
def test_a_key_is_not_shown_and_makes_other_tags(lab):
    value = targets.Integrity(dev=lab.refs[0], mode=Mode.DIRECT, internal_hash=HMAC)
    size = _provided(lab, value)
    with lab.open(value, size) as (device, file):
        assert device.table().lines[0].target.internal_hash == HMAC
        assert HEX[:16] not in device.table_text() + repr(device.table())
        file.write(0, b"x" * 4096)
    other = replace(value, internal_hash=Algorithm("hmac(sha256)", Key(bytes(32))))
    with lab.open(other, size) as (_, file), pytest.raises(OSError) as caught:
        file.read(0, 4096)
    assert caught.value.errno == errno.EILSEQ


@pytest.mark.dm
@pytest.mark.parametrize(
    "cipher", [None, Algorithm("ctr(aes)", Key(bytes(range(16)))), Algorithm("cbc(aes)", Key(bytes(16)))]
)
def test_an_encrypted_journal_does_not_show_the_data(lab, cipher):
    value = replace(
        PLAIN, dev=lab.refs[0], meta_device=lab.refs[1], start=0, journal_crypt=cipher, journal_mac=HMAC
    )
    with lab.open(value, 1024) as (device, file):
        assert device.table().lines[0].target.journal_crypt == cipher
        file.write(0, b"plain text" * 4096)
        file.flush()
        with lab.disk(1) as journal:
            assert (b"plain text" * 8 in journal.read(0, journal.size)) is (cipher is None)
        assert file.read(0, 40960) == b"plain text" * 4096
    with lab.open(value, 1024) as (_, file):
        assert file.read(0, 40960) == b"plain text" * 4096


@pytest.mark.dm
def test_a_superblock_with_another_mac_is_refused(lab):
    value = replace(PLAIN, dev=lab.refs[0], start=0, journal_mac=HMAC, fix_hmac=True)
    size = _provided(lab, value)
    with lab.open(value, size) as (_, file):
        file.write(0, b"x" * 4096)
    other = replace(value, journal_mac=Algorithm("hmac(sha256)", Key(b"another")))
    with pytest.raises(TableRejected) as caught, lab.device(other, size):
        pass
    assert caught.value.errno == errno.EILSEQ
    with lab.open(value, size) as (_, file):
        assert file.read(0, 4096) == b"x" * 4096


@pytest.mark.dm
def test_a_discard_with_a_key_leaves_no_valid_tag_unless_it_is_told(lab):
    value = replace(
        PLAIN, dev=lab.refs[0], meta_device=lab.refs[1], start=0, mode=Mode.DIRECT, internal_hash=HMAC
    )
    plain = replace(value, allow_discards=True)
    with lab.open(plain, 1024) as (_, file):
        file.write(0, b"x" * 4096)
        file.discard(0, 4096)
        assert file.read(0, 4096) == bytes(4096)
    lab.wipe()
    if "integrity.allow_discards_keyed" not in lab.features:
        return
    keyed = replace(value, allow_discards_keyed=True)
    with lab.open(keyed, 1024) as (device, file):
        assert device.table().lines[0].target.allow_discards_keyed
        file.write(0, b"x" * 4096)
        file.discard(0, 4096)
        assert file.read(0, 4096) == bytes(4096)
    with pytest.raises(TableRejected), lab.device(plain, 1024):
        pass


@pytest.mark.dm
def test_a_cipher_above_that_authenticates(lab):
    below = targets.Integrity(dev=lab.refs[0], tag_size=28, mode=Mode.JOURNAL)
    size = _provided(lab, below)
    with lab.device(below, size) as lower:
        value = targets.Crypt(
            cipher="capi:gcm(aes)-random", key=Key(bytes(range(32))), dev=lower.ref, tags=Tags(28)
        )
        with lab.open(value, size) as (device, file):
            assert device.table() == Table.of(value, size)
            file.write(0, b"x" * 4096)
            assert file.read(0, 4096) == b"x" * 4096
            with pytest.raises(OSError) as caught:
                file.read(8192, 512)
            assert caught.value.errno == errno.EILSEQ
        with lab.open(replace(value, key=Key(bytes(32))), size) as (_, file), pytest.raises(OSError) as wrong:
            file.read(0, 512)
        assert wrong.value.errno == errno.EILSEQ


@pytest.mark.dm(needs=("integritysetup",))
def test_integritysetup_agrees(lab):
    value = targets.Integrity(dev=lab.refs[0], internal_hash=CRC)
    size = _provided(lab, value)
    tool = shutil.which("integritysetup") or shutil.which("integritysetup", path="/sbin:/usr/sbin")
    assert tool
    run = subprocess.run(
        [tool, "dump", lab.disks[0].path], capture_output=True, text=True, timeout=30, check=False
    )
    assert run.returncode == 0, run.stderr
    assert f"provided_data_sectors {size}" in run.stdout
    assert "integrity_tag_size 4" in run.stdout
