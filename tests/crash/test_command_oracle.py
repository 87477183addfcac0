"""Oracles that are commands: what they say, what they are told, and what they leave."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from dmcore.crash.checkers import CrashState, OracleFailed, Problem
from dmcore.crash.oracles import CallableOracle, CommandOracle
from dmcore.errors import SpecError


def command(text, tmp_path, *, timeout=10, acknowledged=(), started=()):
    path = tmp_path / "image file"
    path.write_bytes(b"")
    state = CrashState(
        id="e0:0", image=path, acknowledged=acknowledged, started=started,
        fingerprint=lambda _masked, _over: 0, settled=lambda: None, untouched=lambda: None,
    )  # fmt: skip
    return CommandOracle(text, timeout=timeout)(state)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("true", None),
        ("test -e {image}", None),
        ("echo 'Integrity: bad page' && exit 1", Problem("integrity", "Integrity: bad page")),
        (
            "sh -c 'echo ; echo durability lost; echo no >&2; exit 1'",
            Problem("durability", "durability lost"),
        ),
        ("sh -c 'echo only here >&2; exit 1'", Problem("only", "only here")),
        ("false", Problem("oracle", "the oracle said no, and not why")),
        ("python3 -c 'assert 0, \"durability: x\"'", Problem("durability", "durability: x")),
        ("python3 -c 'raise OSError(5, \"gone\")'", Problem("oserror", "OSError: [Errno 5] gone")),
        ('sh -c \'test "$DM_ACKNOWLEDGED|$DM_STARTED|$DM_STATE" = "a,b c|d|e0:0"\'', None),
        ('sh -c \'test "$1|$2" = "a,b c|d"\' - {acknowledged} {started}', None),
        ("grep -qx 'b c' {acknowledged_file}", None),
        ("sleep 60", Problem("timeout", "the oracle took longer than 0.5 s")),
        ("sleep 60 & wait", Problem("timeout", "the oracle took longer than 0.5 s")),
        ("exec >/dev/null 2>&1; sleep 60", Problem("timeout", "the oracle took longer than 0.5 s")),
        ("yes 'no: again'", Problem("timeout", "the oracle took longer than 0.5 s")),
        ("yes 'no: again' | head -n 200000; exit 1", Problem("no", "no: again")),
        ("true </dev/zero", None),
        ("exec 0<&-; true", None),
    ],
)
def test_commands(tmp_path, text, problem):
    timeout = 0.5 if problem and problem.kind == "timeout" else 30
    assert command(text, tmp_path, acknowledged=("a", "b c"), started=("d",), timeout=timeout) == problem
    assert [path.name for path in tmp_path.iterdir()] == ["image file"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("sh -c 'echo x; exit 2'", "exit status 2: x"),
        ("exec sh -c 'kill -9 $$'", "signal 9"),
    ],
)
def test_commands_that_fail(tmp_path, text, reason):
    with pytest.raises(OracleFailed) as caught:
        command(text, tmp_path)
    assert caught.value.reason == reason


@pytest.mark.parametrize(("status", "said"), [(0, None), (1, Problem("left", "left: it runs on"))])
def test_what_an_oracle_leaves_running_ends_with_it(tmp_path, status, said):
    """It holds the output open, and is no reason to wait."""
    began = time.monotonic()
    text = f"echo left: it runs on; sleep 60 & echo $! >{{image}}.pid; exit {status}"
    assert command(text, tmp_path, timeout=50) == said
    assert time.monotonic() - began < 20
    pid = int((tmp_path / "image file.pid").read_text())
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_long_list_of_marks_goes_by_file(tmp_path):
    names = tuple(f"operation-{number}" for number in range(20_000))
    check = "python3 -c \"import sys; a = sys.argv[1]; assert a[0] == '@'; assert len(open(a[1:]).read().split()) == 20000\""
    assert command(f"{check} {{acknowledged}}", tmp_path, acknowledged=names, timeout=30) is None
    assert [path.name for path in tmp_path.iterdir()] == ["image file"]


@pytest.mark.parametrize("text", ["", "   ", "'unclosed", "/nowhere/oracle {image}", "exit 1"])
def test_commands_that_are_none(text):
    with pytest.raises(SpecError, match="oracle="):
        CommandOracle(text)


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_no_time(timeout):
    for make in (
        lambda: CommandOracle("true", timeout=timeout),
        lambda: CallableOracle(print, timeout=timeout),
    ):
        with pytest.raises(SpecError, match="oracle_timeout="):
            make()
