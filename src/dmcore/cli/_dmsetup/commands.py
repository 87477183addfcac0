"""dmsetup's verbs: their help, how many arguments they take, and where each is. Source: lvm2, libdm/dm-tools/dmsetup.c."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from dmcore.cli._dmsetup.failed import Failed
from dmcore.cli._dmsetup.options import ENOUGH, Options, parse
from dmcore.errors import DmError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dmcore.cli._dmsetup.report import Report
    from dmcore.cli._dmsetup.session import Session

    Verb = Callable[[Session, Sequence[str]], None]

__all__ = ["VERBS", "Entry", "run", "usage"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A verb.

    Attributes:
        name: Its word.
        words: What stands behind it, for the help.
        about: What it does, for the help.
        place: Module and function that do it.
        least: Fewest arguments.
        most: Most arguments, None for any number.
        repeats: Whether it is done for each argument in turn.
        selects: Whether -S chooses the devices that it is done for.
    """

    name: str
    words: str
    about: str
    place: str
    least: int = 0
    most: int | None = 0
    repeats: bool = False
    selects: bool = False

    def load(self) -> Verb:
        """Return the function, importing its module."""
        module, _, function = self.place.partition(".")
        found: Verb = getattr(import_module(f"dmcore.cli._dmsetup.{module}"), function)
        return found


def _each(name: str, words: str, about: str, place: str, least: int = 0, *, selects: bool = True) -> Entry:
    return Entry(name, words, about, place, least, None, repeats=True, selects=selects)


VERBS = {
    verb.name: verb
    for verb in (
        Entry("create", "NAME [FILE]", "make a device with a table, and start it", "create.create", most=2),
        Entry("load", "DEVICE [FILE]", "stage a table; resume puts it to use", "create.load", most=2),
        Entry("reload", "DEVICE [FILE]", "the same as load", "create.load", most=2),
        _each("clear", "DEVICE...", "drop the staged table", "change.clear"),
        _each("suspend", "DEVICE...", "hold back I/O", "change.suspend"),
        _each("resume", "DEVICE...", "let I/O go on, with the staged table if there is one", "change.resume"),
        _each("wipe_table", "DEVICE...", "put a table in place that fails all I/O", "change.wipe_table"),
        _each("remove", "DEVICE...", "remove devices", "change.remove"),
        Entry("remove_all", "", "remove every device of the machine that nobody has open", "change.remove_all"),
        Entry("rename", "DEVICE NEW", "change the name; with --setuuid, set the uuid", "change.rename", 1, 2),
        _each("mangle", "[DEVICE...]", "rename to what --manglename spells", "change.mangle_names", selects=False),
        Entry("message", "DEVICE SECTOR WORD...", "say something to a target", "change.message", 2, None),
        Entry("setgeometry", "DEVICE CYL HEAD SECT START", "set the disk's geometry", "change.set_geometry", 5, 5),
        Entry("wait", "DEVICE [EVENT]", "wait for an event other than that number", "change.wait", most=2),
        Entry("ls", "", "list the devices", "show.ls"),
        _each("info", "[DEVICE...]", "show states; -c: in columns", "show.information", selects=False),
        _each("table", "[DEVICE...]", "show tables", "show.table"),
        _each("status", "[DEVICE...]", "show what targets report", "show.status"),
        _each("deps", "[DEVICE...]", "show the devices below", "show.deps"),
        _each("measure", "[DEVICE...]", "show what targets give to IMA", "show.measure"),
        Entry("targets", "", "list the targets that the kernel has loaded", "show.targets"),
        _each("target-version", "TARGET...", "load a target, show its version", "show.target_version", 1, selects=False),
        Entry("version", "", "show our version and that of the kernel's interface", "show.version"),
        Entry("splitname", "NAME [SUBSYSTEM]", "show the parts of an LVM device's name", "show.split_name", 1, 2),
        _each("mknodes", "[DEVICE...]", "put /dev/mapper in order", "change.mknodes", selects=False),
        Entry("udevcreatecookie", "", "begin a transaction with udev", "cookies.create"),
        Entry("udevreleasecookie", "[COOKIE]", "wait for its end", "cookies.release", most=1),
        Entry("udevflags", "COOKIE", "show what a cookie tells udev's rules", "cookies.flags", 1, 1),
        Entry("udevcomplete", "COOKIE", "count a cookie down", "cookies.complete", 1, 1),
        Entry("udevcomplete_all", "[MINUTES]", "remove all cookies, or the older ones", "cookies.complete_all", most=1),
        Entry("udevcookies", "", "list the cookies", "cookies.cookies"),
        Entry("stats", "COMMAND [DEVICE...]", "count I/O: see below", "stats.begin", 1, None, repeats=True),
        Entry("help", "", "show this; -c: and the columns for -o, -O and -S", "commands.help_"),
    )
}  # fmt: skip

_HEAD = """\
Usage: dmcore [OPTION...] VERB [ARGUMENT...]

Device-mapper from the command line, as dmsetup has it.
"""
_OPTIONS = """
DEVICE is a name, a path, or instead of it -u UUID, or -j MAJOR -m MINOR. A table comes from --table, else from FILE, else
from standard input: START LENGTH TARGET [PARAMETERS] in each line.

create:  --table TEXT | -n, --notable   -u, --uuid UUID   -j, --major, -m, --minor   -r, --readonly
         --readahead SECTORS|+SECTORS|auto|none   -U, --uid, -G, --gid, -M, --mode: of a node that udev does not make
         --addnodeoncreate | --addnodeonresume   --concise [NAME,UUID,MINOR,ro|rw,TABLE[,LINE...][;...]]
load:    --table TEXT   -r, --readonly
remove:  -f, --force: fail all I/O first   --retry: while it is busy   --deferred: at its last close
suspend, resume, wait:  --noflush   --nolockfs   --checks
status:  --noflush   --target TYPE   --inactive: of the staged table   --exec COMMAND
table:   --showkeys   --concise   --target TYPE   --inactive   --exec COMMAND
ls:      --target TYPE   --exec COMMAND   -o devno|devname|blkdevname (deps too)
         --tree   -o [no]device,blkdevname,active,open,rw,uuid,compact,inverted,notrunc,ascii,utf,vt100
stats:   create --areas N | --areasize SIZE   --start SECTOR --length SIZE | --segments [--alias NAME | --nogroup]
         --bounds TIME,...   --precise   --userdata WORD   --programid WORD   --alldevices
         delete, clear, print   --regionid N | --groupid N | --allregions   --allprograms   print --clear
         list, report   --area   --region   --group   --histogram   --units UNIT   --nosuffix   --notimesuffix
         report --raw --relative   group --regions N,N-N   ungroup --groupid N   (not: --filemap, update_filemap)
columns: -c, --columns   -o, --options [+]COLUMN,...   -O, --sort [-]COLUMN,...   -S, --select CONDITION
         --noheadings   --separator TEXT   --nameprefixes   --unquoted   --rows   --unbuffered   --count N   --interval S
names:   --manglename auto|hex|none: how odd bytes are spelled
udev:    --udevcookie COOKIE   --noudevrules   --noudevsync   --verifyudev
others:  -v, --verbose   -y, --yes   -h, --help   --version   --noopencount
"""


def usage(*, ours: bool = True) -> str:
    """Return the help: the verbs, their options, and with `ours` the commands that dmsetup does not have."""
    from dmcore.cli import command_names, summary  # noqa: PLC0415 - it imports us

    rows = [(f"{entry.name} {entry.words}".rstrip(), entry.about) for entry in VERBS.values()]
    verbs = "".join(f"  {left:<38} {right}\n" for left, right in rows)
    names = command_names() if ours else ()
    beyond = "".join(f"  {f'{name} --help':<38} {summary(name)}\n" for name in names)
    more = f"\nBeyond dmsetup:\n{beyond}" if beyond else ""
    return f"{_HEAD}\n{verbs}{more}{_OPTIONS}"


def help_(session: Session, _arguments: Sequence[str]) -> None:
    """help: on stderr, as dmsetup's."""
    sys.stderr.write(usage())
    if session.options.has("columns"):
        from dmcore.cli._dmsetup.report import column_help  # noqa: PLC0415 - few need it

        sys.stderr.write(column_help())


class _Usage(Exception):
    """The command line has no such verb, or not so many arguments: say why, and how it goes."""


def _verb(options: Options) -> tuple[Entry, tuple[str, ...]]:
    """Return the verb that is meant, and its arguments."""
    arguments = options.words[1:]
    if options.has("help"):
        return VERBS["help"], arguments
    if options.has("version"):
        return VERBS["version"], arguments
    if not options.words:
        raise _Usage
    verb = VERBS.get(options.words[0])
    if verb is None:
        raise _Usage("Unknown command.")
    if len(arguments) < verb.least or (verb.most is not None and len(arguments) > verb.most):
        raise _Usage("Incorrect number of arguments.")
    return verb, arguments


def _check_output(verb: Entry, options: Options) -> None:
    """Refuse what -o cannot say, before anything is done."""
    text = options.value("options")
    if options.has("tree"):
        from dmcore.cli._dmsetup import tree  # noqa: PLC0415 - few need it

        tree.parse(text or "")
    elif text is not None and not options.has("columns") and verb.name not in {"splitname", "stats"}:
        from dmcore.cli._dmsetup import show  # noqa: PLC0415 - most need it, but not all

        show.check_device_options(text)


def _reports(verb: Entry, options: Options) -> bool:
    if options.has("select") and verb.selects:
        return True
    if verb.name == "stats":
        return False
    return verb.name == "splitname" or (options.has("columns") and verb.name != "help")


def _selecting(session: Session, report: Report, verb: Entry) -> Verb:
    """Return a function that does the verb for the devices that -S selects."""
    from dmcore.cli._dmsetup.show import information  # noqa: PLC0415 - few need it

    function = verb.load()
    report.instead = lambda name: function(session, [name])
    return information


def _perform(session: Session, verb: Entry, function: Verb, arguments: Sequence[str]) -> None:
    """Do the verb: once, or for each argument in turn."""
    if not verb.repeats:
        function(session, arguments)
        return
    for turn in [[one] for one in arguments] or [[]]:
        function(session, turn)


def _turns(session: Session, verb: Entry, function: Verb, arguments: Sequence[str]) -> None:
    """Do the verb as often as --count and --interval say, its report after each turn."""
    left = session.options.count
    while left:
        session.turn += 1
        failure: Failed | None = None
        try:
            _perform(session, verb, function, arguments)
        except Failed as error:
            failure = error
        if session.concise_begun:
            sys.stdout.write("\n")
        if session.report is not None:
            session.report.output()
        if failure is not None:
            raise Failed(*failure.lines, "Command failed.")
        left -= 1 if left < ENOUGH else 0
        if left and session.report is not None:
            sys.stdout.write("\n")
            sys.stdout.flush()
            time.sleep(session.options.interval)


def _stats(session: Session, words: Sequence[str]) -> Verb:
    from dmcore.cli._dmsetup.stats import begin  # noqa: PLC0415 - few need it

    return begin(session, words)


def _start(options: Options) -> None:
    from dmcore.cli._dmsetup.session import Session  # noqa: PLC0415 - a wrong command line costs no more than it must

    verb, arguments = _verb(options)
    if verb.name == "help":
        verb.load()(Session(options), arguments)
        return
    try:
        _check_output(verb, options)
    except Failed as error:
        raise Failed(*error.lines, "Couldn't process command line.") from None
    session = Session(options)
    try:
        words, arguments = arguments, arguments[1:] if verb.name == "stats" else arguments
        no_device = not options.has("uuid") and not options.has("major")
        session.several = verb.repeats and len(arguments) != 1 and (bool(arguments) or no_device)
        function = _stats(session, words) if verb.name == "stats" else verb.load()
        if _reports(verb, options):
            from dmcore.cli._dmsetup.report import INFO, SPLITNAME, Report  # noqa: PLC0415 - few need it

            session.report = Report(session, SPLITNAME if verb.name == "splitname" else INFO)
            if options.has("select") and verb.selects:
                function = _selecting(session, session.report, verb)
        _turns(session, verb, function, arguments)
    finally:
        session.close()


def run(arguments: Sequence[str]) -> int:
    """Do what dmsetup would; return the exit status: 0 done, 1 not."""
    try:
        options = parse(list(arguments))
    except Failed as error:
        sys.stderr.write(f"{error}\nCouldn't process command line.\n")
        return 1
    try:
        _start(options)
    except _Usage as error:
        sys.stderr.write(f"{error}\n{usage()}" if str(error) else usage())
        return 1
    except Failed as error:
        sys.stderr.write(f"{error}\n" if error.lines else "")
        return 1
    except DmError as error:
        sys.stderr.write(f"dmcore: {error}\nCommand failed.\n")
        return 1
    return 0
