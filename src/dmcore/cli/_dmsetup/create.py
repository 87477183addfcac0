"""create, load, reload. Source: lvm2, dmsetup.c (_create_one_device, _load), libdm-iface.c (_create_and_load_v4)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dmcore.abi.devt import DevT
from dmcore.abi.dm import UUID_MAX, DmFlag, TableLine
from dmcore.abi.dm_records import pack_lines
from dmcore.cli._dmsetup import info, tables
from dmcore.cli._dmsetup.failed import Failed
from dmcore.cli._dmsetup.options import number
from dmcore.cli._dmsetup.session import Reply, Session, Where
from dmcore.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["create", "load", "load_table"]


def load_table(session: Session, where: Where, lines: Sequence[TableLine], *, readonly: bool) -> Reply:
    """Stage a table; the request is wiped if it may hold a key.

    A table for a device that stands on itself is refused here: kernels up to 6.1 take it, and its first I/O brings them
    down.
    """
    flags = DmFlag.READONLY if readonly else 0
    secret = tables.holds_key(list(lines))
    payload, count = pack_lines(lines)
    try:
        return session.ask(
            "reload", where, flags=flags | (DmFlag.SECURE_DATA if secret else 0), payload=payload, count=count
        )
    finally:
        if secret:
            payload[:] = bytes(len(payload))


def _refuse_loop(session: Session, where: Where, lines: Sequence[TableLine]) -> None:
    from dmcore.kernel.below import devices_of, refuse_loop  # noqa: PLC0415 - only for tables on dm devices

    below = devices_of(lines)
    if not below:
        return
    dev = where.dev or session.ask("info", where).info.dev
    if not any(one.major == dev.major for one in below):
        return
    try:
        refuse_loop(session.control, lines, dev)
    except SpecError as error:
        raise Failed(
            f"device-mapper: reload ioctl on {where} failed: Invalid argument", f"  dmcore: {error}"
        ) from None


def load(session: Session, arguments: Sequence[str]) -> None:
    """load, reload: stage a table."""
    options = session.options
    if options.has("notable"):
        raise Failed("--notable only available when creating new device.")
    words = list(arguments)
    if not options.has("uuid") and not options.has("major"):
        if not words:
            raise Failed("Please specify device.")
        name = words.pop(0)
    else:
        name = None
        if len(words) > 1:
            raise Failed("Too many command line arguments.")
    where = session.where(name)
    lines = tables.read(options.value("table"), words[0] if words else None)
    _refuse_loop(session, where, lines)
    reply = load_table(session, where, lines, readonly=options.has("readonly"))
    if options.verbose:
        info.show(session, reply)


def create(session: Session, arguments: Sequence[str]) -> None:
    """create: make a device, load its table and resume it; all or nothing."""
    options = session.options
    if options.has("concise"):
        if len(arguments) > 1:
            raise Failed("dmsetup create --concise takes at most one argument")
        _create_concise(session, arguments[0] if arguments else None)
        return
    if not arguments:
        raise Failed("Please provide a name for the new device.")
    file = arguments[1] if len(arguments) > 1 else None
    uuid = options.value("uuid") or ""
    _check_name(arguments[0])
    lines = [] if options.has("notable") else tables.read(options.value("table"), file)
    _create(session, arguments[0], uuid, session.number(), lines, readonly=options.has("readonly"))


def _check_name(name: str) -> None:
    if "/" in name:
        raise Failed(f'Name "{name}" invalid. It contains "/".')


def _numbered(minor: int) -> DevT:
    """Return the number of a dm device with that minor; the kernel knows the major itself."""
    text = Path("/proc/devices").read_text(encoding="ascii").partition("Block devices:")[2]
    major = next((int(row.split()[0]) for row in text.splitlines() if row.endswith(" device-mapper")), 0)
    try:
        return DevT(major, minor)
    except SpecError as error:
        raise Failed(f"dmcore: {error}") from None


def _create_concise(session: Session, specification: str | None) -> None:
    if any(map(session.options.has, ("table", "minor", "uuid", "notable", "inactive"))):
        raise Failed("--concise is incompatible with --[no]table, --minor, --uuid and --inactive.")
    text = sys.stdin.read().partition("\0")[0] if specification is None else specification
    for entry in tables.concise_entries(text):
        _check_name(entry.name)
        dev = _numbered(number(entry.minor)) if entry.minor else None
        readonly = entry.flags == "ro" or session.options.has("readonly")
        _create(session, entry.name, entry.uuid, dev, tables.parse(entry.table), readonly=readonly)


def _create(
    session: Session,
    name: str,
    uuid: str,
    dev: DevT | None,
    lines: Sequence[TableLine],
    *,
    readonly: bool,
) -> None:
    spelled = session.spell_name(name)
    where = Where(spelled, session.spell(uuid, "UUID", UUID_MAX) if uuid else "", dev)
    reply = session.ask("create", where)
    nodes = session.own_nodes
    if nodes and session.options.has("addnodeoncreate"):
        nodes.add(spelled, reply.info.dev)
    if lines:
        try:
            reply = _start(session, spelled, reply.info.dev, lines, readonly=readonly)
        except BaseException:
            _revert(session, spelled)
            raise
        if nodes and not session.options.has("addnodeoncreate"):
            nodes.add(spelled, reply.info.dev)
        info.set_read_ahead(session, reply.info.dev)
    if session.options.verbose:
        info.show(session, reply)


def _start(session: Session, name: str, dev: DevT, lines: Sequence[TableLine], *, readonly: bool) -> Reply:
    loading = Where(name, dev=dev)
    _refuse_loop(session, loading, lines)
    load_table(session, loading, lines, readonly=readonly)
    return session.ask_with_uevent(lambda cookie: session.ask("resume", Where(name), event_nr=cookie))


def _revert(session: Session, name: str) -> None:
    """Remove the device that a failure left half made."""
    try:
        session.ask_with_uevent(lambda cookie: session.ask("remove", Where(name), event_nr=cookie))
        if session.own_nodes:
            session.nodes.remove(name)
    except Failed as error:
        sys.stderr.write("".join(f"{line}\n" for line in (*error.lines, "Failed to revert device creation.")))
