"""LVM2's label and text on a host."""

from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dmcore.errors import DmError, FormatError, SpecError, Unsupported
from dmcore.formats.lvm2 import _crc, parse_text
from dmcore.lvm import open_lvm
from dmcore.model.stores import MemoryStore

UUID = "abcdef" + "0123456789" * 2 + "ABCDEF"
TEXT = """
# made by a test
vg {
    id = "x"
    extent_size = 8   # sectors
    physical_volumes {
        pv0 { id = "abcdef-0123-4567-8901-2345-6789-ABCDEF" pe_start = 64 }
        pv1 { id = "elsewhere" pe_start = 64 }
    }
    logical_volumes {
        one {
            segment_count = 2
            segment2 { start_extent = 2 extent_count = 1 type = "striped" stripe_count = 1 stripes = ["pv0", 7] }
            segment1 { start_extent = 0 extent_count = 2 type = "striped" stripe_count = 1 stripes = [
                "pv0", 1 ] }
        }
        two { segment1 { start_extent = 0 extent_count = 2 type = "striped"
              stripe_count = 2 stripe_size = 8 stripes = ["pv0", 0, "pv0", 9] } }
        away { segment1 { start_extent = 0 extent_count = 1 type = "striped" stripe_count = 1 stripes = ["pv1", 0] } }
        odd { segment1 { start_extent = 0 extent_count = 1 type = "vdo" } }
        loop { segment1 { start_extent = 0 extent_count = 1 type = "thin" thin_pool = "loop" device_id = 1 } }
    }
}
"""


def _disk(text=TEXT, at=512, size=4096):
    """Make a disk with a label, and a metadata area of `size` bytes at 4096 whose text begins at `at`."""
    disk = MemoryStore(256 * 512, word="disk")
    label = bytearray(512)
    struct.pack_into("<8sQII8s", label, 0, b"LABELONE", 1, 0, 32, b"LVM2 001")
    areas = (64 * 512, 0, 0, 0, 4096, size, 0, 0)
    struct.pack_into("<32sQ8Q", label, 32, UUID.encode(), 256 * 512, *areas)
    struct.pack_into("<I", label, 16, _crc(memoryview(label)[20:]))
    disk.write(1, memoryview(label))
    data = text.encode() + b"\0"
    header = bytearray(512)
    struct.pack_into("<I16sIQQ", header, 0, 0, b" LVM2 x[5A%r0N*>", 1, 4096, size)
    struct.pack_into("<QQII", header, 40, at, len(data), _crc(data), 0)
    struct.pack_into("<I", header, 0, _crc(memoryview(header)[4:]))
    area = bytearray(size)
    area[:512] = header
    here = min(len(data), size - at)
    area[at : at + here] = data[:here]
    area[512 : 512 + len(data) - here] = data[here:]
    disk.write(8, memoryview(area))
    return disk


@pytest.mark.parametrize("at", [512, 3584])
def test_linear_and_striped_volumes_lie_where_the_text_says(at):
    disk = _disk(at=at)
    for extent in range(12):
        disk.write(64 + 8 * extent, memoryview(bytes([extent + 1]) * 4096))
    with open_lvm([disk], "vg/one") as volume:
        assert volume.read(0, 3 * 4096) == b"\2" * 4096 + b"\3" * 4096 + b"\10" * 4096
        with pytest.raises(OSError):
            volume.write(0, bytes(512))
    with open_lvm([disk], "two", "r+") as volume:
        assert volume.read(0, 8192) == b"\1" * 4096 + b"\12" * 4096
        volume.write(0, b"w" * 512)
    assert disk.read(64, 1) == b"w" * 512


@pytest.mark.parametrize(
    ("volume", "kind", "match"),
    [
        ("none", SpecError, "no such volume"),
        ("other/one", SpecError, "volume groups: vg"),
        ("away", SpecError, "pv1"),
        ("odd", Unsupported, "vdo"),
        ("loop", FormatError, "stands on itself"),
    ],
)
def test_what_cannot_be_opened_is_named(volume, kind, match):
    with pytest.raises(kind, match=match):
        open_lvm([_disk()], volume)


def test_damage_is_found():
    with pytest.raises(FormatError, match="no LVM2 label"):
        open_lvm([MemoryStore(8192)], "one")
    for sector, what in ((1, "label"), (8, "header"), (9, "checksum of the LVM2 metadata")):
        disk = _disk()
        block = disk.read(sector, 1)
        block[200] ^= 1
        disk.write(sector, memoryview(block))
        with pytest.raises(FormatError, match=what):
            open_lvm([disk], "one")


@pytest.mark.parametrize("text", ["a {", "a = ", "a = [1", "= 1", "a {}}", "a \x01", 'a = "x', "a {" * 50])
def test_text_out_of_the_grammar_is_refused(text):
    with pytest.raises(FormatError):
        parse_text(text)


def test_text_has_sections_numbers_strings_and_arrays():
    text = 'a { b = -5 c = 1.5 d = "x\\"y" }\ne-1 = [] f = ["a", 2,\n"c"] # end'
    assert parse_text(text) == {
        "a": {"b": -5, "c": 1.5, "d": 'x"y'},
        "e-1": [],
        "f": ["a", 2, "c"],
    }


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(st.data())
def test_hostile_text_is_refused_or_read(data):
    words = [
        "vg",
        "{",
        "}",
        "=",
        "[",
        "]",
        ",",
        "1",
        '"pv0"',
        "type",
        '"thin"',
        "segment1",
        "99999999999999999999",
    ]
    at = data.draw(st.integers(0, len(TEXT)))
    text = TEXT[:at] + " ".join(data.draw(st.lists(st.sampled_from(words), max_size=8))) + TEXT[at + 5 :]
    for name in ("one", "two", "loop"):
        try:
            with open_lvm([_disk(text)], name) as volume:
                volume.read(0, 512)
        except (DmError, OSError):
            continue
