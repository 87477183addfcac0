"""`dmcore volume`, as a command over image files."""

from __future__ import annotations

import lzma
import subprocess
import sys
from pathlib import Path

import pytest

from dmcore.cli import main

SCRIPT = "import sys; from dmcore.cli import main; sys.exit(main())"


@pytest.fixture
def files(tmp_path):
    (tmp_path / "table").write_text("low: 0 16 linear a 8\ntop: 0 32 striped 2 8 low 0 b 0\n")
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode() * 24 * 512)
    return tmp_path


def _volume(folder, command, *words, data=b""):
    line = [sys.executable, "-c", SCRIPT, "volume", command, *words]
    run = subprocess.run(line, cwd=folder, input=data, capture_output=True, timeout=60, check=False)
    return run.returncode, run.stdout, run.stderr.decode()


def _run(folder, command, *words, data=b""):
    disks = ["--device", "a=a", "--device", "b=b"]
    return _volume(folder, command, "--table", "table", *disks, *words, data=data)


def test_reads_any_bytes_of_a_stack(files):
    status, out, _ = _run(files, "read", "--offset", "4090", "--length", "10")
    assert (status, out) == (0, b"aaaaaabbbb")


def test_writes_what_comes_in_to_the_right_disk(files):
    assert _run(files, "write", "--offset", "4100", data=b"xyz")[0] == 0
    assert (files / "b").read_bytes()[:8] == b"bbbbxyzb"


def test_a_write_past_the_end_fails_in_words(files):
    status, _, said = _run(files, "write", "--offset", "16K", data=b"x")
    assert (status, said) == (1, "dmcore: writing at byte 16384: No space left on device (ENOSPC)\n")


def test_a_file_that_is_not_there_is_named(files):
    (files / "b").unlink()
    assert _run(files, "info")[::2] == (1, "dmcore: b: No such file or directory (ENOENT)\n")


def test_what_can_be_read_before_a_failure_comes_out(files):
    (files / "table").write_text("0 8 linear a 0\n8 8 error\n")
    status, out, said = _run(files, "read", "--offset", "1")
    assert (status, out) == (1, b"a" * 4095)
    assert said == "dmcore: reading 512 bytes at 4096: Input/output error (EIO)\n"


def test_export_keeps_holes_and_reads_none(files):
    for name in "ab":
        with (files / name).open("wb") as file:
            file.truncate(1 << 40)
            file.seek(1 << 39)
            file.write(name.encode() * 4096)
    sectors = 1 << 31
    stripe = f"{sectors} {2 * sectors} striped 2 8 a 0 b 0"
    (files / "table").write_text(f"0 {sectors} linear a 0\n{stripe}\n{3 * sectors} 800000 zero\n")
    assert _run(files, "export", "out")[0] == 0
    with (files / "out").open("rb") as file:
        for at, byte in ((1 << 39, b"a"), (2 << 40, b"a"), ((2 << 40) + 4096, b"b")):
            file.seek(at - 4096)
            assert file.read(8192)[-4096:] == byte * 4096, at
    there = (files / "out").stat()
    assert there.st_size == 512 * (3 * sectors + 800000)
    assert there.st_blocks * 512 <= 1 << 19


def test_export_does_not_overwrite_a_disk(files):
    assert _run(files, "export", "a")[::2] == (1, "dmcore: FILE='a': is a disk of the volume\n")
    assert (files / "a").read_bytes()[:4] == b"aaaa"


def test_messages_go_to_any_table_of_a_stack_before_those_above(files):
    with (files / "a").open("wb") as file:
        file.truncate(2 << 20)
    (files / "b").write_bytes(b"b" * (1 << 20))
    stack = "pool: 0 2048 thin-pool a b 128 0\nthin: 0 256 thin pool 3\n"
    (files / "table").write_text(stack)
    create = ("--message-to", "pool", "0", "create_thin 3")
    status, _, said = _run(files, "write", *create, data=b"hello")
    assert (status, said) == (0, "")
    assert _run(files, "read", "--length", "6")[1] == b"hello\0"
    status, _, said = _run(files, "read", *create)
    assert said == "dmcore: message to pool, 'create_thin 3': File exists (EEXIST)\n"
    assert _run(files, "info", "--message-to", "nobody", "0", "x")[2].startswith(
        "dmcore: message-to='nobody'"
    )


def test_info_tells_size_tables_and_status(files):
    status, out, _ = _run(files, "info", "--top", "low")
    assert status == 0
    said = "size: 8192 bytes, blocks of 512\ntable low: 0 16 linear a 8\nstatus low: 0 16 linear\n"
    assert out.decode() == said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "c"], "dmcore: device='c': must be NAME=PATH"),
        (["--key-file", "k"], "dmcore: key-file='k': goes with --luks"),
        (["--fec-roots", "2"], "dmcore: fec-roots=2: goes with --verity"),
        (["--message-to", "top", "x", "y"], "dmcore: message-to='x': the sector must be a number"),
    ],
)
def test_options_that_do_not_fit_are_refused(files, monkeypatch, capsys, words, said):
    monkeypatch.chdir(files)
    line = ["volume", "info", "--table", "table", "--device", "a=a", "--device", "b=b", *words]
    assert main(line) == 1
    assert capsys.readouterr() == ("", said + "\n")


def _verity(folder, data, *words):
    """Make a verity image with veritysetup; return what opens it."""
    (folder / "data").write_bytes(data)
    run = ["veritysetup", "format", "data", "tree", *words]
    made = subprocess.run(run, cwd=folder, capture_output=True, text=True, check=True)
    root = next(line.split()[-1] for line in made.stdout.splitlines() if line.startswith("Root hash"))
    return ["--verity", "data", "--hashes", "tree", "--root-hash", root]


def test_a_verity_image_opens_without_a_table_and_tells_corruption(tmp_path):
    data = bytes(range(256)) * 64
    words = _verity(tmp_path, data)
    assert _volume(tmp_path, "read", *words)[:2] == (0, data)
    (tmp_path / "data").write_bytes(data[:5000] + b"?" + data[5001:])
    status, out, said = _volume(tmp_path, "read", *words)
    assert (status, out) == (1, data[:4096])
    assert said == "dmcore: reading 4096 bytes at 4096: Input/output error (EIO)\n"


def test_a_corrupted_verity_image_is_repaired_from_parity(tmp_path):
    data = bytes(range(256)) * 640
    words = _verity(tmp_path, data, "--fec-device", "fec", "--fec-roots", "4")
    damaged = bytearray(data)
    damaged[4096:8192] = bytes(4096)
    damaged[100000] ^= 1
    (tmp_path / "data").write_bytes(damaged)
    assert _volume(tmp_path, "read", *words)[0] == 1
    repair = ("--fec-device", "fec", "--fec-roots", "4")
    assert _volume(tmp_path, "read", *words, *repair)[:2] == (0, data)
    assert (tmp_path / "data").read_bytes() == damaged


def test_a_luks_image_opens_with_its_key_file(tmp_path):
    (tmp_path / "key").write_bytes(b"open sesame")
    with (tmp_path / "image").open("wb") as file:
        file.truncate(18 << 20)
    subprocess.run(
        ["cryptsetup", "luksFormat", "-q", "--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000",
         "image", "key"], cwd=tmp_path, check=True,
    )  # fmt: skip
    words = ["--luks", "image", "--key-file", "key"]
    assert _volume(tmp_path, "write", *words, "--offset", "5000", data=b"hello")[0] == 0
    assert _volume(tmp_path, "read", *words, "--offset", "5000", "--length", "5")[1] == b"hello"
    assert b"hello" not in (tmp_path / "image").read_bytes()


# -- images that a 6.12 kernel wrote (tests/tools/capture_volumes.py) --------------------------------------------------

IMAGES = Path(__file__).parents[1] / "data" / "volumes"


def _content(tag, first, count):
    return b"".join(f"{tag} {sector:6}".encode().ljust(512, b".") for sector in range(first, first + count))


def _unpack(folder, *names):
    for name in names:
        (folder / name).write_bytes(lzma.decompress((IMAGES / f"{name}.xz").read_bytes()))
    return [word for name in names for word in ("--device", f"{name}={name}")]


def test_a_thin_device_and_its_snapshot_are_read_and_exported_as_sparse_as_they_are(tmp_path):
    disks = _unpack(tmp_path, "thin-meta", "thin-data")
    stack = (
        "pool: 0 2048 thin-pool thin-meta thin-data 128 0\nnew: 0 2048 thin pool 0\nold: 0 2048 thin pool 1\n"
    )
    (tmp_path / "table").write_text(stack)
    old = bytes(65536) + _content("one", 128, 256)
    new = old[:65536] + _content("two", 128, 8) + old[65536 + 4096 :]
    for name, expected in (("old", old), ("new", new)):
        assert _volume(tmp_path, "export", "--table", "table", *disks, "--top", name, name)[::2] == (0, "")
        assert (tmp_path / name).read_bytes() == expected.ljust(1 << 20, b"\0")
        assert (tmp_path / name).stat().st_blocks <= 256


def test_a_raid6_without_two_of_its_legs_is_read(tmp_path):
    disks = _unpack(tmp_path, "raid6-0", "raid6-2", "raid6-3")
    (tmp_path / "table").write_text("0 1536 raid raid6_zr 1 8 5 - raid6-0 - - - raid6-2 - raid6-3 - -\n")
    status, out, said = _volume(tmp_path, "read", "--table", "table", *disks)
    assert (status, said) == (0, "")
    assert out == _content("raid", 0, 1536)


def test_an_integrity_image_with_a_dirty_journal_is_read_and_stays_as_it_is(tmp_path):
    disks = _unpack(tmp_path, "integrity")
    before = (tmp_path / "integrity").read_bytes()
    length = ["--length", str(64 * 512)]

    def read(mode):
        (tmp_path / "table").write_text(f"0 512 integrity integrity 0 - {mode} 1 internal_hash:crc32c\n")
        status, out, said = _volume(tmp_path, "read", "--table", "table", *disks, *length)
        assert (status, said) == (0, "")
        return out

    expected = _content("home", 0, 8) + _content("journal", 8, 16) + _content("home", 24, 40)
    assert read("R") != expected, "it is in the journal only"
    assert read("J") == expected
    assert (tmp_path / "integrity").read_bytes() == before, "reading replays in memory"
    assert _volume(tmp_path, "write", "--table", "table", *disks)[0] == 0
    assert read("R") == expected, "home now"
