from __future__ import annotations

import errno
import re
import subprocess
import threading

import pytest
from ground import blank as ground
from ground import check_offline

from dmcore import targets
from dmcore.errors import ParseError, SpecError, TableRejected
from dmcore.ref import Ref
from dmcore.table import Table
from dmcore.target import NO_FEATURES
from dmcore.targets.era import Checkpoint, DropMetadataSnap, EraStatus, TakeMetadataSnap, Unreadable, Usage

__all__ = ["ground"]

META, ORIGIN = Ref("7:0"), Ref("7:1")
ERA = targets.Era(metadata=META, origin=ORIGIN, block_sectors=24)


@pytest.mark.parametrize("words", ["7:0 7:1 24", "7:0 7:1 024 ", "7:0 7:1 4294967320"])
def test_reads_what_the_kernel_reads(words):
    assert Table.parse(f"0 64 era {words}") == Table.of(ERA, 64)


@pytest.mark.parametrize(
    ("words", "index"), [("", 3), ("7:0 7:1", 5), ("7:0 7:1 +8", 5), ("7:0 7:1 8 8", 6), ("7:0 7:1 0x8", 5)]
)
def test_refuses_what_the_kernel_refuses_and_names_the_word(words, index):
    with pytest.raises(ParseError) as caught:
        Table.parse(f"0 64 era {words}")
    assert caught.value.index == index


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("metadata", {"metadata": "7:0"}),
        ("origin", {"origin": None}),
        ("block_sectors", {"block_sectors": 0}),
        ("block_sectors", {"block_sectors": 12}),
        ("block_sectors", {"block_sectors": 2**32}),
    ],
)
def test_refuses_bad_values_and_names_the_field(field, values):
    with pytest.raises(SpecError) as caught:
        targets.Era(**{"metadata": META, "origin": ORIGIN, **values})
    assert caught.value.field == field


def test_value():
    assert ERA.refs() == (META, ORIGIN)
    assert ERA.encode(str) == "7:0 7:1 24"
    assert ERA.readback(NO_FEATURES) == ERA


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("8 13/1024 7 -", EraStatus(Usage(13, 1024), 7, None)),
        ("8 13/1024 7 99", EraStatus(Usage(13, 1024), 7, 99)),
        ("Error", Unreadable()),
    ],
)
def test_status(text, status):
    assert ERA.parse_status(text) == status


@pytest.mark.parametrize(
    "text", ["", "8", "8 13 7 -", "9 13/1024 7 -", "8 13/1024 7", "8 13/1024 7 - x", "Fail"]
)
def test_bad_status(text):
    with pytest.raises(ParseError):
        ERA.parse_status(text)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (Checkpoint(), "checkpoint"),
        (TakeMetadataSnap(), "take_metadata_snap"),
        (DropMetadataSnap(), "drop_metadata_snap"),
    ],
)
def test_messages(message, text):
    assert message.encode() == text
    assert message.parse_reply("") is None
    with pytest.raises(ParseError):
        message.parse_reply("x")


# On a kernel.


def _era(lab, **values) -> targets.Era:
    return targets.Era(**{"metadata": lab.refs[0], "origin": lab.refs[1], **values})


def _now(device) -> int:
    (status,) = device.status()
    return status.era


def _refused(number: int, request) -> None:
    with pytest.raises(OSError) as caught:
        request()
    assert caught.value.errno == number


def _written_since(lab, era: int) -> set[int]:
    """Return the blocks that era_invalidate names."""
    run = subprocess.run(
        ["era_invalidate", "--written-since", str(era), str(lab.disks[0].path)],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    found: set[int] = set()
    for block in re.findall(r'<block block="(\d+)"', run.stdout):
        found.add(int(block))
    for begin, end in re.findall(r'<range begin="(\d+)" end *= *"(\d+)"', run.stdout):
        found.update(range(int(begin), int(end)))
    return found


@pytest.mark.dm(needs=("era_check", "era_invalidate"))
def test_blocks_are_known_by_the_era_of_their_last_write(lab):
    with lab.open(_era(lab), 512) as (device, file):
        assert device.table() == Table.of(_era(lab), 512)
        first = _now(device)
        assert first == 1
        file.write(0, b"a" * 4096)
        file.write(63 * 4096, b"b" * 512)
        device.send(Checkpoint())
        second = _now(device)
        assert second == first + 1
        file.write(5 * 4096, b"c" * 8192)
        with lab.disk(1) as below:
            assert below.read(5 * 4096, 8192) == b"c" * 8192 == file.read(5 * 4096, 8192)
            assert below.read(0, 4096) == b"a" * 4096
    check_offline("era_check", lab.disks[0].path)
    assert _written_since(lab, second) == {5, 6}
    assert _written_since(lab, first) == {0, 5, 6, 63}
    with lab.device(_era(lab), 512) as device:
        assert _now(device) > second, "a resume begins an era"
    check_offline("era_check", lab.disks[0].path)


@pytest.mark.dm(needs="era_check")
def test_every_message_and_what_it_refuses(lab):
    with lab.device(_era(lab), 512) as device:
        _refused(errno.EINVAL, lambda: device.message("checkpoint now"))
        _refused(errno.EINVAL, lambda: device.message("checkpoints"))
        before = _now(device)
        device.send(TakeMetadataSnap())
        (status,) = device.status()
        assert status.era == before + 1
        assert 0 < status.metadata_snap < 512
        assert status.metadata.total == 512
        _refused(errno.EINVAL, lambda: device.send(TakeMetadataSnap()))
        device.send(DropMetadataSnap())
        (status,) = device.status()
        assert status.metadata_snap is None
        _refused(errno.EINVAL, lambda: device.send(DropMetadataSnap()))
    check_offline("era_check", lab.disks[0].path)


@pytest.mark.dm
def test_metadata_keep_their_block_size(lab):
    with lab.device(_era(lab, block_sectors=16), 512):
        pass
    with pytest.raises(TableRejected) as caught, lab.device(_era(lab), 512):
        pytest.fail("another block size")
    assert caught.value.errno == errno.EINVAL


@pytest.mark.dm
def test_a_longer_line_has_more_blocks(lab):
    with lab.open(_era(lab), 512) as (device, file):
        device.reload(Table.of(_era(lab), 1024))
        file.write(100 * 4096, b"x" * 4096)
        assert file.read(100 * 4096, 4096) == b"x" * 4096


@pytest.mark.dm
def test_status_of_a_suspended_device_waits_for_the_resume(lab):
    with lab.device(_era(lab), 512) as device:
        found = []
        with device.suspended():
            asker = threading.Thread(target=lambda: found.extend(device.status()), daemon=True)
            asker.start()
            asker.join(0.3)
            assert asker.is_alive()
        asker.join(10)
        assert isinstance(found[0], EraStatus)
