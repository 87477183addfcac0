"""What programs promise of a power cut, held against what it leaves: LMDB and git, with their settings for speed and for safety."""

import os
import shutil
import subprocess

import pytest

from pytest_dm import oracles

pytestmark = pytest.mark.dm(size="16M", filesystem="ext4")


def unrelated_sync(folder):
    """Have the file system commit, as other programs on the disk do all the time."""
    fd = os.open(folder / "unrelated.tmp", os.O_RDWR | os.O_CREAT)
    os.fsync(fd)
    os.close(fd)


def read_lmdb(state):
    lmdb = pytest.importorskip("lmdb")

    if not (state.mountpoint / "data.mdb").exists():
        return {}
    with lmdb.open(str(state.mountpoint), map_size=1 << 20) as store, store.begin() as transaction:
        return {bytes(key): bytes(value) for key, value in transaction.cursor()}


@pytest.mark.parametrize(
    ("settings", "may_lose"),
    [
        ({}, set()),
        ({"metasync": False}, {"durability"}),
    ],  # "may undo the last committed transaction", says its manual
    ids=["default", "nometasync"],
)
def test_lmdb(dm_crash, settings, may_lose):
    lmdb = pytest.importorskip("lmdb", reason="LMDB's Python package is not installed: pip install lmdb")
    history = oracles.History()
    with dm_crash.record() as disk, lmdb.open(str(disk.mountpoint), map_size=1 << 20, **settings) as store:
        disk.sync()
        for key in (b"apple", b"bread", b"cheese"):
            with history.put(disk, key, key * 100), store.begin(write=True) as transaction:
                transaction.put(key, key * 100)
            unrelated_sync(disk.mountpoint)

    found = dm_crash.explore(oracles.KeyValue(history, read_lmdb), max_states=40)

    assert {finding.problem.kind for finding in found.findings} == may_lose


def git(folder, *words):
    who = {
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
    }
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1", **who}
    command = ["git", "-c", "gc.auto=0", "-c", "safe.directory=*", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def read_git(state):
    checked = git(state.mountpoint, "fsck", "--full")
    if checked.returncode:
        raise oracles.Corrupt(f"git fsck: {(checked.stderr or checked.stdout).splitlines()[0]}")
    return {"HEAD": git(state.mountpoint, "log", "-1", "--format=%s").stdout.strip()}


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_git_keeps_its_objects_whole_but_may_lose_the_last_commit(dm_crash):
    """With core.fsync=all every object is synced; the folders that name them are not."""
    history = oracles.History()
    with dm_crash.record() as disk:
        git(disk.mountpoint, "init", "-q")
        (disk.mountpoint / "file").write_text("content\n")
        git(disk.mountpoint, "add", "file")
        with history.put(disk, "HEAD", "first"):
            git(disk.mountpoint, "commit", "-qm", "first")
            disk.sync()
        with history.put(disk, "HEAD", "second"):
            git(disk.mountpoint, "-c", "core.fsync=all", "commit", "-q", "--allow-empty", "-m", "second")

    def check(state):
        return oracles.KeyValue(history, read_git)(state) if "1:HEAD" in state.acknowledged else None

    found = dm_crash.explore(check, max_states=40)

    assert {finding.problem.kind for finding in found.findings} <= {"durability"}
