"""docs/reference/dmcore.md: the help in it is the command's, and every command in the docs is one."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from dmcore import cli
from dmcore.cli._dmsetup.commands import VERBS, usage

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "reference" / "dmcore.md"
BLOCK = re.compile(r"(<!-- help begins.*?-->\n```text\n)(.*?)(```\n<!-- help ends -->)", re.DOTALL)
CALL = re.compile(r"(?:^|[`$#] ?)dmcore ([a-z][a-z_-]+)\b", re.MULTILINE)


def renew():
    """Put the help into the page: `python -c "import sys; sys.path.insert(0, 'tests/unit'); import test_dmcore_docs as d; d.renew()"`."""
    PAGE.write_text(BLOCK.sub(lambda match: match[1] + usage(ours=False) + match[3], PAGE.read_text()))


def test_the_help_is_in_the_page():
    match = BLOCK.search(PAGE.read_text())
    assert match
    assert match[2] == usage(ours=False), renew.__doc__


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda path: path.name
)
def test_every_command_in_the_docs_exists(page):
    for name in CALL.findall(page.read_text()):
        assert name in VERBS or name in cli.command_names(), f"{page}: dmcore {name}"


def test_some_commands_are_in_the_docs():
    assert "create" in CALL.findall(PAGE.read_text())


def test_every_verb_has_its_function():
    for verb in VERBS.values():
        assert callable(verb.load()), verb.place
        assert verb.about


@pytest.mark.parametrize("name", ["CreateFlags", "create_device", "encrypt_device", "keyring"])
def test_the_how_to_uses_names_that_there_are(name):
    text = (ROOT / "docs" / "how-to" / "containers.md").read_text()
    assert name in text
    for module, names in re.findall(r"^from (dmcore[\w.]*) import (.+)$", text, re.MULTILINE):
        for one in names.split(", "):
            assert hasattr(importlib.import_module(module), one), f"{module}.{one}"
