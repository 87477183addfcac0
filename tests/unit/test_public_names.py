"""The names of the library's first page: they are there, are what they say, and cost nothing before they are used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dmcore


@pytest.mark.parametrize("name", dmcore.__all__)
def test_every_name_is_there(name):
    value = getattr(dmcore, name)
    assert value.__name__.rpartition(".")[2] == name
    assert value.__doc__
    assert name in dir(dmcore)


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(dmcore.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = [alias.asname for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(seen) == sorted(dmcore.__all__)


def test_a_name_that_there_is_not():
    with pytest.raises(AttributeError, match="'dmcore' has no attribute 'nonsense'"):
        dmcore.nonsense  # noqa: B018


def test_importing_it_costs_nothing():
    code = "import sys; before = set(sys.modules); import dmcore; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-S", "-c", code], check=True, capture_output=True, text=True, timeout=60,
                          env={"PYTHONPATH": str(Path(dmcore.__file__).parent.parent)})  # fmt: skip
    loaded = set(done.stdout.split())
    assert {name for name in loaded if name.startswith("dmcore")} == {"dmcore"}
    assert {"ctypes", "dataclasses", "pathlib", "hypothesis"} & loaded == set()


def test_one_name_brings_in_what_it_needs_only():
    code = "import sys; from dmcore import Ref; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert {"dmcore.table", "dmcore.kernel.control", "ctypes"} & set(done.stdout.split()) == set()
