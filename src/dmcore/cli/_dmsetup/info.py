"""What a device's header says, in long form; read-ahead. Source: lvm2, dmsetup.c (_display_info_long)."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dmcore.cli._dmsetup.failed import Failed

if TYPE_CHECKING:
    from dmcore.abi.devt import DevT
    from dmcore.cli._dmsetup.session import Reply, Session

__all__ = ["existing", "read_ahead", "set_read_ahead", "show"]


def _ahead_file(dev: DevT) -> Path:
    return Path(f"/sys/dev/block/{dev}/bdi/read_ahead_kb")


def read_ahead(session: Session, reply: Reply) -> int | None:
    """Return the device's read-ahead in sectors, None where nothing tells: a device has none before its first table."""
    try:
        return 2 * int(_ahead_file(reply.info.dev).read_text(encoding="ascii"))
    except OSError:
        node = session.nodes.path(reply.header.name)
        try:
            os.close(os.open(node, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            sys.stderr.write(f"{node}: open failed: {error.strerror}\n")
        return None


def set_read_ahead(session: Session, dev: DevT) -> None:
    """Set the read-ahead that --readahead asks for; sysfs counts in KiB, so an odd number of sectors is rounded up."""
    wanted = session.options.readahead
    if wanted < 0:
        return
    file = _ahead_file(dev)
    try:
        if session.options.readahead_minimum and 2 * int(file.read_text(encoding="ascii")) >= wanted:
            return
        file.write_text(str((wanted + 1) // 2), encoding="ascii")
    except OSError as error:
        raise Failed(f"{file}: write failed: {error.strerror}") from None


def existing(reply: Reply) -> Reply:
    """Return the reply if there is such a device.

    Raises:
        Failed: There is none.
    """
    if not reply.exists:
        raise Failed("Device does not exist.")
    return reply


def show(session: Session, reply: Reply) -> None:
    """Print the long form."""
    info = existing(reply).info
    state = "SUSPENDED" if info.suspended else "ACTIVE"
    state += " (READ-ONLY)" if info.readonly else ""
    state += " (DEFERRED REMOVE)" if info.deferred_remove else ""
    tables = " & ".join(name for name, there in (("LIVE", info.live), ("INACTIVE", info.inactive)) if there)
    ahead = read_ahead(session, reply)
    rows = [
        ("Name:", session.shown(info.name)),
        ("State:", state),
        *([("Read Ahead:", ahead)] if ahead is not None else ()),
        ("Tables present:", tables or "None"),
        ("Open count:", info.open_count),
        ("Event number:", info.event_nr),
        ("Major, minor:", f"{info.dev.major}, {info.dev.minor}"),
        ("Number of targets:", info.target_count),
    ]
    lines = [f"{label:<18} {value}\n" for label, value in rows]
    if info.uuid:
        lines.append(f"UUID: {session.shown(info.uuid)}\n")
    sys.stdout.write("".join([*lines, "\n"]))
