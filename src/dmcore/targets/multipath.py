"""multipath: one disk over several paths, which are tried in groups.

Sources: drivers/md/dm-mpath.c (multipath_ctr, parse_features, parse_hw_handler, parse_priority_group, multipath_status,
multipath_message, alloc_multipath_stage2), and those of `_multipath_groups.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

from dmcore import validate
from dmcore.errors import SpecError
from dmcore.params import U32_MAX, Tokens, quote
from dmcore.target import Feature, Requirement, Silent, Status, Target
from dmcore.targets._multipath_groups import (
    MOST,
    Group,
    GroupState,
    GroupStatus,
    Path,
    PathStatus,
    Selector,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from hypothesis.strategies import SearchStrategy

    from dmcore.ref import Ref
    from dmcore.target import Features, Lookup, Resolve, Space

__all__ = [
    "DisableGroup",
    "EnableGroup",
    "FailIfNoPath",
    "FailPath",
    "Group",
    "GroupState",
    "GroupStatus",
    "Handler",
    "Multipath",
    "MultipathStatus",
    "Path",
    "PathStatus",
    "QueueIfNoPath",
    "QueueMode",
    "ReinstatePath",
    "Selector",
    "SwitchGroup",
]

_RETAIN = "multipath.retain_attached_hw_handler"
_MOST_FEATURES = 8
_MOST_RETRIES = 50
_MOST_DELAY = 60000


class QueueMode(StrEnum):
    """How requests are passed on; the values are the kernel's words."""

    BIO = "bio"
    """As they come: the paths may be any devices, dm devices and partitions too."""

    REQUEST = "rq"
    """After merging and scheduling: the paths must be whole disks (loop devices are). The kernel's default; "mq" means
    the same."""


@dataclass(frozen=True, slots=True)
class Handler:
    """A hardware handler, which makes a storage array switch over (`scsi_dh_NAME`).

    Attributes:
        name: "alua", "emc", "rdac", "hp_sw".
        args: Its own words, which the kernel does not print.

    What a path that is no SCSI disk does with it depends on the kernel: it is refused, or the handler is dropped, or it
    stays without effect where the kernel was built without SCSI.

    Raises:
        SpecError: Not words of a table, or more than 1023 of them.
    """

    name: str
    args: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        validate.instance("args", self.args, tuple, "('1',)")
        if len(self.args) >= MOST:
            raise SpecError("args", len(self.args), f"must be fewer than {MOST}")
        for field, word in (("name", self.name), *((f"args[{i}]", arg) for i, arg in enumerate(self.args))):
            validate.instance(field, word, str, "'alua'")
            if not word or "\0" in word:
                raise SpecError(field, word, "an empty word, or one with NUL, cannot stand in a table")


@dataclass(frozen=True, slots=True)
class MultipathStatus(Status):
    """Status of a multipath device.

    Attributes:
        queueing: I/O waits for a group to be chosen and its paths to be activated; also before the first I/O.
        activations: How often the hardware handler was asked to activate the group's paths.
        current: Number of the group in use, or of the next one: 1 for the first; 0 if there is none.
        groups: The groups, in the order of the table.
    """

    queueing: bool
    activations: int
    current: int
    groups: tuple[GroupStatus, ...]

    @property
    def paths(self) -> tuple[PathStatus, ...]:
        """The paths of all groups."""
        return tuple(path for group in self.groups for path in group.paths)


@dataclass(frozen=True, slots=True, kw_only=True)
class Multipath(Target):
    """I/O goes over a path of the current group; one that fails with a path's error takes that path out and is tried anew.

    A path's error is any but those that tell of the disk behind it (EOPNOTSUPP, EREMOTEIO, ENOSPC, EILSEQ, ENODATA, EBADE).
    A group stays in use until all its paths have failed. Every failure raises an event, and so do a reinstated path and a
    change of groups. A device's queue mode is fixed by its first table, and only error and multipath tables may follow.

    Attributes:
        groups: Up to 1024 groups, in the order in which they are tried.
        initial: Number of the group to begin with, from 1; None for the first (0 in the table if there are no groups). The
            kernel takes numbers up to 1024 without such a group for the first.
        queue_if_no_path: I/O **waits** while no path is left, until one is reinstated, or `FailIfNoPath`. False: it fails
            with EIO.
        retain_attached_hw_handler: Keep a handler that a path has already; kernels without the feature
            "multipath.retain_attached_hw_handler" always do, and do not print it.
        pg_init_retries: How often activating a group is tried again, 1..50; None for never.
        pg_init_delay_msecs: Pause before that, in milliseconds, 0..60000; None for 2000.
        queue_mode: How requests are passed on.
        handler: Hardware handler; None for none, or the one that a path has. Not with `QueueMode.BIO`, which ignores it.

    Raises:
        SpecError: A value the kernel's constructor would refuse (EINVAL), or ignore.
    """

    kernel_name: ClassVar[str] = "multipath"
    kernel_module: ClassVar[str] = "dm-multipath"
    singleton: ClassVar[bool] = True
    features: ClassVar[Mapping[str, Feature]] = {
        _RETAIN: Feature("1 retain_attached_hw_handler 0 0 0", prints="1 retain_attached_hw_handler 0 0 0"),
        **{
            f"multipath.{selector}": Feature(f"2 queue_mode bio 0 1 1 {selector} 0 1 1 {{dev}} 1")
            for selector in (Selector.HISTORICAL_SERVICE_TIME, Selector.IO_AFFINITY)
        },
    }

    groups: tuple[Group, ...]
    initial: int | None = None
    queue_if_no_path: bool = False
    retain_attached_hw_handler: bool = False
    pg_init_retries: int | None = None
    pg_init_delay_msecs: int | None = None
    queue_mode: QueueMode = QueueMode.REQUEST
    handler: Handler | None = None

    def __post_init__(self) -> None:
        validate.instance("groups", self.groups, tuple, "(Group((Path(Ref('7:0')),)),)")
        if len(self.groups) > MOST:
            raise SpecError("groups", len(self.groups), f"must be 0..{MOST}")
        for index, group in enumerate(self.groups):
            validate.instance(f"groups[{index}]", group, Group, "Group((Path(Ref('7:0')),))")
        if self.initial is not None:
            validate.integer("initial", self.initial, 1, MOST)
            if not self.groups:
                raise SpecError("initial", self.initial, "there are no groups")
        validate.boolean("queue_if_no_path", self.queue_if_no_path)
        validate.boolean("retain_attached_hw_handler", self.retain_attached_hw_handler)
        if self.pg_init_retries is not None:
            validate.integer("pg_init_retries", self.pg_init_retries, 1, _MOST_RETRIES)
        if self.pg_init_delay_msecs is not None:
            validate.integer("pg_init_delay_msecs", self.pg_init_delay_msecs, 0, _MOST_DELAY, "milliseconds")
        validate.instance("queue_mode", self.queue_mode, QueueMode, "QueueMode.BIO")
        if self.handler is not None:
            validate.instance("handler", self.handler, Handler, "Handler('alua')")
            if self.queue_mode is QueueMode.BIO:
                raise SpecError("handler", self.handler, "QueueMode.BIO ignores it")

    def refs(self) -> tuple[Ref, ...]:
        """Return the paths' devices."""
        return tuple(path.dev for group in self.groups for path in group.paths)

    def encode(self, resolve: Resolve) -> str:
        """Return `<#features> <features> <#handler> <handler> <#groups> <initial> <groups>`."""
        features: list[str] = []
        if self.queue_if_no_path:
            features.append("queue_if_no_path")
        if self.pg_init_retries is not None:
            features += ["pg_init_retries", str(self.pg_init_retries)]
        if self.pg_init_delay_msecs is not None:
            features += ["pg_init_delay_msecs", str(self.pg_init_delay_msecs)]
        if self.retain_attached_hw_handler:
            features.append("retain_attached_hw_handler")
        if self.queue_mode is QueueMode.BIO:
            features += ["queue_mode", "bio"]
        handler = [quote(word) for word in (self.handler.name, *self.handler.args)] if self.handler else []
        initial = (self.initial or 1) if self.groups else 0
        return " ".join(
            [
                *(str(len(features)), *features),
                *(str(len(handler)), *handler),
                *(str(len(self.groups)), str(initial)),
                *(group.encode(resolve) for group in self.groups),
            ]
        )

    @classmethod
    def decode(cls, tokens: Tokens, lookup: Lookup) -> Self:
        """Read what `encode` writes; a feature given twice counts as the last says."""
        features = _decode_features(tokens)
        count = tokens.ranged("the number of the handler's words", 0, MOST)
        if count > len(tokens):
            raise tokens.error(f"{count} words of the handler")
        words = [tokens.word("a word of the handler") for _ in range(count)]
        number = tokens.ranged("the number of groups", 0, MOST)
        initial = tokens.ranged("the number of the first group to use", 0, MOST)
        if (number == 0) != (initial == 0):
            raise tokens.error("0 without groups, else 1 or more", back=1)
        groups: list[Group] = []
        while len(tokens):
            if len(groups) == number:
                raise tokens.error(f"no more than {number} groups")
            groups.append(Group.decode(tokens, lookup))
        if len(groups) < number:
            raise tokens.error(f"{number} groups")
        return cls(
            groups=tuple(groups),
            initial=None if initial <= 1 else initial,
            queue_if_no_path=features.queue_if_no_path,
            retain_attached_hw_handler=features.retain,
            pg_init_retries=features.numbers.get("pg_init_retries"),
            pg_init_delay_msecs=features.numbers.get("pg_init_delay_msecs"),
            queue_mode=features.queue_mode,
            handler=Handler(words[0], tuple(words[1:]))
            if words and features.queue_mode is not QueueMode.BIO
            else None,
        )

    def readback(self, features: Features) -> Multipath:
        """Return the value with every word of each selector, and a first group that exists."""
        retain = self.retain_attached_hw_handler or self.queue_mode is QueueMode.BIO
        return replace(
            self,
            groups=tuple(group.readback() for group in self.groups),
            initial=self.initial if self.initial and 1 < self.initial <= len(self.groups) else None,
            retain_attached_hw_handler=retain and _RETAIN in features,
            handler=Handler(self.handler.name) if self.handler else None,
        )

    def needs(self) -> Requirement:
        """Return the need for the selectors that only some kernels have."""
        named = {f"multipath.{group.selector}" for group in self.groups}
        return Requirement(self.kernel_name, features=frozenset(named & self.features.keys()))

    def parse_status(self, text: str) -> MultipathStatus:
        """Read `2 <queueing> <activations> 0 <#groups> <current> <groups>`."""
        tokens = Tokens(text, target=self.kernel_name)
        tokens.keyword("2")
        queueing = tokens.keyword("0", "1") == "1"
        activations = tokens.strict("the count of activations")
        tokens.keyword("0")
        count = tokens.ranged("the number of groups", 0, MOST)
        current = tokens.ranged("the number of the current group", 0, MOST)
        groups = tuple(GroupStatus.decode(tokens) for _ in range(count))
        tokens.done()
        return MultipathStatus(queueing, activations, current, groups)

    @classmethod
    def strategy(cls, space: Space) -> SearchStrategy[Multipath]:
        """Draw any groups of the devices, and any features; a handler only without paths, which would look at it."""
        from hypothesis import strategies as st

        known = [
            s for s in Selector if f"multipath.{s}" in space.features or f"multipath.{s}" not in cls.features
        ]

        @st.composite
        def group(draw: st.DrawFn) -> Group:
            selector = draw(st.sampled_from(known))
            historical = selector is Selector.HISTORICAL_SERVICE_TIME
            weight = draw(st.none() | st.integers(0, 1023)) if historical else None
            words = draw(st.integers(0, 2 if selector is Selector.SERVICE_TIME else 1))
            number = st.integers(0, U32_MAX)
            if selector is Selector.IO_AFFINITY:
                path = st.builds(Path, space.devices(), cpus=st.just(1))
            else:
                path = st.builds(
                    Path,
                    space.devices(),
                    repeat=number if words else st.none(),
                    throughput=st.integers(0, 100) if words == 2 else st.none(),
                )
            most = 1 if selector is Selector.IO_AFFINITY else 5
            paths = tuple(draw(st.lists(path, min_size=1, max_size=most)))
            threshold = None if weight is None else draw(st.none() | number)
            return Group(paths, selector, weight, threshold)

        @st.composite
        def values(draw: st.DrawFn) -> Multipath:
            groups = tuple(draw(st.lists(group(), max_size=3))) if space.refs else ()
            mode = draw(st.sampled_from(QueueMode))
            handler = not groups and mode is QueueMode.REQUEST and draw(st.booleans())
            return Multipath(
                groups=groups,
                initial=draw(st.none() | st.integers(2, 4)) if groups else None,
                queue_if_no_path=draw(st.booleans()),
                retain_attached_hw_handler=draw(st.booleans()),
                pg_init_retries=draw(st.none() | st.integers(1, _MOST_RETRIES)),
                pg_init_delay_msecs=draw(st.none() | st.integers(0, _MOST_DELAY)),
                queue_mode=mode,
                handler=Handler("alua", tuple(draw(st.lists(st.just("x"), max_size=2)))) if handler else None,
            )

        return values()


class _Features:
    """What the feature words said."""

    def __init__(self) -> None:
        self.queue_if_no_path = False
        self.retain = False
        self.queue_mode = QueueMode.REQUEST
        self.numbers: dict[str, int] = {}


def _decode_features(tokens: Tokens) -> _Features:
    """Read `<#words> <words>`."""
    count = tokens.ranged("the number of feature words", 0, _MOST_FEATURES)
    if count > len(tokens):
        raise tokens.error(f"{count} feature words")
    end = len(tokens) - count
    found = _Features()
    while len(tokens) > end:
        plain = ("queue_if_no_path", "retain_attached_hw_handler")
        valued = ("pg_init_retries", "pg_init_delay_msecs", "queue_mode") if len(tokens) > end + 1 else ()
        match tokens.keyword(*plain, *valued):
            case "queue_if_no_path":
                found.queue_if_no_path = True
            case "retain_attached_hw_handler":
                found.retain = True
            case "pg_init_retries":
                found.numbers["pg_init_retries"] = tokens.ranged("pg_init_retries", 1, _MOST_RETRIES)
            case "pg_init_delay_msecs":
                found.numbers["pg_init_delay_msecs"] = tokens.ranged("milliseconds", 0, _MOST_DELAY)
            case _:
                mode = tokens.keyword("bio", "rq", "mq")
                found.queue_mode = QueueMode.BIO if mode == "bio" else QueueMode.REQUEST
    return found


@dataclass(frozen=True, slots=True)
class QueueIfNoPath(Silent):
    """Let I/O wait while no path is left. Every message fails with EBUSY while the device is suspended."""

    def encode(self) -> str:
        """Return `queue_if_no_path`."""
        return "queue_if_no_path"


@dataclass(frozen=True, slots=True)
class FailIfNoPath(Silent):
    """Let I/O fail (EIO) while no path is left, that which waits included."""

    def encode(self) -> str:
        """Return `fail_if_no_path`."""
        return "fail_if_no_path"


@dataclass(frozen=True, slots=True)
class _OfPath(Silent):
    """A message about all paths over one device.

    Attributes:
        dev: The device, as "major:minor" or a path. EINVAL if it is no path here; ENOENT or ENODEV (by the kernel) for a
            path that leads to no device.
    """

    dev: Ref

    def __post_init__(self) -> None:
        validate.ref("dev", self.dev)
        if not (self.dev.is_number or self.dev.is_path):
            raise SpecError("dev", self.dev, 'must be "major:minor" or an absolute path')


@dataclass(frozen=True, slots=True)
class FailPath(_OfPath):
    """Take a path out of use, as a failed request would; no-op if it is."""

    def encode(self) -> str:
        """Return `fail_path <dev>`."""
        return f"fail_path {self.dev}"


@dataclass(frozen=True, slots=True)
class ReinstatePath(_OfPath):
    """Use a path again; I/O that waits for one goes on. Its count of failures stays."""

    def encode(self) -> str:
        """Return `reinstate_path <dev>`."""
        return f"reinstate_path {self.dev}"


@dataclass(frozen=True, slots=True)
class _OfGroup(Silent):
    """A message about a group.

    Attributes:
        group: Its number, from 1; EINVAL if there is none of that number.
    """

    group: int

    def __post_init__(self) -> None:
        validate.integer("group", self.group, 1, MOST)


@dataclass(frozen=True, slots=True)
class DisableGroup(_OfGroup):
    """Use a group only when no other has a path left."""

    def encode(self) -> str:
        """Return `disable_group <n>`."""
        return f"disable_group {self.group}"


@dataclass(frozen=True, slots=True)
class EnableGroup(_OfGroup):
    """Undo `DisableGroup`."""

    def encode(self) -> str:
        """Return `enable_group <n>`."""
        return f"enable_group {self.group}"


@dataclass(frozen=True, slots=True)
class SwitchGroup(_OfGroup):
    """Use a group from the next request on, and enable all groups."""

    def encode(self) -> str:
        """Return `switch_group <n>`."""
        return f"switch_group {self.group}"
