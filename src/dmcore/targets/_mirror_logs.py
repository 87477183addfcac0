"""The logs of a mirror: which regions are in sync, and where that is written down.

Sources: drivers/md/dm-log.c (create_log_context, disk_ctr, disk_resume, disk_status), dm-log-userspace-base.c (userspace_ctr,
userspace_status).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from dmcore import validate
from dmcore.errors import SpecError
from dmcore.params import quote
from dmcore.ref import Ref

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dmcore.params import Tokens
    from dmcore.target import Lookup, Resolve

__all__ = [
    "CoreLog",
    "DiskLog",
    "LogState",
    "LogStatus",
    "Sync",
    "UserspaceLog",
    "check_log",
    "decode_log",
    "exact",
    "log_words",
    "parse_log_status",
]

_MOST_UUID = 128
_MOST_REGION = 2**31


class Sync(StrEnum):
    """What to believe about the legs at first; the values are the kernel's words."""

    SYNC = "sync"
    """They differ: copy leg 0 to the others, whatever a log on a disk says."""

    NOSYNC = "nosync"
    """They are equal: copy nothing."""


class LogState(StrEnum):
    """How the log's device does; the values are the kernel's words."""

    ALIVE = "A"
    FLUSH_FAILED = "F"
    FAILED = "D"
    """Writing to it failed."""

    UNREACHABLE = "COM_FAILURE"
    """The daemon of a userspace log does not answer."""


def _check_region(region: object) -> None:
    validate.integer("region", region, 2, _MOST_REGION, "sectors")
    assert isinstance(region, int)
    if region & (region - 1):
        raise SpecError("region", region, "must be a power of two")


def _check_sync(sync: object) -> None:
    if sync is not None:
        validate.instance("sync", sync, Sync, "Sync.NOSYNC")


@dataclass(frozen=True, slots=True)
class CoreLog:
    """A log in memory: every table begins with copying leg 0 to the others, unless it says NOSYNC.

    Attributes:
        region: Sectors that are copied at once and that the log knows as in sync or not: a power of two, from 2 up to the
            line's length.
        sync: SYNC and None mean the same here.

    Raises:
        SpecError: A value the kernel's constructor would refuse (EINVAL).
    """

    region: int
    sync: Sync | None = None

    def __post_init__(self) -> None:
        _check_region(self.region)
        _check_sync(self.sync)


@dataclass(frozen=True, slots=True)
class DiskLog:
    """A log on a device of its own: a new table copies only what was not in sync when the last one ended.

    Attributes:
        dev: The log's device, at least 1 KiB and a bit per region. Something else than a log on it (of that many regions)
            makes a new log, which has nothing in sync.
        region: As of a `CoreLog`.
        sync: None to believe the log; SYNC and NOSYNC to make a new one.

    Raises:
        SpecError: A value the kernel's constructor would refuse (EINVAL).
    """

    dev: Ref
    region: int
    sync: Sync | None = None

    def __post_init__(self) -> None:
        validate.ref("dev", self.dev)
        _check_region(self.region)
        _check_sync(self.sync)


@dataclass(frozen=True, slots=True)
class UserspaceLog:
    """A log that a daemon keeps (lvm2's cmirrord, for clusters): the kernel asks it over netlink.

    The load is refused (EINVAL) if no daemon answers; while one is silent later, I/O waits. What stands behind the uuid is
    for the daemon, the kernel does not look at it.

    Attributes:
        uuid: The log's name, 1..128 bytes without white space and backslash.
        log: What the daemon shall keep: "clustered-core" or "clustered-disk".
        integrated_flush: Flush requests carry the regions to mark: fewer requests.

    Raises:
        SpecError: Not such a uuid, or no log.
    """

    uuid: str
    log: CoreLog | DiskLog
    integrated_flush: bool = False

    def __post_init__(self) -> None:
        validate.instance("uuid", self.uuid, str, "'LVM-0123456789'")
        if not 1 <= len(self.uuid.encode("utf-8", "surrogateescape")) <= _MOST_UUID:
            raise SpecError("uuid", self.uuid, f"must have 1..{_MOST_UUID} bytes")
        if "\0" in self.uuid or quote(self.uuid) != self.uuid:
            raise SpecError("uuid", self.uuid, "white space, backslash and NUL cannot stand in a table word")
        check_log("log", self.log, CoreLog, DiskLog)
        validate.boolean("integrated_flush", self.integrated_flush)

    @property
    def region(self) -> int:
        """Sectors of a region, as the daemon is told."""
        return self.log.region

    @property
    def dev(self) -> Ref | None:
        """The log's device, if it has one."""
        return self.log.dev if isinstance(self.log, DiskLog) else None


def check_log(field: str, value: object, *kinds: type) -> None:
    """Refuse what is none of the logs."""
    if not isinstance(value, kinds):
        names = ", ".join(kind.__name__ for kind in kinds)
        raise SpecError(field, value, f"must be one of {names}")


@dataclass(frozen=True, slots=True)
class LogStatus:
    """The log in the status.

    Attributes:
        kind: "core", "disk", or what the daemon calls its log ("clustered-disk"); "userspace" if it does not answer.
        dev: Its device, as "major:minor"; None if it has none.
        state: How the device, or the daemon, does; None for a log in memory.
    """

    kind: str
    dev: Ref | None = None
    state: LogState | None = None


def log_words(log: CoreLog | DiskLog | UserspaceLog, resolve: Resolve) -> Iterator[str]:
    """Yield the log's type and its words, without their number."""
    if isinstance(log, UserspaceLog):
        yield from ("userspace", log.uuid)
        if log.integrated_flush:
            yield "integrated_flush"
        kind, *words = log_words(log.log, resolve)
        yield from (f"clustered-{kind}", *words)
        return
    if isinstance(log, DiskLog):
        yield from ("disk", resolve(log.dev))
    else:
        yield "core"
    yield str(log.region)
    if log.sync:
        yield log.sync.value


def decode_log(tokens: Tokens, lookup: Lookup) -> CoreLog | DiskLog | UserspaceLog:
    """Read `<log> <#words> <words>`."""
    kind = exact(tokens, "core", "disk", "userspace")
    behind = len(tokens) - 1 - tokens.wrapping("the number of the log's words", bits=32)
    if behind < 0:
        raise tokens.error("as many words as announced")
    if kind != "userspace":
        return _decode_plain_log(kind, tokens, lookup, behind)
    uuid = tokens.word("the log's uuid")
    integrated = (tokens.peek() or "").lower() == "integrated_flush"
    if integrated:
        tokens.word("integrated_flush")
    kind = exact(tokens, "clustered-core", "clustered-disk").removeprefix("clustered-")
    return UserspaceLog(uuid, _decode_plain_log(kind, tokens, lookup, behind), integrated)


def _decode_plain_log(kind: str, tokens: Tokens, lookup: Lookup, behind: int) -> CoreLog | DiskLog:
    """Read the words of a log in memory or on a device, until `behind` words are left."""
    needed = 2 if kind == "disk" else 1
    if not needed <= len(tokens) - behind <= needed + 1:
        raise tokens.error(f"{needed} or {needed + 1} words for a {kind} log")
    dev = lookup(tokens.word("the log's device")) if kind == "disk" else None
    region = tokens.wrapping("the region size in sectors", bits=32)
    sync = Sync(exact(tokens, *Sync)) if len(tokens) > behind else None
    return CoreLog(region, sync) if dev is None else DiskLog(dev, region, sync)


def exact(tokens: Tokens, *choices: str) -> str:
    """Take one of `choices`, in this case (`strcmp`)."""
    expected = " or ".join(choices)
    word = tokens.word(expected)
    if word not in choices:
        raise tokens.error(expected, back=1)
    return word


def parse_log_status(tokens: Tokens) -> LogStatus:
    """Read `<n> <kind> [<dev> <state>]`, or a userspace log's own words when its daemon is away."""
    if tokens.peek() == "userspace":
        kind = tokens.word("userspace")
        tokens.keyword("1")
        exact(tokens, LogState.UNREACHABLE)
        tokens.done()
        return LogStatus(kind, None, LogState.UNREACHABLE)
    count = tokens.strict("the number of the log's words")
    kind = tokens.word("the log's type")
    if count == 1:
        tokens.done()
        return LogStatus(kind)
    dev = Ref(tokens.word("the log's device"))
    state = LogState(exact(tokens, "A", "F", "D"))
    tokens.done()
    return LogStatus(kind, dev, state)
