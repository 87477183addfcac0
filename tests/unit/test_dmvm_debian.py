"""Debian's packages: what of them is used, what is built, and package lists that are too old."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING

import pytest

from dmcore.errors import Unsupported
from dmvm import debian, outoftree
from dmvm.apt import FetchFailed
from dmvm.kernels import RECIPES, Extra
from dmvm.prepare import Site

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = {
    "linux/COPYING": b"",
    "linux/drivers/block/loop.c": b"loop",
    "linux/drivers/md/Makefile": b"kernel's own",
    "linux/drivers/md/dm-dust.c": b"dust",
    "linux/drivers/md/dm.h": b"header",
    "linux/drivers/md/persistent-data/dm-bitset.h": b"bitset",
    "linux/drivers/md/persistent-data/dm-bitset.c": b"other",
    "linux/fs/dm.h": b"not this one",
}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "linux-source-6.1.tar.xz"
    with tarfile.open(path, "w:xz") as packed:
        for name, data in SOURCE.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            packed.addfile(member, io.BytesIO(data))
    return path


def test_only_the_wanted_files_and_the_headers_are_taken(archive: Path, tmp_path: Path) -> None:
    into = tmp_path / "out"
    outoftree.take(archive, "drivers/md", ["dm-dust.c"], into)
    taken = {
        path.relative_to(into).as_posix(): path.read_bytes() for path in into.rglob("*") if path.is_file()
    }
    assert taken == {"dm-dust.c": b"dust", "dm.h": b"header", "persistent-data/dm-bitset.h": b"bitset"}


def test_a_file_that_is_not_in_the_source_is_named(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"dm-gone\.c; not in drivers/md of linux-source-6\.1\.tar\.xz"):
        outoftree.take(archive, "drivers/md", ["dm-dust.c", "dm-gone.c"], tmp_path / "out")


def test_makefile() -> None:
    extras = [Extra("dm-dust", "drivers/md", ("dm-dust",)), Extra("dm-clone", "drivers/md", ("a", "b"))]
    assert outoftree.makefile(extras) == "obj-m += dm-dust.o\nobj-m += dm-clone.o\ndm-clone-y := a.o b.o\n"


def test_without_a_compiler_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    site = Site.within("debian-6.1", tmp_path, tmp_path / "final", print)
    recipe = RECIPES["debian-6.1"]
    builder = outoftree.Builder(site, recipe, "6.1.0-9-amd64", "6.1.1-1", Archive())  # type: ignore[arg-type]
    with pytest.raises(Unsupported) as caught:
        builder.build(recipe.extras)
    assert caught.value.have == "there is no gcc and no make on PATH"
    assert "apt-get install" in caught.value.hint


class Archive:
    """A release whose package lists are out of date until fetched anew."""

    lists = "old"
    version = "6.1um4+b13"

    def __init__(self, *_: object) -> None:
        self.used: list[object] = []

    def update(self, *, force: bool = False) -> bool:
        type(self).lists = "new" if force else self.lists
        return force

    def show(self, package: str) -> dict[str, str]:
        return {"Package": package, "Version": self.version}

    def unpack(self, packages: list[str], name: str) -> Path:
        if self.lists == "old":
            raise FetchFailed(packages[0], "404 not found")
        raise Unsupported(packages[0], "arrived")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(debian, "Supply", Archive)
    monkeypatch.setattr(Archive, "lists", "old")
    return Site.within("uml-6.1", tmp_path, tmp_path / "final", print)


def test_a_package_that_left_the_archive_is_tried_with_fresh_lists(site: Site) -> None:
    with pytest.raises(Unsupported, match="arrived"):
        debian.build(site, RECIPES["uml-6.1"], refresh=False)
    assert Archive.lists == "new"


def test_fresh_lists_are_not_fetched_twice(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Archive, "update", lambda self, *, force=False: True)
    with pytest.raises(FetchFailed, match="404"):
        debian.build(site, RECIPES["uml-6.1"], refresh=True)


@pytest.mark.parametrize("version", ["7.3um1", "6.12um1", "6.10-1", "", "odd"])
def test_a_release_that_moved_on_is_not_taken(
    version: str, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Archive, "version", version)
    with pytest.raises(Unsupported, match=r"a kernel 6\.1 of Debian bookworm; user-mode-linux is at version"):
        debian.build(site, RECIPES["uml-6.1"], refresh=True)
