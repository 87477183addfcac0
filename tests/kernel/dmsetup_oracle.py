"""Hold what dmcore says of a device against what dmsetup says of it: table, status, info, deps."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from dmcore.abi.devt import DevT
from dmcore.kernel import udev

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dmcore.abi.dm import TableLine
    from dmcore.kernel.control import Control, Selector

_BETWEEN = "\x1f"
_TRIES = 8
_INFO = ("name", "uuid", "major", "minor", "open", "segments", "events", "attr")


def dmsetup(*words: str) -> str:
    """Return what `dmsetup WORDS` prints."""
    command = ["dmsetup", words[0], "--manglename", "none", *words[1:]]
    env = dict(os.environ) if udev.running() else {**os.environ, "DM_DISABLE_UDEV": "1"}
    done = subprocess.run(command, check=False, capture_output=True, timeout=30, env=env)
    assert done.returncode == 0, f"{command}: {done.stderr.decode(errors='replace')}"
    return done.stdout.decode("utf-8", "surrogateescape")


def _where(dev: DevT) -> tuple[str, ...]:
    return "-j", str(dev.major), "-m", str(dev.minor)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines() if line]


def _texts(lines: Iterable[TableLine]) -> list[str]:
    """Return lines with their keys, which `str` of a line does not show."""
    return [f"{line.start} {line.length} {line.type} {line.params}".rstrip() for line in lines]


def ours(control: Control, selector: Selector) -> dict[str, object]:
    """Return dmcore's view."""
    info = control.info(selector)
    attributes = (
        "L" if info.live else "-",
        "I" if info.inactive else "-",
        "s" if info.suspended else "-",
        "r" if info.readonly else "w",
    )
    return {
        "info": (
            info.name, info.uuid, str(info.dev.major), str(info.dev.minor), str(info.open_count),
            str(info.target_count), str(info.event_nr), "".join(attributes),
        ),
        "table": _texts(control.table(selector)),
        "inactive table": _texts(control.table(selector, inactive=True)),
        "status": _texts(control.status(selector, noflush=True)),
        "deps": list(control.deps(selector)),
    }  # fmt: skip


def theirs(dev: DevT) -> dict[str, object]:
    """Return dmsetup's view."""
    where = _where(dev)
    info = dmsetup(
        "info",
        "-c",
        "--noheadings",
        "--separator",
        _BETWEEN,
        "--manglename",
        "none",
        "-o",
        ",".join(_INFO),
        *where,
    )
    told = tuple(info.rstrip("\n").split(_BETWEEN))
    deps = dmsetup("deps", "-o", "devno", *where).partition(":")[2]
    return {
        "info": told,
        "table": _lines(dmsetup("table", "--showkeys", *where)),
        "inactive table": _lines(dmsetup("table", "--showkeys", "--inactive", *where))
        if "I" in told[-1]
        else [],
        "status": _lines(dmsetup("status", "--noflush", *where)),
        "deps": [
            DevT(*map(int, pair.split(",")))
            for pair in deps.replace("(", " ").replace(")", " ").replace(", ", ",").split()
        ],
    }


def assert_agrees(control: Control, selector: Selector) -> None:
    """Fail where dmcore and dmsetup differ about a device.

    One that changes meanwhile (an event, a step of a resync) is asked again; of one that never holds still, such as a raid
    whose reshape starts over and over, only what is told of its tables is compared.
    """
    for _ in range(_TRIES):
        mine = ours(control, selector)
        other = theirs(control.info(selector).dev)
        if ours(control, selector) == mine:
            compared = list(mine)
            break
    else:
        compared = ["table", "inactive table", "deps"]
    differ = [
        f"{key}: dmcore {mine[key]}, dmsetup {other[key]}" for key in compared if mine[key] != other[key]
    ]
    assert not differ, "\n".join(differ)
