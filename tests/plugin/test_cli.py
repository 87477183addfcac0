"""The command `pytest-dm`, as far as it goes without a device."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from dmcore.owner import PREFIX, Owner
from pytest_dm import cli, doctor


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", "import sys; from pytest_dm.cli import main; sys.exit(main())", *arguments],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, **environment},
    )  # fmt: skip


def test_doctor_says_everything(tmp_path):
    done = run("doctor")
    sections = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    models = "Models (--dm-backend=model):"
    assert sections == ["Machine:", "This kernel:", "Programs:", "Guests:", models, "Verdict:"], done.stderr
    for word in (
        "python",
        "root",
        "loop driver",
        "device-mapper",
        "mkfs.ext4",
        "uml-6.12",
        "guard of host files",
    ):
        assert f"  {word}" in done.stdout
    assert "pytest --dm-vm" in done.stdout
    assert "\x1b" not in done.stdout
    usable = any(line.startswith("  ok  pytest") for line in done.stdout.splitlines())
    assert done.returncode == (0 if usable else 1)


def test_doctor_has_a_fix_for_what_is_missing():
    for section, found in doctor.findings().items():
        for finding in found:
            assert finding.state in {"ok", "no", "--"}
            if finding.state != "ok" and section == "Programs":
                assert finding.fix.startswith("sudo apt-get install ")


def test_doctor_without_anything(tmp_path):
    """No kernel fetched, nothing to fetch one with, no device-mapper: nothing can run, and that is the exit status."""
    done = run("doctor", PYTEST_DM_CACHE=str(tmp_path), PATH=str(tmp_path))
    assert "Traceback" not in done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("  no  pytest --dm-vm") for line in lines), done.stdout
    kernel = any(line.startswith("  ok  pytest ") for line in lines)
    assert done.returncode == (0 if kernel else 1)


def test_colour_only_on_a_terminal():
    lines: list[str] = []
    doctor.report(lines.append, colour=True)
    assert any("\x1b[32mok\x1b[0m" in line for line in lines)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Return folders below TMPDIR: of a dead owner, of a live one, and of nobody."""
    code = "from dmcore.owner import Owner; print(Owner.current().tag)"
    dead = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()
    names = {
        "dead": f"{PREFIX}-{dead}-x",
        "live": f"{PREFIX}-{Owner.current().tag}",
        "other": f"{PREFIX}-notes",
    }
    made = {key: tmp_path / name for key, name in names.items()}
    for path in made.values():
        path.mkdir()
        (path / "file").write_text("x")
    (tmp_path / f"{PREFIX}-{dead}-link").symlink_to(made["other"])
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return made


def test_clean_removes_folders_of_the_dead_and_nothing_else(folders, tmp_path):
    tried = run("clean", "--dry-run")
    assert f"would remove folder {folders['dead']}" in tried.stdout.splitlines(), tried.stderr
    assert folders["dead"].is_dir()
    done = run("clean")
    assert done.returncode == 0
    assert f"removed folder {folders['dead']}" in done.stdout.splitlines()
    assert not folders["dead"].exists()
    assert (folders["live"] / "file").exists()
    assert (folders["other"] / "file").exists()
    assert "nothing of ours is left behind" in run("clean").stdout


def test_vm_list_names_the_kernels():
    done = run("vm", "list")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()][:3] == ["uml-6.1", "uml-6.12", "uml-7.2"]


def test_an_unknown_kernel_is_one_clear_line():
    for command in (["vm", "build", "uml-2.4"], ["vm", "run", "--kernel", "uml-2.4", "--", "true"]):
        done = run(*command)
        assert done.returncode == 125
        assert "uml-2.4" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [[], ["vm"], ["vm", "run"], ["no-such"], ["clean", "now"]])
def test_wrong_usage(arguments, capsys):
    try:
        status = cli.main(arguments)
    except SystemExit as left:
        status = left.code
    assert status == 2
    assert "pytest-dm" in capsys.readouterr().err
