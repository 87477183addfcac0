"""Hostile metadata of every format: an error that users are told to expect, or a working volume; in bounded time and memory."""

from __future__ import annotations

import resource
import shutil
import subprocess
import time

import hostile
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmcore.errors import FormatError, SpecError
from dmcore.formats.persistent_writer import Metadata
from dmcore.model.stores import MemoryStore
from dmcore.table import Table

MOST_SECONDS = 5
"""Of CPU time, for one image."""
MOST_MIB = 300
"""Of memory, for all images of a format."""
TOOLS = {
    "thin": "thin_check", "cache": "cache_check", "era": "era_check", "luks1": "cryptsetup luksDump",
    "luks2": "cryptsetup luksDump", "verity": "veritysetup dump", "integrity": "integritysetup dump",
}  # fmt: skip
PATCH = st.tuples(st.integers(0, 2**16 - 1), st.integers(0, 255), st.integers(0, 255)).map(
    lambda patch: patch[0].to_bytes(2, "little") + bytes(patch[1:])
)
INSTRUCTIONS = st.tuples(st.booleans(), st.lists(PATCH, min_size=1, max_size=6)).map(
    lambda drawn: bytes([drawn[0]]) + b"".join(drawn[1])
)


@pytest.mark.parametrize("name", hostile.FORMATS)
def test_an_image_in_order_is_read(name):
    assert hostile.read(name, hostile.damaged(name, b"\1")) == ""


@pytest.mark.parametrize("name", hostile.FORMATS)
def test_any_damage_ends_in_an_error_that_is_told_of_or_in_a_working_volume(name):
    hostile.image(name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(max_examples=4, deadline=None, database=None)
    @given(INSTRUCTIONS)
    def check(instructions):
        begun = time.thread_time()
        hostile.read(name, hostile.damaged(name, instructions))
        assert time.thread_time() - begun < MOST_SECONDS

    check()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < MOST_MIB << 10, f"{grown} KiB"


def test_a_cipher_whose_name_is_no_utf_8_is_taken_or_refused():
    table = Table.parse("0 8 crypt aes-c\udca2c-plain64 00 0 7:0 0")
    assert "c\udca2c" in str(table)
    with pytest.raises(SpecError, match="more than 127 bytes"):
        Table.parse("0 8 crypt aes-" + "\udca2" * 127 + "-plain64 00 0 7:0 0")


def test_a_luks2_header_with_a_right_checksum_and_no_json_gives_way_to_the_other():
    data = bytearray(hostile.image("luks2"))
    data[4096] = 0
    stamp = hostile.FORMATS["luks2"].stamp
    assert stamp is not None
    stamp(b"", data)
    assert hostile.read("luks2", bytes(data)) == ""
    data[16384 + 4096] = 0
    stamp(b"", data)
    assert hostile.read("luks2", bytes(data)) == "FormatError"


def test_a_reference_behind_the_end_is_refused():
    metadata = Metadata(MemoryStore(64 * 4096))
    with pytest.raises(FormatError, match="there are only 64"):
        metadata.take(64)


@pytest.mark.parametrize("name", TOOLS)
def test_tools_take_the_images_that_others_are_made_of(name, tmp_path):
    words = TOOLS[name].split()
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    path = tmp_path / "image"
    path.write_bytes(hostile.image(name))
    if name.startswith("luks"):
        with path.open("r+b") as file:
            file.truncate(18 << 20)
    run = subprocess.run([*words, str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
