"""The exchange folder has a name that a kernel command line can carry, whatever the user's TMPDIR is called."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from dmvm import exchange


@pytest.mark.parametrize("name", ["plain", "größe"])
def test_it_is_in_the_users_temporary_folder(tmp_path, monkeypatch, name):
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    assert exchange.make("pytest-dm-x-").parent == folder


@pytest.mark.parametrize("name", ["two words", "it's", "a,b", "a:b", 'a"b', "a\\b", "tab\there"])
def test_a_name_that_cannot_be_passed_on_is_avoided(tmp_path, monkeypatch, name):
    folder = tmp_path / name
    folder.mkdir()
    link = tmp_path / f"link-to-{len(name)}"
    link.symlink_to(folder)
    for temporary in (folder, link):
        monkeypatch.setattr(tempfile, "tempdir", str(temporary))
        made = exchange.make("pytest-dm-x-")
        try:
            assert exchange.usable(made.resolve())
            assert made.parent in {Path("/tmp"), Path("/var/tmp")}
            assert made.parent in exchange.roots()
        finally:
            made.rmdir()
    assert list(folder.iterdir()) == []
