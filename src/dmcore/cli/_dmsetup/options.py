"""dmsetup's command line: every option may stand anywhere, before or behind the verb."""

from __future__ import annotations

import getopt
import os
import re
from dataclasses import dataclass

from dmcore.cli._dmsetup.failed import Failed

__all__ = ["ENOUGH", "Options", "number", "parse"]

ENOUGH = 1 << 63
"""How many times a report without an end repeats."""

_SHORT = "cCfG:hj:m:M:no:O:rS:u:U:vy"
_NAMES = {
    "c": "columns", "C": "columns", "f": "force", "G": "gid", "h": "help", "j": "major", "m": "minor", "M": "mode",
    "n": "notable", "o": "options", "O": "sort", "r": "readonly", "S": "select", "u": "uuid", "U": "uid", "v": "verbose",
    "y": "yes",
}  # fmt: skip
_LONG = (
    "readonly", "alias=", "alldevices", "allprograms", "allregions", "area", "areas=", "areasize=", "bounds=", "checks",
    "clear", "columns", "concise", "count=", "deferred", "select=", "exec=", "filemap", "follow=", "force", "foreground",
    "gid=", "group", "groupid=", "help", "histogram", "inactive", "interval=", "length=", "manglename=", "major=",
    "minor=", "mode=", "nameprefixes", "nogroup", "noflush", "noheadings", "nolockfs", "noopencount", "nosuffix",
    "notable", "notimesuffix", "udevcookie=", "nomonitor", "noudevrules", "noudevsync", "options=", "precise",
    "programid=", "raw", "readahead=", "region", "regions=", "regionid=", "relative", "retry", "rows", "segments",
    "separator=", "setuuid", "showkeys", "sort=", "start=", "table=", "target=", "tree", "uid=", "units=", "uuid=",
    "unbuffered", "unquoted", "userdata=", "verbose", "verifyudev", "version", "yes", "addnodeonresume",
    "addnodeoncreate",
)  # fmt: skip
_INTEGER = re.compile(r"\s*[+-]?[0-9]+", re.ASCII)
_OCTAL = re.compile(r"\s*\+?0*[0-7]{1,10}", re.ASCII)
_MANGLING = ("none", "auto", "hex")
_NOT_BOTH = (("major", "minor"), ("minor", "major"))


def number(text: str) -> int:
    """Return the number that `text` begins with, 0 if with none: what atoi(3) makes of it."""
    match = _INTEGER.match(text)
    return int(match[0]) if match else 0


@dataclass(frozen=True, slots=True)
class Options:
    """What the options say, spelled as dmsetup spells them.

    Attributes:
        words: Everything that is no option: verb and arguments.
        given: How many times each option stands there.
        values: What stood with those that take a value; the last one counts.
        major: Of a device number, None without.
        minor: Of a device number, None without.
        uid: Owner of nodes that we make.
        gid: Group of nodes that we make.
        mode: Permissions of nodes that we make.
        count: How many times a report is made.
        interval: Seconds between reports.
        readahead: Sectors to set, -1 to leave it to the kernel ("auto").
        readahead_minimum: Only raise it, never lower it.
        mangling: How odd bytes in names and uuids are spelled: "auto", "hex" or "none".
        cookie: Number of a running udev transaction, 0 without.
    """

    words: tuple[str, ...]
    given: dict[str, int]
    values: dict[str, str]
    major: int | None
    minor: int | None
    uid: int
    gid: int
    mode: int
    count: int
    interval: int
    readahead: int
    readahead_minimum: bool
    mangling: str
    cookie: int

    def has(self, name: str) -> bool:
        """Whether the option stands there."""
        return name in self.given

    def value(self, name: str) -> str | None:
        """Return what stood with the option; None without it."""
        return self.values.get(name)

    @property
    def verbose(self) -> int:
        """How many times -v stands there."""
        return self.given.get("verbose", 0)


def _mode(text: str) -> int:
    match = _OCTAL.fullmatch(text)
    value = int(match[0], 8) if match else 0
    if not value:
        raise Failed(f"Invalid argument for --mode: {text}. ")
    return value


def _count(values: dict[str, str]) -> tuple[int, int]:
    """Return how often a report is made, and the seconds between."""
    interval = number(values.get("interval", "1"))
    if interval <= 0:
        raise Failed("Interval must be a positive integer.")
    count = number(values.get("count", "0"))
    if count < 0:
        raise Failed("Count must be zero or greater.")
    return count or (ENOUGH if values.keys() & {"count", "interval"} else 1), interval


def _readahead(text: str) -> tuple[int, bool]:
    if text.lower() in {"auto", "none"}:
        return (-1 if text.lower() == "auto" else 0), False
    value = number(text)
    if value < -1:
        raise Failed(f"Negative read ahead value ({value}) is not understood.")
    return value, text.lstrip().startswith("+")


def _mangling(values: dict[str, str]) -> str:
    """Return the mode of names, from the option, else from the environment."""
    if "manglename" in values:
        mode = values["manglename"].lower()
        if mode not in _MANGLING:
            raise Failed("Unknown name mangling mode.")
        return mode
    mode = os.environ.get("DM_DEFAULT_NAME_MANGLING_MODE", "").lower()
    return mode if mode in _MANGLING else "auto"


def cookie(text: str) -> int:
    """Return the number of a udev cookie, in any base that C knows."""
    try:
        value = int(re.sub(r"^(\s*)0+(?=[0-9])", r"\g<1>0o", text), 0)
    except ValueError:
        value = 0
    if not 0 < value < 1 << 32:
        raise Failed("Incorrect cookie value.")
    return value


def _check(given: dict[str, int]) -> None:
    if any(one in given and other not in given for one, other in _NOT_BOTH):
        raise Failed("Please specify both major number and minor number.")
    if "table" in given and "notable" in given:
        raise Failed("--table and --notable are incompatible.")
    if "addnodeonresume" in given and "addnodeoncreate" in given:
        raise Failed("--addnodeonresume and --addnodeoncreate are incompatible.")


def _wrong(error: getopt.GetoptError) -> str:
    """Return the error in the C library's words."""
    short = len(error.opt) == 1
    if "requires" in error.msg:
        return (
            f"option requires an argument -- '{error.opt}'"
            if short
            else f"option '--{error.opt}' requires an argument"
        )
    if "not recognized" in error.msg:
        return f"invalid option -- '{error.opt}'" if short else f"unrecognized option '--{error.opt}'"
    if "must not have" in error.msg:
        return f"option '--{error.opt}' doesn't allow an argument"
    return f"option '--{error.opt}' is ambiguous"


def _split(arguments: list[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Return options by their long names, and the other words."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    plain = ["--verbose" if word.startswith("--verbose=") else word for word in arguments[:end]]
    try:
        pairs, words = getopt.gnu_getopt([*plain, *arguments[end:]], _SHORT, list(_LONG))
    except getopt.GetoptError as error:
        raise Failed(f"dmcore: {_wrong(error)}") from None
    return [(name[2:] if name.startswith("--") else _NAMES[name[1:]], value) for name, value in pairs], words


def parse(arguments: list[str]) -> Options:
    """Return what a command line says.

    Raises:
        Failed: An option that there is not, a value it cannot have, or two that exclude each other.
    """
    pairs, words = _split(arguments)
    given: dict[str, int] = {}
    values: dict[str, str] = {}
    for name, value in pairs:
        given[name] = given.get(name, 0) + 1
        if f"{name}=" in _LONG:
            values[name] = value
    count, interval = _count(values)
    readahead, minimum = _readahead(values.get("readahead", "auto"))
    options = Options(
        words=tuple(words),
        given=given,
        values=values,
        major=number(values["major"]) if "major" in values else None,
        minor=number(values["minor"]) if "minor" in values else None,
        uid=number(values.get("uid", "0")),
        gid=number(values.get("gid", "0")),
        mode=_mode(values["mode"]) if "mode" in values else 0o600,
        count=count,
        interval=interval,
        readahead=readahead,
        readahead_minimum=minimum,
        mangling=_mangling(values),
        cookie=cookie(values["udevcookie"]) if "udevcookie" in values else 0,
    )
    _check(given)
    return options
