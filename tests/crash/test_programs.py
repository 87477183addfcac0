"""Programs on ext4, recorded on a real kernel (tests/tools/capture_crash.py): bugs are found, correct ones never accused."""

from __future__ import annotations

import lzma
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from crash_programs import SEEDS
from program_oracle import judge

from dmcore.crash.explore import explore
from dmcore.crash.filesystems import device_size, filesystem
from dmcore.crash.log import CrashLog
from dmcore.crash.oracles import CallableOracle, CommandOracle
from dmcore.crash.report import to_json
from dmcore.errors import FormatError, SpecError, Unsupported

DATA = Path(__file__).parents[1] / "data/crash"
ORACLE = Path(__file__).with_name("program_oracle.py")


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    for path in DATA.iterdir():
        (folder / path.name.removesuffix(".xz")).write_bytes(lzma.decompress(path.read_bytes()))
    return folder


@pytest.fixture(scope="module")
def look(logs):
    """Explore one of the logs; where its file system begins is found once."""
    firsts = {}

    def explored(name, program=None, *, oracle=None, **options):
        if program and oracle is None:
            oracle = CallableOracle(lambda state: judge(program, state.image, state.acknowledged) or None)
        with CrashLog(logs / name) as log:
            log.size = max(log.size, device_size(log))
            found = explore(
                log, filesystem=filesystem("ext4"), oracle=oracle, first=firsts.get(name), **options
            )
            firsts[name] = found.first
            assert found.errors == []
            return found, to_json(log, found)

    return explored


CORRECT = [("rename", "rename"), ("wal", "records"), ("sqlite-delete-extra", "database"), ("stress", None)]


@pytest.mark.parametrize(("name", "program"), CORRECT)
def test_correct_programs(look, name, program):
    found, report = look(f"ext4-{name}.log", program, max_states=80)
    assert report["violations"] == report["set_apart"] == []
    assert found.checked > 60
    assert found.first > 0  # mkfs is in the log


def test_sqlite_may_lose_what_it_acknowledged_last_and_nothing_else(look):
    """With a rollback journal and synchronous=full its folder is not synced when the journal is deleted."""
    found, _ = look("ext4-sqlite-delete-full.log", "database", max_states=90, torn=0)
    assert {finding.problem.kind for finding in found.findings} == {"durability"}
    for finding in found.findings:
        assert (
            finding.problem.reason
            == f"durability: row {finding.acknowledged[-1].removeprefix('put-')} is gone"
        )


@pytest.mark.parametrize("seed", range(max(2, SEEDS)))
def test_a_file_system_under_load_is_never_accused(look, seed):
    found, report = look("ext4-stress.log", seed=seed, max_states=40)
    assert report["violations"] == report["set_apart"] == []
    assert found.checked > 25


@pytest.mark.parametrize(
    ("name", "program", "kind", "words"),
    [
        ("renamebad", "rename", "integrity", "f0 has 0 bytes"),
        ("renamenodir", "replaced", "durability", "0 was acknowledged"),
        ("walbad", "records", "durability", "0 records, 4 acknowledged"),
        ("sqlite-delete-off", "database", "durability", "is gone"),
    ],
)
def test_bugs(look, name, program, kind, words):
    found, report = look(f"ext4-{name}.log", program, max_states=60, torn=0)
    assert report["violating"] > 3
    proof = next(proof for proof in found.proofs if proof.minimal.problem.kind == kind)
    text = "\n".join(proof.words)
    assert words in text
    assert "after mark" in text


def test_a_correct_program_loses_files_on_a_disk_that_lies_and_on_no_other(look):
    found, _ = look("ext4-rename.log", "rename", level="L3", max_states=12, torn=0, minimise=False)
    assert "durability" in {finding.problem.kind for finding in found.findings}


def test_the_lost_write_is_named(look):
    """By an oracle that is a command."""
    oracle = CommandOracle(f"{sys.executable} {ORACLE} database {{image}} {{acknowledged}}")
    found, _ = look("ext4-sqlite-delete-off.log", oracle=oracle, max_states=40, torn=0)
    text = "\n".join(line for proof in found.proofs for line in proof.words)
    assert "file /db, from byte 0" in text


@pytest.mark.parametrize("at", [0, 3])
def test_before_mkfs_there_is_nothing_to_judge(logs, at, tmp_path):
    whole = (logs / "ext4-wal.log").read_bytes()
    (tmp_path / "cut").write_bytes(whole[: 200_000 * (at + 1)])
    with CrashLog(tmp_path / "cut") as log, pytest.raises(SpecError, match="no sound file system"):
        explore(log, filesystem=filesystem("ext4"), workers=0)


def test_the_size_of_the_device_is_that_of_its_file_system(logs):
    with CrashLog(logs / "ext4-wal.log") as log:
        assert device_size(log) == 64 << 20


def test_only_a_kernel_recovers_them():
    for name in ("xfs", "btrfs", "f2fs"):
        with pytest.raises(Unsupported, match=f"mounts {name}"):
            filesystem(name)
    with pytest.raises(SpecError, match="fs='zfs'"):
        filesystem("zfs")


def test_fast_commits_are_refused(tmp_path):
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(32 << 20)
    mkfs = shutil.which("mke2fs", path="/sbin:/usr/sbin:/usr/bin")
    subprocess.run([mkfs, "-q", "-t", "ext4", "-O", "fast_commit", image], check=True)
    with pytest.raises(Unsupported, match="fast_commit"):
        filesystem("ext4").recover(image)


@pytest.mark.parametrize("features", ["", "^has_journal"])
def test_verdicts_on_images(tmp_path, features):
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    mkfs = shutil.which("mke2fs", path="/sbin:/usr/sbin:/usr/bin")
    subprocess.run([mkfs, "-q", "-t", "ext4", *(["-O", features] if features else []), image], check=True)
    ext = filesystem("ext4")
    assert ext.recover(image) is None
    assert ext.verify(image) is None
    with image.open("r+b") as file:
        file.seek(1024 * 70)
        file.write(b"\xff" * 200_000)
    problem = ext.recover(image) or ext.verify(image)
    if features:
        assert problem is None  # without a journal, errors are expected, and repaired
    else:
        assert problem.kind == "fs"
        assert problem.reason
    image.write_bytes(bytes(4096))
    assert ext.recover(image).reason.startswith("no ext4 file system")


def test_a_damaged_log_says_where(tmp_path, logs):
    whole = bytearray((logs / "ext4-wal.log").read_bytes())
    with CrashLog(logs / "ext4-wal.log") as log:
        offset = log.index[100].data_offset - 512
        entries = len(log.index)
    whole[offset : offset + 32] = b"\xff" * 32
    (tmp_path / "damaged").write_bytes(whole)
    with pytest.raises(FormatError) as caught:
        CrashLog(tmp_path / "damaged")
    assert caught.value.offset == offset
    with CrashLog(tmp_path / "damaged", salvage=True) as log:
        assert len(log.index) == 100
        assert f"it should have {entries} entries, the 100 before it are used" in log.warnings[0]
