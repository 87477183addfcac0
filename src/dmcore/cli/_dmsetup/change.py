"""The verbs that change a device. Source: lvm2, dmsetup.c (_simple, _error_device, _do_rename, _message and others)."""

from __future__ import annotations

import re
import sys
import time
from typing import TYPE_CHECKING

from dmcore.abi.dm import NAME_MAX, UUID_MAX, DmFlag, TableLine, encode_text
from dmcore.abi.dm_records import pack_message, unpack_lines, unpack_reply
from dmcore.cli._dmsetup import info
from dmcore.cli._dmsetup.create import load_table
from dmcore.cli._dmsetup.failed import Failed
from dmcore.cli._dmsetup.mangling import mangle, unmangle
from dmcore.cli._dmsetup.options import number
from dmcore.cli._dmsetup.session import Reply, Where
from dmcore.cli._dmsetup.show import chosen
from dmcore.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dmcore.cli._dmsetup.session import Session

__all__ = [
    "clear",
    "mangle_names",
    "message",
    "mknodes",
    "remove",
    "remove_all",
    "rename",
    "resume",
    "set_geometry",
    "suspend",
    "wait",
    "wipe_table",
]

_REMOVE_TRIES = 25
_REMOVE_PAUSE = 0.2
_SECTOR = re.compile(r"\s*[+-]?[0-9]+", re.ASCII)
_U64 = 1 << 64


def _first(arguments: Sequence[str]) -> str | None:
    return arguments[0] if arguments else None


def _flags(session: Session) -> int:
    """Return the bits of --noflush and --nolockfs."""
    return session.flag("noflush", DmFlag.NOFLUSH) | session.flag("nolockfs", DmFlag.SKIP_LOCKFS)


def _done(session: Session, reply: Reply) -> None:
    if session.options.verbose:
        info.show(session, reply)


def _warn_of_suspended(session: Session, where: Where) -> None:
    """With --checks: say when a device below is suspended already, so that I/O would be caught between the two."""
    todo = list(session.control.deps(session.ask("info", where).info.dev))
    major = session.ask("info", where).info.dev.major
    while todo:
        dev = todo.pop()
        if dev.major != major:
            continue
        below = session.ask("info", Where(dev=dev))
        if below.exists and below.info.suspended:
            sys.stderr.write(
                f"Attempt to suspend device {where} that uses already-suspended device ({dev})\n"
            )
        elif below.exists:
            todo.extend(session.control.deps(dev))


def suspend(session: Session, arguments: Sequence[str]) -> None:
    """suspend: hold back I/O."""
    where = session.where(_first(arguments))
    if session.options.has("checks") and session.ask("info", where).exists:
        _warn_of_suspended(session, where)
    _done(session, session.ask("suspend", where, flags=DmFlag.SUSPEND | _flags(session)))


def _resume(session: Session, where: Where, flags: int) -> Reply:
    reply = session.ask_with_uevent(lambda cookie: session.ask("resume", where, flags=flags, event_nr=cookie))
    nodes = session.own_nodes
    if nodes and not session.options.has("addnodeoncreate"):
        nodes.add(reply.header.name, reply.info.dev)
    info.set_read_ahead(session, reply.info.dev)
    return reply


def resume(session: Session, arguments: Sequence[str]) -> None:
    """resume: let I/O go on, with the staged table if there is one."""
    _done(session, _resume(session, session.where(_first(arguments)), _flags(session)))


def clear(session: Session, arguments: Sequence[str]) -> None:
    """clear: drop the staged table."""
    _done(session, session.ask("clear", session.where(_first(arguments))))


def wait(session: Session, arguments: Sequence[str]) -> None:
    """wait: until the event number differs from the one given."""
    words = list(arguments)
    name = None
    if not session.options.has("uuid") and not session.options.has("major"):
        if not words:
            raise Failed("No device specified.")
        name = words.pop(0)
    event = number(words[-1]) % (1 << 32) if words else 0
    where = session.where(name)
    _done(session, session.ask("waitevent", where, flags=_flags(session), event_nr=event))


def wipe_table(session: Session, arguments: Sequence[str]) -> None:
    """wipe_table: put an error target in place of the live table."""
    name = _first(arguments)
    if not name:
        raise Failed("No device specified.")
    _wipe(session, session.where(name))


def _wipe(session: Session, where: Where) -> None:
    lines: list[TableLine] = []
    try:
        reply = session.ask("table", where)
        lines = unpack_lines(reply.header, reply.buffer)
    except Failed as error:
        sys.stderr.write(f"{error}\n")
    size = sum(line.length for line in lines)
    load_table(session, where, [TableLine(0, size, "error")], readonly=session.options.has("readonly"))
    flags = _flags(session)
    if session.options.has("force"):
        flags = DmFlag.NOFLUSH | DmFlag.SKIP_LOCKFS
    try:
        _resume(session, where, flags)
    except Failed:
        session.ask("clear", where)
        raise


def remove(session: Session, arguments: Sequence[str]) -> None:
    """remove: --force puts an error target in place first, --retry asks again while it is busy, --deferred marks it."""
    options = session.options
    where = session.where(_first(arguments))
    flags = 0
    if options.has("force") and arguments:
        if session.transaction:
            sys.stderr.write("WARNING: Use of cookie and --force is not compatible.\n")
        flags = DmFlag.NOFLUSH | DmFlag.SKIP_LOCKFS
        try:
            _wipe(session, where)
        except Failed as error:
            sys.stderr.write(f"{error}\n")
    flags |= _flags(session) | session.flag("deferred", DmFlag.DEFERRED_REMOVE)
    before = session.ask("info", where)
    _remove(session, where, flags, tries=_REMOVE_TRIES if options.has("retry") else 1)
    if session.own_nodes and before.exists:
        session.nodes.remove(before.header.name)


def _remove(session: Session, where: Where, flags: int, *, tries: int) -> None:
    for left in range(tries - 1, -1, -1):
        try:
            session.ask_with_uevent(lambda cookie: session.ask("remove", where, flags=flags, event_nr=cookie))
        except Failed as error:
            if not left or not error.lines[0].endswith("busy"):
                raise
            time.sleep(_REMOVE_PAUSE)
        else:
            return


def _devices(session: Session) -> int:
    return len(session.control.list_devices())


def remove_all(session: Session, _arguments: Sequence[str]) -> None:
    """remove_all: every device that nobody has open, whoever made it; --force puts error targets in the others first."""
    flags = session.flag("deferred", DmFlag.DEFERRED_REMOVE)
    session.ask("remove_all", flags=flags)
    mknodes(session, ())
    if not session.options.has("force") or not _devices(session):
        return
    for entry in session.control.list_devices():
        try:
            _wipe(session, Where(entry.name))
        except Failed as error:
            sys.stderr.write(f"{error}\n")
    session.ask("remove_all", flags=flags)
    mknodes(session, ())
    if left := _devices(session):
        sys.stderr.write(f"Unable to remove {left} device(s).\n")


def mknodes(session: Session, arguments: Sequence[str]) -> None:
    """mknodes: make the nodes that are missing, and remove those of devices that are gone."""
    names = [*map(session.named, arguments[:1])]
    if not arguments:
        names = [Where(name) for name in session.nodes.names()]
        names += [Where(entry.name) for entry in session.control.list_devices()]
    for where in names:
        reply = session.ask("mknodes", where)
        if reply.exists:
            session.nodes.add(reply.header.name, reply.info.dev)
        else:
            session.nodes.remove(where.name)


def rename(session: Session, arguments: Sequence[str]) -> None:
    """rename: another name, or with --setuuid the uuid of a device that has none."""
    where = session.where(arguments[0] if len(arguments) == 2 else None)
    _rename(session, where, arguments[-1], setuuid=session.options.has("setuuid"))


def _rename(session: Session, where: Where, new: str, *, setuuid: bool) -> None:
    if setuuid:
        if len(encode_text(new)) > UUID_MAX:
            raise Failed(f'Uuid "{new}" too long')
        word, flags = session.spell(new, "new UUID", UUID_MAX), DmFlag.UUID
    else:
        if "/" in new:
            raise Failed(f'Name "{new}" invalid. It contains "/".')
        if not new:
            raise Failed("Non empty new name is required.")
        if len(encode_text(new)) > NAME_MAX:
            raise Failed(f'Name "{new}" too long')
        word, flags = session.spell(new, "new name", NAME_MAX), 0
    payload = encode_text(word) + b"\0"
    session.ask_with_uevent(
        lambda cookie: session.ask("rename", where, flags=flags, payload=payload, event_nr=cookie)
    )
    if session.own_nodes and not setuuid and where.name:
        session.nodes.rename(where.name, word)


def message(session: Session, arguments: Sequence[str]) -> None:
    """message: send words to the target at a sector, print its reply."""
    words = list(arguments)
    by_name = not session.options.has("uuid") and not session.options.has("major")
    where = session.where(words.pop(0) if by_name else None)
    match = _SECTOR.fullmatch(words[0]) if words else None
    if match is None or abs(int(match[0])) >= _U64:
        raise Failed("Invalid sector.")
    text = " ".join(words[1:])
    if not text:
        sys.stderr.write("No message supplied.\n")
    try:
        payload = pack_message(int(match[0]) % _U64, text)
    except SpecError:
        raise Failed(f"device-mapper: message ioctl on {where} failed: Invalid argument") from None
    secret = text[:7].lower() == "key set"
    reply = session.ask("message", where, payload=payload, flags=DmFlag.SECURE_DATA if secret else 0)
    answer = "" if secret else unpack_reply(reply.header, reply.buffer)
    if reply.header.flags & DmFlag.DATA_OUT and not secret:
        sys.stdout.write(answer if answer.endswith("\n") or not answer else f"{answer}\n")


def set_geometry(session: Session, arguments: Sequence[str]) -> None:
    """setgeometry: what HDIO_GETGEO reports."""
    words = list(arguments)
    by_name = not session.options.has("uuid") and not session.options.has("major")
    where = session.where(words.pop(0) if by_name else None)
    payload = encode_text(" ".join(words[:4])) + b"\0"
    session.ask("setgeometry", where, payload=payload)


def mangle_names(session: Session, arguments: Sequence[str]) -> None:
    """mangle: rename devices whose names are not spelled as --manglename wants them."""
    wanted = session.options.mangling
    session.mangling = "none"
    chosen(session, arguments, lambda where: _mangle_name(session, where, wanted))


def _mangle_name(session: Session, where: Where, wanted: str) -> None:
    reply = session.ask("status", where)
    name, uuid = reply.header.name, reply.header.uuid
    if not reply.exists:
        raise Failed
    if wanted == "auto":
        for what, text, cure in (
            ("name", name, "Manual intervention required to rename the device."),
            ("UUID", uuid, "Manual intervention required to correct the device UUID."),
        ):
            if "\\x5cx" in text:
                raise Failed(f'The {what} "{text}" seems to be mangled more than once. {cure}')
    if wanted == "none":
        new, new_uuid = unmangle(name), unmangle(uuid)
    else:
        new, new_uuid = mangle(name, "name", wanted, NAME_MAX), mangle(uuid, "UUID", wanted, UUID_MAX)
    if uuid != new_uuid:
        raise Failed(
            f"{name}: {uuid}: UUID in incorrect form. ",
            "Unable to change device UUID. The device must be deactivated first.",
        )
    if name == new:
        both = "and UUID " if uuid else ""
        sys.stdout.write(f"{name}: {uuid or '[no UUID]'}: name {both}already in correct form\n")
        return
    sys.stdout.write(f"{name}: renaming to {new}\n")
    _rename(session, Where(name), new, setuuid=False)
