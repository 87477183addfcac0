"""Commands of our own are found by their file and keep to the contract; the others do not pay for them."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys

import pytest

from dmcore import cli
from dmcore.errors import SpecError


def test_every_command_has_a_parser_of_its_name():
    for name in cli.command_names():
        module = importlib.import_module(f"dmcore.cli.{name.replace('-', '_')}")
        parser = argparse.ArgumentParser()
        subparsers = parser.add_subparsers()
        module.add_parser(subparsers)
        assert list(subparsers.choices) == [name]
        assert callable(module.run)


@pytest.fixture
def command(tmp_path, monkeypatch):
    """A command `some-thing` in a folder of its own, as if it stood in `dmcore/cli`."""
    (tmp_path / "some_thing.py").write_text(
        "from dmcore.errors import SpecError\n"
        "def add_parser(subparsers):\n"
        "    subparsers.add_parser('some-thing', help='does it').add_argument('--status', type=int, default=0)\n"
        "def run(arguments):\n"
        "    if arguments.status < 0: raise SpecError('status', arguments.status, 'too low')\n"
        "    return arguments.status\n"
    )
    (tmp_path / "_private.py").write_text("")
    monkeypatch.setattr(cli, "__path__", [*cli.__path__, str(tmp_path)])
    yield
    sys.modules.pop("dmcore.cli.some_thing", None)


def test_a_file_is_a_command(command, capsys):
    assert "some-thing" in cli.command_names()
    assert "-private" not in cli.command_names()
    assert cli.main(["some-thing", "--status", "7"]) == 7
    assert cli.main(["some-thing", "--status", "-1"]) == 1
    assert capsys.readouterr().err == f"dmcore: {SpecError('status', -1, 'too low')}\n"
    with pytest.raises(SystemExit) as left:
        cli.main(["some-thing", "--nonsense"])
    assert left.value.code == 2


def test_it_starts_light():
    code = "import sys, dmcore.cli; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    loaded = set(done.stdout.split())
    assert {"argparse", "ctypes", "dmcore.table", "dmcore.targets", "numpy", "cryptography"} & loaded == set()
