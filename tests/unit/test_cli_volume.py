"""`dmcore volume`, as a command over image files."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.fixture
def files(tmp_path):
    (tmp_path / "table").write_text("low: 0 16 linear a 8\ntop: 0 32 striped 2 8 low 0 b 0\n")
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode() * 24 * 512)
    return tmp_path


def _run(folder, command, *words, data=b""):
    script = "import sys; from dmcore.cli import main; sys.exit(main())"
    line = [
        sys.executable,
        "-c",
        script,
        "volume",
        command,
        "--table",
        "table",
        "--device",
        "a=a",
        "--device",
        "b=b",
    ]
    run = subprocess.run(
        [*line, *words], cwd=folder, input=data, capture_output=True, timeout=60, check=False
    )
    return run.returncode, run.stdout, run.stderr.decode()


def test_reads_any_bytes_of_a_stack(files):
    status, out, _ = _run(files, "read", "--offset", "4090", "--length", "10")
    assert (status, out) == (0, b"aaaaaabbbb")


def test_writes_what_comes_in_to_the_right_disk(files):
    assert _run(files, "write", "--offset", "4100", data=b"xyz")[0] == 0
    assert (files / "b").read_bytes()[:8] == b"bbbbxyzb"


def test_a_write_past_the_end_fails_in_words(files):
    status, _, said = _run(files, "write", "--offset", "16K", data=b"x")
    assert (status, said) == (1, "dmcore: No space left on device\n")


def test_export_keeps_holes(files):
    (files / "a").write_bytes(bytes(24 * 512))
    (files / "b").write_bytes(bytes(24 * 512))
    assert _run(files, "export", "out")[0] == 0
    assert ((files / "out").stat().st_size, (files / "out").stat().st_blocks) == (32 * 512, 0)


def test_info_tells_size_tables_and_status(files):
    status, out, _ = _run(files, "info", "--top", "low")
    assert status == 0
    assert (
        out.decode()
        == "size: 8192 bytes, blocks of 512\ntable low: 0 16 linear a 8\nstatus low: 0 16 linear\n"
    )


def test_a_device_without_a_path_is_refused(files):
    assert _run(files, "info", "--device", "c")[2].startswith("dmcore: device='c'")


def test_a_verity_image_opens_without_a_table_and_tells_corruption(tmp_path):
    data = bytes(range(256)) * 64
    (tmp_path / "data").write_bytes(data)
    made = subprocess.run(
        ["veritysetup", "format", "data", "tree"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    root = next(line.split()[-1] for line in made.stdout.splitlines() if line.startswith("Root hash"))
    script = "import sys; from dmcore.cli import main; sys.exit(main())"
    words = ["volume", "read", "--verity", "data", "--hashes", "tree", "--root-hash", root]

    def read():
        return subprocess.run(
            [sys.executable, "-c", script, *words], cwd=tmp_path, capture_output=True, timeout=60, check=False
        )

    assert (read().returncode, read().stdout) == (0, data)
    (tmp_path / "data").write_bytes(b"?" + data[1:])
    assert (read().returncode, read().stderr) == (1, b"dmcore: Input/output error\n")


def test_a_luks_image_opens_with_its_key_file(tmp_path):
    (tmp_path / "key").write_bytes(b"open sesame")
    with (tmp_path / "image").open("wb") as file:
        file.truncate(18 << 20)
    subprocess.run(
        ["cryptsetup", "luksFormat", "-q", "--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000",
         "image", "key"], cwd=tmp_path, check=True,
    )  # fmt: skip
    script = "import sys; from dmcore.cli import main; sys.exit(main())"

    def run(command, *words, data=b""):
        line = [
            sys.executable,
            "-c",
            script,
            "volume",
            command,
            "--luks",
            "image",
            "--key-file",
            "key",
            *words,
        ]
        return subprocess.run(line, cwd=tmp_path, input=data, capture_output=True, timeout=60, check=False)

    assert run("write", "--offset", "5000", data=b"hello").returncode == 0
    assert run("read", "--offset", "5000", "--length", "5").stdout == b"hello"
    assert b"hello" not in (tmp_path / "image").read_bytes()
