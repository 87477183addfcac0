"""The priority groups of a multipath device: selectors, paths, and what the status says of them.

Sources: drivers/md/dm-mpath.c (parse_priority_group, parse_path_selector, multipath_status), dm-ps-round-robin.c,
dm-ps-queue-length.c, dm-ps-service-time.c, dm-ps-historical-service-time.c, dm-ps-io-affinity.c (add_path, create, status).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from dmcore import validate
from dmcore.errors import SpecError
from dmcore.params import U32_MAX
from dmcore.ref import Ref

if TYPE_CHECKING:
    from dmcore.params import Tokens
    from dmcore.target import Lookup, Resolve

__all__ = ["DEFAULT_WEIGHT", "MOST", "Group", "GroupState", "GroupStatus", "Path", "PathStatus", "Selector"]

MOST = 1024
"""Most groups, paths of a group, and words of each list."""

DEFAULT_WEIGHT = 972
"""The base weight that HISTORICAL_SERVICE_TIME takes by itself."""

_MOST_WEIGHT = 1023
_MOST_THROUGHPUT = 100
_MASK = re.compile("[0-9a-fA-F]{1,8}(,[0-9a-fA-F]{1,8})*")


class Selector(StrEnum):
    """What chooses the path within a group; the values are the kernel's words, each a module `dm-NAME`."""

    ROUND_ROBIN = "round-robin"
    QUEUE_LENGTH = "queue-length"
    SERVICE_TIME = "service-time"
    HISTORICAL_SERVICE_TIME = "historical-service-time"
    """Not in Debian's kernels; needs the feature "multipath.historical-service-time"."""

    IO_AFFINITY = "io-affinity"
    """By the processor that makes the request. Not in Debian's kernels; needs the feature "multipath.io-affinity"."""


_REPEATS = frozenset(Selector) - {Selector.IO_AFFINITY}


@dataclass(frozen=True, slots=True)
class Path:
    """A way to the disk.

    Attributes:
        dev: The device. Its first sector is the line's first.
        repeat: Requests in a row before another path is chosen, 0..2^32-1; the kernel takes all above 1 for 1, but for
            HISTORICAL_SERVICE_TIME, which ignores it. None leaves the word away. Not with IO_AFFINITY.
        throughput: Of SERVICE_TIME: the path's part in the load, 0..100, 0 for a path that is used when there is no
            other; needs `repeat`. None for 1.
        cpus: Of IO_AFFINITY: the processors that use the path, bit n for processor n; at least one bit.

    Raises:
        SpecError: Not such a device or number.
    """

    dev: Ref
    repeat: int | None = None
    throughput: int | None = None
    cpus: int | None = None

    def __post_init__(self) -> None:
        validate.ref("dev", self.dev)
        if self.repeat is not None:
            validate.integer("repeat", self.repeat, 0, U32_MAX, "requests")
        if self.throughput is not None:
            validate.integer("throughput", self.throughput, 0, _MOST_THROUGHPUT)
            if self.repeat is None:
                raise SpecError("throughput", self.throughput, "needs repeat")
        if self.cpus is not None:
            validate.integer("cpus", self.cpus, 1, (1 << 8192) - 1)

    @property
    def words(self) -> tuple[str, ...]:
        """The words behind the device."""
        if self.cpus is not None:
            digits = f"{self.cpus:x}"
            head = len(digits) % 8 or 8
            return (",".join([digits[:head], *re.findall(".{8}", digits[head:])]),)
        return tuple(str(number) for number in (self.repeat, self.throughput) if number is not None)


@dataclass(frozen=True, slots=True)
class Group:
    """Paths that are used together.

    Attributes:
        paths: 1..1024 paths, all with the same words.
        selector: What chooses among them.
        base_weight: Of HISTORICAL_SERVICE_TIME: how much the past counts, 0..1023; None for 972.
        threshold: Of HISTORICAL_SERVICE_TIME: how many times better a path must be to be preferred, 0..2^32-1; None
            for 0. Needs `base_weight`.

    Raises:
        SpecError: Words that the selector does not take (EINVAL).
    """

    paths: tuple[Path, ...]
    selector: Selector = Selector.ROUND_ROBIN
    base_weight: int | None = None
    threshold: int | None = None

    def __post_init__(self) -> None:
        validate.instance("paths", self.paths, tuple, "(Path(Ref('7:0')), Path(Ref('7:1')))")
        validate.instance("selector", self.selector, Selector, "Selector.ROUND_ROBIN")
        if not 1 <= len(self.paths) <= MOST:
            raise SpecError("paths", len(self.paths), f"must be 1..{MOST}")
        for index, path in enumerate(self.paths):
            validate.instance(f"paths[{index}]", path, Path, "Path(Ref('7:0'))")
            self._check_path(f"paths[{index}]", path)
        if self.base_weight is not None:
            validate.integer("base_weight", self.base_weight, 0, _MOST_WEIGHT)
        if self.threshold is not None:
            validate.integer("threshold", self.threshold, 0, U32_MAX)
            if self.base_weight is None:
                raise SpecError("threshold", self.threshold, "needs base_weight")
        if self.base_weight is not None and self.selector is not Selector.HISTORICAL_SERVICE_TIME:
            raise SpecError("base_weight", self.base_weight, f"{self.selector} takes none")

    def _check_path(self, field: str, path: Path) -> None:
        affine = self.selector is Selector.IO_AFFINITY
        if (path.cpus is not None) != affine or (affine and path.repeat is not None):
            wants = "needs cpus, and nothing else" if affine else "takes no cpus"
            raise SpecError(field, path, f"{self.selector} {wants}")
        if path.throughput is not None and self.selector is not Selector.SERVICE_TIME:
            raise SpecError(field, path, f"{self.selector} takes no throughput")
        if len(path.words) != len(self.paths[0].words):
            raise SpecError(field, path, "all paths of a group have the same words")

    def encode(self, resolve: Resolve) -> str:
        """Return `<selector> <#words> <words> <#paths> <#words each> (<dev> <words>)*`."""
        own = [str(number) for number in (self.base_weight, self.threshold) if number is not None]
        paths = [" ".join([resolve(path.dev), *path.words]) for path in self.paths]
        each = len(self.paths[0].words)
        return " ".join([str(self.selector), str(len(own)), *own, str(len(paths)), str(each), *paths])

    @classmethod
    def decode(cls, tokens: Tokens, lookup: Lookup) -> Group:
        """Take one group; words for a selector that has none are dropped, as the kernel does."""
        selector = tokens.word("a path selector")
        if selector not in set(Selector):
            raise tokens.error(f"a path selector: {', '.join(Selector)}", back=1)
        weights = _decode_own(tokens, Selector(selector))
        count = tokens.ranged("the number of paths", 1, MOST)
        each = tokens.ranged("the number of words of each path", 0, MOST)
        if len(tokens) < count * (each + 1):
            raise tokens.error(f"{count} paths with {each} words each")
        paths = tuple(_decode_path(tokens, lookup, Selector(selector), each) for _ in range(count))
        return cls(paths, Selector(selector), *weights)

    def readback(self) -> Group:
        """Return what the kernel prints: every word that the selector has."""

        def printed(path: Path) -> Path:
            if self.selector is Selector.IO_AFFINITY:
                return path
            if self.selector is Selector.HISTORICAL_SERVICE_TIME:
                return replace(path, repeat=0)
            repeat = 1 if path.repeat is None else min(path.repeat, 1)
            if self.selector is Selector.SERVICE_TIME:
                return replace(
                    path, repeat=repeat, throughput=1 if path.throughput is None else path.throughput
                )
            return replace(path, repeat=repeat)

        paths = tuple(printed(path) for path in self.paths)
        if self.selector is not Selector.HISTORICAL_SERVICE_TIME:
            return Group(paths, self.selector)
        weight = DEFAULT_WEIGHT if self.base_weight is None else self.base_weight
        return Group(paths, self.selector, weight, self.threshold or 0)


def _decode_own(tokens: Tokens, selector: Selector) -> tuple[int | None, int | None]:
    """Take `<#words> <words>` of a selector."""
    count = tokens.ranged("the number of the selector's words", 0, MOST)
    if count > len(tokens):
        raise tokens.error(f"{count} words of {selector}")
    if selector is not Selector.HISTORICAL_SERVICE_TIME:
        for _ in range(count):
            tokens.word("a word")
        return None, None
    if count > 2:
        raise tokens.error("at most 2 words of the selector", back=1)
    weight = tokens.ranged("the base weight", 0, _MOST_WEIGHT) if count else None
    return weight, tokens.wrapping("the threshold multiplier", bits=32) if count == 2 else None


def _decode_path(tokens: Tokens, lookup: Lookup, selector: Selector, words: int) -> Path:
    dev = lookup(tokens.word("a path's device"))
    most = 2 if selector is Selector.SERVICE_TIME else 1
    if words > most or (selector is Selector.IO_AFFINITY and not words):
        raise tokens.error(f"the words of a path of {selector}", back=1)
    if selector is Selector.IO_AFFINITY:
        mask = tokens.word("a mask of processors")
        if not _MASK.fullmatch(mask):
            raise tokens.error("a mask of processors in hexadecimal", back=1)
        first, *rest = mask.split(",")
        return Path(dev, cpus=int(first + "".join(part.zfill(8) for part in rest), 16))
    repeat = tokens.wrapping("the repeat count", bits=32) if words else None
    throughput = tokens.ranged("the relative throughput", 0, _MOST_THROUGHPUT) if words == 2 else None
    return Path(dev, repeat, throughput)


class GroupState(StrEnum):
    """Whether a group is used; the values are the kernel's letters."""

    ACTIVE = "A"
    ENABLED = "E"
    DISABLED = "D"
    """Used only when no other group has a path left."""


@dataclass(frozen=True, slots=True)
class PathStatus:
    """One path in the status.

    Attributes:
        dev: The device, as "major:minor".
        active: Whether it is used; a path that failed is not.
        failures: How often it failed; reinstating it does not reset that.
        info: What the selector says of it: nothing (ROUND_ROBIN), requests on the way (QUEUE_LENGTH), bytes on the way and
            throughput (SERVICE_TIME), service time, requests on the way and when that is stale (HISTORICAL_SERVICE_TIME),
            requests of processors without a path (IO_AFFINITY).
    """

    dev: Ref
    active: bool
    failures: int
    info: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GroupStatus:
    """One group in the status.

    Attributes:
        state: Whether it is used.
        selector: What its selector says: base weight and threshold of HISTORICAL_SERVICE_TIME, else nothing.
        paths: Its paths, in the order of the table.
    """

    state: GroupState
    selector: tuple[int, ...]
    paths: tuple[PathStatus, ...]

    @classmethod
    def decode(cls, tokens: Tokens) -> GroupStatus:
        """Take one group."""
        state = GroupState(tokens.keyword(*GroupState))
        own = tokens.ranged("the number of the selector's words", 0, MOST)
        selector = tuple(tokens.strict("a word of the selector", bits=64) for _ in range(own))
        count = tokens.ranged("the number of paths", 1, MOST)
        words = tokens.ranged("the number of words of each path", 0, MOST)
        return cls(state, selector, tuple(_path_status(tokens, words) for _ in range(count)))


def _path_status(tokens: Tokens, words: int) -> PathStatus:
    dev = Ref(tokens.word("a path's device"))
    active = tokens.keyword("A", "F") == "A"
    failures = tokens.strict("the count of failures")
    return PathStatus(
        dev, active, failures, tuple(tokens.strict("a number of the path", bits=64) for _ in range(words))
    )
