"""Names of device nodes, as libdevmapper spells them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcore.kernel.nodes import node_path


@pytest.mark.parametrize(
    ("name", "node"),
    [
        ("plain-name_1.2+3:4=5@6#7", "plain-name_1.2+3:4=5@6#7"),
        ("a b", r"a\x20b"),
        ("\u00e4", r"\xc3\xa4"),
        ("\udcff", r"\xff"),
        ("a\nb", r"a\x0ab"),
        (r"back\slash", r"back\x5cslash"),
        (r"was\x20mangled", r"was\x20mangled"),
        (r"half\x2", r"half\x5cx2"),
    ],
)
def test_spelling(name, node):
    assert node_path(name) == Path("/dev/mapper") / node


@given(st.binary(min_size=1, max_size=127).filter(lambda raw: b"\0" not in raw and b"/" not in raw))
def test_every_name_stays_in_the_folder(raw):
    path = node_path(raw.decode("utf-8", "surrogateescape"))
    assert path.name.isascii()
    assert path.name.isprintable()
    assert " " not in path.name
    assert raw in {b".", b".."} or path.parent == Path("/dev/mapper")
