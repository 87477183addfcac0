"""`dmcore` next to `dmsetup`: one script, the same output, exit statuses and effects."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dmcore_forks import Forks
from dmsetup_script import FILES, KEYS, lines

from dmcore.abi.dm import TableLine
from dmcore.kernel.control import Control
from dmcore.kernel.loop import LoopDevice

pytestmark = pytest.mark.dm

DMCORE = Path(sys.executable).with_name("dmcore")
CALL = re.compile(
    r"""\$DM(?P<words>(?:[^;|<>&'"$]|\$[ABTKLMN]\b|'[^']*'|"(?:[^"\\$]|\$(?!\())*")*)"""
    r"""(?P<stdin> < [^ ;]+)?(?P<quiet> > /dev/null)?(?P<silent> 2>(?: /dev/null|&1))?(?:; |$)"""
)
"""A call that needs no shell."""
MAPPER = Path("/dev/mapper")
OURS = re.compile(r"  (?:kernel|dmcore): .*\n")


def nodes():
    found = {}
    for path in sorted(MAPPER.iterdir()):
        state = path.stat()
        found[path.name] = state.st_rdev if stat.S_ISBLK(state.st_mode) else "no block device"
    return found


def normal(err):
    """Standard error without what dmcore adds, without the help, under one name, and without fields that may be keys."""
    err = re.sub(r"(?s)Usage.*", "", OURS.sub("", err)).replace("dmsetup: ", "dmcore: ")
    return re.sub(r"(Parsed \d fields).*", r"\1", err)


def state():
    """Everything that the kernel and /dev tell of dm devices."""
    with Control() as control:
        found = {}
        for entry in control.list_devices():
            info = control.info(entry.name)
            found[entry.name] = (
                repr(info),
                "\n".join(map(str, control.table(entry.name))),
                "\n".join(map(str, control.table(entry.name, inactive=True))),
            )
    return found | {f"/dev/mapper/{name}": what for name, what in nodes().items()}


def shell(line, environment):
    done = subprocess.run(
        ["sh", "-c", line],
        capture_output=True,
        env=environment,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return (
        done.stdout.decode("utf-8", "surrogateescape"),
        done.returncode,
        done.stderr.decode("utf-8", "replace"),
    )


def calls(line):
    """Return the calls of a line that needs no shell, else None."""
    found, place = [], 0
    while place < len(line):
        match = CALL.match(line, place)
        if match is None:
            return None
        found.append(match)
        place = match.end()
    return found


def plainly(line, forks, environment, folder):
    """Run a line of plain calls: most of the time of a call is Python's start."""
    out = err = ""
    status = 0

    def expanded(word):
        return re.sub(r"\$(\w+)", lambda name: environment[name[1]], word)

    for call in line:
        words = [expanded(word) for word in shlex.split(call["words"])]
        stdin = expanded(call["stdin"][3:]) if call["stdin"] else os.devnull
        said, status, complained = forks.call(words, folder, stdin)
        out += "" if call["quiet"] else said
        err += "" if call["silent"] else complained
    return out, status, err


def play(command, loops, folder):
    """Run the script with a command; return what each line gave."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for stale in set(nodes()) - {"control"}:
        (MAPPER / stale).unlink()
    environment = {
        **os.environ, "DM": str(command), "DM_DISABLE_UDEV": "1", "A": str(loops[0].path), "B": str(loops[1].path),
        "T": str(folder), **KEYS,
    }  # fmt: skip
    for name, text in FILES.items():
        (folder / name).write_text(text.format(**environment))
    results = []
    with Control() as control:
        newest = control.version() >= (4, 50, 0)
    with Forks(environment) as forks:
        for line in lines(formats=newest):
            plain = calls(line) if command == DMCORE else None
            if plain:
                out, status, err = plainly(plain, forks, environment, folder)
            else:
                out, status, err = shell(line, environment)
            out = re.sub(r"^(Library version: .*) \(.*\)", r"\1", out)
            results.append((line, out, status, normal(err), state()))
    return results


@pytest.fixture
def loops(tmp_path):
    with Control() as control:
        assert control.list_devices() == []
        for target in ("zero", "crypt", "integrity"):
            control.target_version(target)
    made = []
    for name in ("a.img", "b.img"):
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, 8 << 20)
        made.append(LoopDevice.attach(tmp_path / name, direct_io=False))
    yield made
    for loop in made:
        loop.detach()


@pytest.mark.newest_kernel
@pytest.mark.dm(timeout=1200)
def test_one_script(loops, tmp_path):
    theirs = play("dmsetup", loops, tmp_path / "script")
    ours = play(DMCORE, loops, tmp_path / "script")
    assert len(theirs) > 100
    differences = []
    for (line, *their, before), (_, *our, after) in zip(theirs, ours, strict=True):
        rows = list(zip(("stdout", "status", "stderr"), their, our, strict=True))
        same = before.items() & after.items()
        rows.append(("state", sorted(before.items() - same), sorted(after.items() - same)))
        differences += [
            f"{line}\n  {what}\n    dmsetup {one!r}\n    dmcore  {other!r}"
            for what, one, other in rows
            if one != other
        ]
    assert not differences, f"{len(differences)} differences\n" + "\n".join(differences)


# What docs/reference/dmcore.md says of the differences.


def dmcore(*words, stdin="", **environment):
    environ = {key: value for key, value in os.environ.items() if key != "DM_DISABLE_UDEV"}
    return subprocess.run(
        [DMCORE, *words], input=stdin, capture_output=True, text=True, env={**environ, **environment}, timeout=60,
        check=False,
    )  # fmt: skip


def test_nodes_are_made_where_no_udevd_does_and_go_by_every_name(control, name):
    path = MAPPER / name
    assert dmcore("create", name, "-u", f"U-{name}", "--table", "0 8 zero").returncode == 0
    dev = control.info(name).dev
    assert path.stat().st_rdev == dev.rdev
    assert dmcore("remove", "-u", f"U-{name}").returncode == 0
    assert not path.exists()
    assert dmcore("create", name, "--table", "0 8 zero").returncode == 0
    dev = control.info(name).dev
    assert dmcore("remove", "-j", str(dev.major), "-m", str(dev.minor)).returncode == 0
    assert not path.exists()


def test_odd_names_do_not_stop_the_others(control, name):
    control.create(f"{name} odd")
    control.create(f"{name}-plain")
    shown = dmcore("ls")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert f"{name} odd\t" in shown.stdout
    assert f"{name}-plain\t" in shown.stdout


def test_a_device_on_itself_is_refused(control, name):
    assert dmcore("create", name, "--table", "0 8 zero").returncode == 0
    refused = dmcore("load", name, "--table", f"0 8 linear {MAPPER / name} 0")
    assert refused.returncode == 1
    assert "stand on itself" in refused.stderr
    assert not control.info(name).inactive


def test_a_message_to_nobody_fails(control, name):
    control.create(name)
    sent = dmcore("message", name, "0", "hello")
    assert sent.returncode == 1
    assert "Invalid argument" in sent.stderr


def test_a_number_that_cannot_be_makes_nothing(control, name):
    assert dmcore("create", name, "-j", "0", "-m", "9", "--table", "0 8 zero").returncode == 1
    assert not control.exists(name)


def test_the_kernels_reason_is_told(control, name):
    refused = dmcore("create", name, "--table", "0 8 linear /dev/nonexistent 0")
    lines = refused.stderr.splitlines()
    assert lines[0].startswith(f"device-mapper: reload ioctl on {name} (")
    assert lines[-1] == "Command failed."
    assert any(line.startswith("  kernel: ") and "Device lookup failed" in line for line in lines)
    assert not control.exists(name)


def test_verbose_needs_no_word(control, name):
    control.create(name)
    for option in ("--verbose", "--verbose=1", "-v"):
        assert dmcore(option, "info", name).stdout.startswith("Name: ")


def test_all_columns(control, name):
    control.create(name)
    shown = dmcore("info", "-c", "-o", "all", name)
    assert shown.returncode == 0 or "block device name" in shown.stderr
    control.load(name, [TableLine(0, 8, "zero")])
    shown = dmcore("info", "-c", "-o", "all", name)
    assert shown.stdout.split()[0] == "Name"
    assert len(shown.stdout.splitlines()) == 2


def test_keys_are_not_in_errors():
    shown = dmcore("create", "--concise", "x,,,0 8 crypt aes-xts-plain64 " + "ab" * 32)
    assert shown.returncode == 1
    assert "abab" not in shown.stderr + shown.stdout


def test_stats_of_files_are_refused(control, name):
    control.create(name)
    for words in (
        ("create", "--filemap", "/etc/passwd"),
        ("update_filemap", "/etc/passwd", "--groupid", "0"),
    ):
        shown = dmcore("stats", *words)
        assert shown.returncode == 1
        assert "is not implemented; use dmstats" in shown.stderr


@pytest.mark.newest_kernel
def test_by_the_name_dmstats_it_is_the_verb_stats(control, name, tmp_path):
    assert dmcore("create", name, "--table", "0 8 zero").returncode == 0
    ours = tmp_path / "dmstats"
    ours.symlink_to(DMCORE)
    assert subprocess.run([ours, "create", name], check=False, timeout=60).returncode == 0
    for words in (["list", name], ["list", "-o", "none"], ["print", name], ["nonsense"], ["create"]):
        said = [
            subprocess.run([one, *words], capture_output=True, text=True, timeout=60, check=False)
            for one in ("dmstats", ours)
        ]
        theirs, mine = ((one.returncode, one.stdout, one.stderr.splitlines()[:1]) for one in said)
        assert theirs == mine


def test_stats_of_many_areas_come_in_pieces(control, name):
    assert dmcore("create", name, "--table", "0 9000 zero").returncode == 0
    assert dmcore("stats", "create", "--areasize", "1", "--bounds", "1ms,2ms", name).returncode == 0
    shown = dmcore("stats", "print", "--regionid", "0", name).stdout.splitlines()
    assert [line.split()[0] for line in shown] == [f"{sector}+1" for sector in range(9000)]
    words = ("--region", "--noheadings", "--units", "s", "-o", "region_len,area_count", name)
    assert dmcore("stats", "report", *words).stdout == "9000:9000\n"


@pytest.mark.newest_kernel
def test_stats_are_repeated_with_the_time_between(control, name):
    assert dmcore("create", name, "--table", "0 8 zero").returncode == 0
    assert dmcore("stats", "create", name).returncode == 0
    words = ("stats", "report", name, "-o", "interval_ns", "--noheadings", "--count", "2", "--interval", "1")
    first, second = map(int, dmcore(*words).stdout.split())
    assert first == 10**9
    assert second > 9 * 10**8


@pytest.mark.newest_kernel
def test_stats_where_dmsetup_errs(control, name):
    assert dmcore("create", name, "--table", "0 100 zero").returncode == 0
    assert dmcore("stats", "create", "--precise", "--userdata", "word", name).returncode == 0
    shown = dmcore("stats", "list", name, "-o", "user_data,area_start", "--noheadings")
    assert shown.stdout == "word:0b\n"
    for option, value in (("--areasize", "8z"), ("--start", "-8"), ("--areas", "-1")):
        assert dmcore("stats", "create", f"{option}={value}", name).returncode == 1
    shown = dmcore("stats", "ungroup", "--groupid", "0", name)
    assert (shown.returncode, shown.stdout) == (1, "")
    shown = dmcore("stats", "create", "--segments", "--programid", "mine", name)
    assert "Grouped regions 1 as group ID 1" in shown.stdout
    assert dmcore("stats", "delete", "--allprograms", "--regionid", "1", name).returncode == 0
    assert dmcore("stats", "list", "--allprograms", name, "-o", "region_id", "--noheadings").stdout == "0\n"


def test_start_is_not_much_more_than_pythons():
    """In the same minute, the best of five: what we import costs less than four starts of Python with its own modules."""

    def best(*words):
        times = []
        for _ in range(5):
            start = time.perf_counter()
            subprocess.run(words, stdout=subprocess.DEVNULL, check=True, timeout=60)
            times.append(time.perf_counter() - start)
        return min(times)

    base = best(sys.executable, "-c", "import dataclasses, enum, pathlib, re, typing")
    assert best(DMCORE, "version") < 4 * base
