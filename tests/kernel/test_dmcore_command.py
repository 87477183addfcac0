"""`dmcore` next to `dmsetup`: one script, the same output, exit statuses and effects."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import shlex
import shutil
import stat
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from dmsetup_script import STEPS

from dmcore.kernel.control import Control
from dmcore.kernel.loop import LoopDevice

pytestmark = pytest.mark.dm

DMCORE = Path(sys.executable).with_name("dmcore")
CALL = r"""(?P<{0}>\$DM(?:[^;|<>&'"]|'[^'$]*'|"[^"\\(]*")*)(?P<{0}quiet> > /dev/null)?(?P<{0}silent> 2>(?: /dev/null|&1))?"""
PLAIN = re.compile(f"{CALL.format('first')}(?:; {CALL.format('second')})?(?:; {CALL.format('third')})?")
"""A line of one call to three, so that no shell is needed."""
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
    done = subprocess.run(["sh", "-c", line], capture_output=True, env=environment, timeout=60, check=False)
    return (
        done.stdout.decode("utf-8", "surrogateescape"),
        done.returncode,
        done.stderr.decode("utf-8", "replace"),
    )


def fork(line, environment, folder):
    """Run a plain call of dmcore in a fork of this process: most of the time of a call is Python's start."""
    streams = [(folder / name).open("w+b") for name in ("stdout", "stderr")]
    pid = os.fork()
    if not pid:
        status = 99
        try:
            for target, stream in zip((1, 2), streams, strict=True):
                os.dup2(stream.fileno(), target)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            sys.stdin, sys.stdout, sys.stderr = (os.fdopen(fd, mode) for fd, mode in enumerate("rww"))
            os.environ.clear()
            os.environ.update(environment)
            words = shlex.split(line)
            sys.argv = ["dmcore", *(os.path.expandvars(word) for word in words[1:])]
            from dmcore.cli import main

            status = main()
        except SystemExit as left:
            status = left.code
        except BaseException:  # noqa: BLE001 - nothing may leave the fork
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    _, waited = os.waitpid(pid, 0)
    texts = []
    for stream in streams:
        stream.seek(0)
        texts.append(stream.read())
        stream.close()
    return texts[0].decode("utf-8", "surrogateescape"), os.waitstatus_to_exitcode(waited), texts[1].decode()


def forks(plain, environment, folder):
    """Run a plain line."""
    out = err = ""
    status = 0
    for call in filter(plain.group, ("first", "second", "third")):
        said, status, complained = fork(plain[call].strip(), environment, folder)
        out += "" if plain[f"{call}quiet"] else said
        err += "" if plain[f"{call}silent"] else complained
    return out, status, err


def load_all():
    """Import all that dmcore can need, so that no fork has to."""
    import dmcore.cli._dmsetup as package
    import dmcore.kernel.below
    import dmcore.kernel.libc  # noqa: F401

    for found in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{found.name}")


def play(command, loops, folder):
    """Run the script with a command; return what each line gave."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for stale in set(nodes()) - {"control"}:
        (MAPPER / stale).unlink()
    environment = {
        **os.environ, "DM": str(command), "DM_DISABLE_UDEV": "1", "A": str(loops[0].path), "B": str(loops[1].path),
        "T": str(folder),
    }  # fmt: skip
    load_all()
    results = []
    for line in STEPS.splitlines():
        if not line:
            continue
        plain = PLAIN.fullmatch(line)
        if command == DMCORE and plain:
            out, status, err = forks(plain, environment, folder)
        else:
            out, status, err = shell(line, environment)
        results.append((line, out, status, normal(err), state()))
    return results


@pytest.fixture
def loops(tmp_path):
    with Control() as control:
        assert control.list_devices() == []
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
