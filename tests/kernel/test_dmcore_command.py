"""`dmcore` next to `dmsetup`: one script, the same output, exit statuses and effects."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from dmcore_forks import Forks
from dmsetup_script import FILES, KEYS, STEPS

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
    with Forks(environment) as forks:
        for line in filter(None, STEPS.splitlines()):
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
