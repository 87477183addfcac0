"""The verbs that print. Source: lvm2, libdm/dm-tools/dmsetup.c (_status, _ls, _deps, _targets and others)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dmcore.abi.dm import DmFlag, Version
from dmcore.abi.dm_records import unpack_deps, unpack_lines, unpack_names, unpack_versions
from dmcore.cli._dmsetup import info, tables
from dmcore.cli._dmsetup.failed import Failed
from dmcore.cli._dmsetup.session import Where

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dmcore.abi.devt import DevT
    from dmcore.abi.dm import DeviceEntry, TableLine
    from dmcore.cli._dmsetup.session import Reply, Session

__all__ = [
    "block_name",
    "check_device_options",
    "chosen",
    "deps",
    "each",
    "entries",
    "information",
    "ls",
    "measure",
    "split_name",
    "status",
    "table",
    "target_version",
    "targets",
    "version",
]

LIBRARY = "1.02.185"
"""The version of libdevmapper whose behaviour this follows."""


def entries(session: Session) -> list[DeviceEntry]:
    """Return every device, in the kernel's order."""
    reply = session.ask("names", flags=DmFlag.UUID)
    return unpack_names(reply.header, reply.buffer)


def each(session: Session, show: Callable[[Where], None]) -> None:
    """Do something for every device; go on past failures, and fail at the end if there was one."""
    found = entries(session)
    if not found:
        sys.stdout.write("No devices found\n")
    failures: list[str] = []
    for entry in found:
        try:
            show(Where(entry.name))
        except Failed as error:
            failures.extend(error.lines)
    if failures:
        raise Failed(*failures)


def chosen(session: Session, arguments: Sequence[str], show: Callable[[Where], None]) -> None:
    """Show the device that is meant, or every one if none is."""
    if not arguments and not session.options.has("uuid") and not session.options.has("major"):
        each(session, show)
    else:
        show(session.where(arguments[0] if arguments else None))


def _execute(session: Session, name: str) -> None:
    """Run the words of --exec with the device's node behind them."""
    words = (session.options.value("exec") or "").split()
    if not words:
        raise Failed
    import subprocess  # noqa: PLC0415 - only for --exec

    try:
        sys.stdout.flush()
        subprocess.run([*words, str(session.nodes.path(name))], check=False)
    except OSError as error:
        sys.stderr.write(f"{words[0]}: {error.strerror}\n")


def _prepare_exec(session: Session, where: Where) -> None:
    reply = session.ask("mknodes", where)
    if reply.exists:
        session.nodes.add(reply.header.name, reply.info.dev)


def _wanted(session: Session, lines: Sequence[TableLine]) -> list[TableLine | None]:
    """Return the lines of --target's type; without it all, and None for a device without a table."""
    kind = session.options.value("target")
    if kind is None:
        return list(lines) or [None]
    return [line for line in lines if line.type == kind]


def _shown(session: Session, verb: str, line: TableLine | None) -> str:
    if line is None:
        return ""
    hide = verb == "table" and not session.options.has("showkeys")
    return f"{line.start} {line.length} {line.type} {tables.without_keys(line) if hide else line.params}"


class _Lines:
    """Prints the tables or status lines of one device or more."""

    def __init__(self, session: Session, verb: str, *, several: bool) -> None:
        self.session = session
        self.verb = verb
        self.several = several
        self.concise = verb == "table" and session.options.has("concise")

    def show(self, where: Where) -> None:
        options = self.session.options
        flags = self.session.flag("noflush", DmFlag.NOFLUSH)
        flags |= DmFlag.STATUS_TABLE if self.verb == "table" else 0
        flags |= DmFlag.IMA_MEASUREMENT if self.verb == "measure" else 0
        reply = info.existing(
            self.session.ask("table" if self.verb == "table" else "status", where, flags=flags)
        )
        lines = _wanted(self.session, unpack_lines(reply.header, reply.buffer))
        executes = bool(options.value("exec"))
        if lines and (not executes or options.verbose):
            if self.concise:
                self._concise(reply, lines)
            else:
                self._plain(reply, lines)
        if lines and self.several and options.verbose and (not self.concise or options.verbose > 1):
            sys.stdout.write("\n")
        if lines and executes:
            _prepare_exec(self.session, where if where.name else Where(reply.header.name))
            _execute(self.session, reply.header.name)

    def _plain(self, reply: Reply, lines: Sequence[TableLine | None]) -> None:
        verbose = self.session.options.verbose
        if verbose:
            info.show(self.session, reply)
        label = f"{self.session.shown(reply.header.name)}: " if self.several and not verbose else ""
        sys.stdout.write("".join(f"{label}{_shown(self.session, self.verb, line)}\n" for line in lines))

    def _concise(self, reply: Reply, lines: Sequence[TableLine | None]) -> None:
        begun, self.session.concise_begun = self.session.concise_begun, True
        name, uuid = map(self.session.shown, (reply.header.name, reply.header.uuid))
        fields = [tables.quoted(name), tables.quoted(uuid), str(reply.info.dev.minor)]
        fields.append("ro" if reply.info.readonly else "rw")
        for line in lines:
            if line is not None:
                head = f"{line.start} {line.length} {line.type} "
                fields.append(head + tables.quoted(_shown(self.session, "table", line)[len(head) :]))
        sys.stdout.write((";" if begun else "") + ",".join(fields))


def _lines(session: Session, verb: str, arguments: Sequence[str]) -> None:
    chosen(session, arguments, _Lines(session, verb, several=session.several).show)


def status(session: Session, arguments: Sequence[str]) -> None:
    """status: what each target reports."""
    _lines(session, "status", arguments)


def table(session: Session, arguments: Sequence[str]) -> None:
    """table: the tables, keys as zeros unless --showkeys; --concise as `create --concise` takes them."""
    _lines(session, "table", arguments)


def measure(session: Session, arguments: Sequence[str]) -> None:
    """measure: what targets would have measured by the kernel's integrity measurement architecture."""
    _lines(session, "measure", arguments)


def block_name(dev: DevT) -> str | None:
    """Return the kernel's name of a block device, such as "loop0"; None if there is none."""
    try:
        return Path(f"/sys/dev/block/{dev}").readlink().name
    except OSError:
        return None


def _map_name(dev: DevT) -> str | None:
    """Return a dm device's name, another's kernel name."""
    try:
        return Path(f"/sys/dev/block/{dev}/dm/name").read_text("utf-8", "surrogateescape").removesuffix("\n")
    except OSError:
        return block_name(dev)


def _device_word(session: Session, dev: DevT, separator: str) -> str:
    """Return a device as -o asks: "devno", "blkdevname" or "devname"; the last one counts."""
    kinds = [_kind(word) for word in (session.options.value("options") or "").split(",") if word]
    kind = kinds[-1] if kinds else "devno"
    name = block_name(dev) if kind == "blkdevname" else _map_name(dev) if kind == "devname" else None
    return name if name is not None else f"{dev.major}{separator}{dev.minor}"


def _kind(word: str) -> str:
    for kind in ("devno", "blkdevname", "devname"):
        if kind.startswith(word):
            return kind
    raise Failed(f"Option not recognised: {word}.")


def check_device_options(text: str) -> None:
    """Refuse what -o cannot say where it names no columns.

    Raises:
        Failed: Such a word.
    """
    words = text.split(",")
    for index, word in enumerate(words):
        try:
            _kind(word)
        except Failed:
            raise Failed(f"Option not recognised: {','.join(words[index:])}.") from None


def deps(session: Session, arguments: Sequence[str]) -> None:
    """deps: the devices below."""

    def show(where: Where) -> None:
        reply = session.ask("deps", where)
        below = unpack_deps(reply.header, reply.buffer)
        if session.options.verbose:
            info.show(session, reply)
        elif session.several:
            sys.stdout.write(f"{session.shown(reply.header.name)}: ")
        words = "".join(f" ({_device_word(session, dev, ', ')})" for dev in below)
        sys.stdout.write(f"{len(below)} dependencies\t:{words}\n")
        if session.several and session.options.verbose:
            sys.stdout.write("\n")

    chosen(session, arguments, show)


def ls(session: Session, _arguments: Sequence[str]) -> None:
    """ls: names and numbers; those with a target of --target; --tree draws what stands on what."""
    options = session.options
    if options.value("target") or options.value("exec"):
        each(session, lambda where: _list(session, where))
    elif options.has("tree"):
        from dmcore.cli._dmsetup import tree  # noqa: PLC0415 - only for --tree

        tree.draw(session)
    else:
        found = entries(session)
        lines = [f"{session.shown(one.name)}\t({_device_word(session, one.dev, ':')})\n" for one in found]
        sys.stdout.write("".join(lines) or "No devices found\n")


def _list(session: Session, where: Where) -> None:
    reply = info.existing(session.ask("status", where))
    if not _wanted(session, unpack_lines(reply.header, reply.buffer)):
        return
    if not session.options.value("exec") or session.options.verbose:
        dev = reply.info.dev
        sys.stdout.write(f"{session.shown(where.name)}\t({dev.major}, {dev.minor})\n")
    if session.options.value("exec"):
        _prepare_exec(session, where)
        _execute(session, where.name)


def information(session: Session, arguments: Sequence[str]) -> None:
    """info: the state of each device, long or in columns."""

    def show(where: Where) -> None:
        reply = session.ask("info", where)
        if session.report is None:
            info.show(session, reply)
        else:
            session.report.add(session, info.existing(reply))

    chosen(session, arguments, show)


def split_name(session: Session, arguments: Sequence[str]) -> None:
    """splitname: the parts of an LVM device's name."""
    from dmcore.cli._dmsetup.columns import SplitName  # noqa: PLC0415 - columns are only for those who print them

    assert session.report is not None, "splitname always reports"
    subsystem = arguments[1] if len(arguments) == 2 else "LVM"
    session.report.add(session, SplitName.of(subsystem, arguments[0]))


def _version_row(name: str, numbers: Version) -> str:
    return f"{name:<16} v{'.'.join(map(str, numbers))}\n"


def targets(session: Session, _arguments: Sequence[str]) -> None:
    """targets: those that the kernel has registered."""
    reply = session.ask("versions")
    found = unpack_versions(reply.header, reply.buffer)
    sys.stdout.write("".join(_version_row(name, numbers) for name, numbers in found.items()))


def target_version(session: Session, arguments: Sequence[str]) -> None:
    """target-version: of each, loading its module if need be."""
    reply = session.ask("target-version", Where(session.spell_name(arguments[0])))
    found = unpack_versions(reply.header, reply.buffer)
    sys.stdout.write("".join(_version_row(name, numbers) for name, numbers in found.items()))


def version(session: Session, _arguments: Sequence[str]) -> None:
    """version: of the library, and of the kernel's interface."""
    sys.stdout.write(f"Library version:   {LIBRARY} (dmcore)\n")
    numbers = session.ask("version").header.version
    sys.stdout.write(f"Driver version:    {'.'.join(map(str, numbers))}\n")
