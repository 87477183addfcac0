"""What blocks of xfs and btrfs are for, on images that mkfs fills from a folder: no kernel."""

from __future__ import annotations

import os
import subprocess

import pytest

from dmcore.crash import btrfs_layout, xfs_layout
from dmcore.crash.sparse import extents
from dmcore.crash.tools import find_tool

BLOCK = 4096


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    (folder / "sub").mkdir()
    (folder / "sub/second").write_bytes(
        b"".join((b"second %05d" % at).ljust(BLOCK, b".") for at in range(30))
    )
    (folder / "first").write_bytes(b"".join((b"first %05d" % at).ljust(BLOCK, b".") for at in range(5)))
    return folder


def image_of(path, size):
    with path.open("wb") as file:
        file.truncate(size)
    return path


def told(module, image):
    """Return what is said of every block of the image that holds something, and its data."""
    with image.open("rb") as file:
        data = {
            at: os.pread(file.fileno(), BLOCK, at)
            for start, stop in extents(file.fileno(), image.stat().st_size)
            for at in range(start, stop, BLOCK)
        }
    data = {at: one for at, one in data.items() if one.count(0) < len(one)}
    words = module.explain(image, [(at, b"") for at in data])
    return {at: (said, one) for (at, one), said in zip(data.items(), words, strict=True)}


def check_files(found):
    for name, pages in (("first", 5), ("sub/second", 30)):
        base = name.rpartition("/")[2].encode()
        for page in range(pages):
            begin = base + b" %05d" % page
            (said,) = {said for said, data in found.values() if data.startswith(begin)}
            assert said == f"file /{name}, from byte {page * BLOCK}"


def test_xfs(tmp_path, folder):
    image = image_of(tmp_path / "image", 320 << 20)
    (tmp_path / "proto").write_text(
        f"/none\n0 0\nd--755 0 0\nfirst ---644 0 0 {folder}/first\nsub d--755 0 0\nsecond ---644 0 0 {folder}/sub/second\n$\n$\n"
    )
    subprocess.run([find_tool("mkfs.xfs", "xfsprogs"), "-q", "-p", tmp_path / "proto", image], check=True)
    found = told(xfs_layout, image)
    check_files(found)
    words = {said for said, _ in found.values()}
    assert {"super block", "inodes", "free space tree", "inode tree"} <= words
    assert xfs_layout.explain(image, [(512, b""), (1024, b"")]) == ["free space header", "inode header"]


def test_btrfs(tmp_path, folder):
    image = image_of(tmp_path / "image", 128 << 20)
    subprocess.run([find_tool("mkfs.btrfs", "btrfs-progs"), "-q", "--rootdir", folder, image], check=True)
    found = told(btrfs_layout, image)
    check_files(found)
    words = {said for said, _ in found.values()}
    assert {
        "super block",
        "block of the fs tree",
        "block of the extent tree",
        "block of the csum tree",
    } <= words


@pytest.mark.parametrize("module", [xfs_layout, btrfs_layout])
def test_of_what_is_no_such_file_system_nothing_is_known(module, tmp_path):
    image = image_of(tmp_path / "image", 16 << 20)
    assert module.explain(image, [(0, b""), (1 << 20, b"")])[1] == ""
