"""mirror: the same content on two to nine devices, with a log of the regions that are in sync.

Sources: drivers/md/dm-raid1.c (mirror_ctr, create_dirty_log, parse_features, fail_mirror, do_failures, device_status_char,
mirror_status), dm-log.c (create_log_context, disk_resume, disk_status), dm-log-userspace-base.c (userspace_ctr,
userspace_status).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

from dmcore import validate
from dmcore.errors import SpecError
from dmcore.params import U32_MAX, Tokens
from dmcore.ref import Ref
from dmcore.target import NO_FEATURES, Feature, Leg, Requirement, Status, Target
from dmcore.targets._mirror_logs import (
    CoreLog,
    DiskLog,
    LogState,
    LogStatus,
    Sync,
    UserspaceLog,
    check_log,
    decode_log,
    exact,
    log_words,
    parse_log_status,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from hypothesis.strategies import SearchStrategy

    from dmcore.target import Lookup, Resolve, Space

__all__ = [
    "CoreLog",
    "DiskLog",
    "LegHealth",
    "LegState",
    "LogState",
    "LogStatus",
    "Mirror",
    "MirrorStatus",
    "Sync",
    "UserspaceLog",
]

_KEEP_LOG = "mirror.keep_log"
_FEWEST_LEGS = 2
_MOST_LEGS = 9
_LOG_SECTORS = 1024
"""Enough for the log of any length that strategies are asked for."""


class LegState(StrEnum):
    """The worst that befell a leg since the table was loaded; the values are the kernel's letters."""

    ALIVE = "A"
    FLUSH_FAILED = "F"
    WRITE_FAILED = "D"
    """It is out of sync."""

    SYNC_FAILED = "S"
    """Copying to it (or, for the primary leg, from it) failed."""

    READ_FAILED = "R"
    """Its content is in sync, but part of it cannot be read."""

    UNKNOWN = "U"


@dataclass(frozen=True, slots=True)
class LegHealth:
    """One leg in the status.

    Attributes:
        dev: The device, as "major:minor".
        state: What befell it.
    """

    dev: Ref
    state: LegState


@dataclass(frozen=True, slots=True)
class MirrorStatus(Status):
    """Status of a mirror.

    Attributes:
        legs: Each leg's health, in the order of the table.
        synced: Regions that are in sync.
        regions: All regions.
        log: The log's health.
    """

    legs: tuple[LegHealth, ...]
    synced: int
    regions: int
    log: LogStatus

    @property
    def in_sync(self) -> bool:
        """Whether all regions are in sync. The kernel raises an event when that comes true."""
        return self.synced == self.regions


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror(Target):
    """Writes go to all legs, reads to the primary one, which is leg 0 at first.

    From the resume on, regions that are not in sync are copied from the primary leg to the others, one at a time; an event
    tells the end. A write to a region that is not in sync yet goes to the primary leg only. A read that fails is tried on
    another leg if the region is in sync. A discard goes to all legs and changes no leg's state.

    Attributes:
        log: Where it is written down which regions are in sync.
        legs: The devices and where their parts begin, 2..9. Each part is as long as the line.
        handle_errors: A leg that fails raises an event, another takes over from a primary leg that fails in sync, and a write
            that a leg failed **waits** until the device is suspended: then it fails with EIO, or, with `noflush`, is done
            again by the table that follows. False: such a write succeeds, and its region counts as out of sync.
        keep_log: A write that a leg failed succeeds, and fails with EIO only if the log failed; needs `handle_errors`,
            and the feature "mirror.keep_log".

    Raises:
        SpecError: A value the kernel's constructor would refuse (EINVAL).
    """

    kernel_name: ClassVar[str] = "mirror"
    kernel_module: ClassVar[str] = "dm-mirror"
    features: ClassVar[Mapping[str, Feature]] = {
        _KEEP_LOG: Feature("core 1 8 2 {dev} 0 {dev} 0 2 handle_errors keep_log")
    }

    log: CoreLog | DiskLog | UserspaceLog
    legs: tuple[Leg, ...]
    handle_errors: bool = False
    keep_log: bool = False

    def __post_init__(self) -> None:
        check_log("log", self.log, CoreLog, DiskLog, UserspaceLog)
        validate.instance("legs", self.legs, tuple, "(Leg(Ref('7:0')), Leg(Ref('7:1')))")
        if not _FEWEST_LEGS <= len(self.legs) <= _MOST_LEGS:
            raise SpecError("legs", len(self.legs), f"must be {_FEWEST_LEGS}..{_MOST_LEGS}")
        for index, leg in enumerate(self.legs):
            validate.instance(f"legs[{index}]", leg, Leg, "Leg(Ref('7:0'), 2048)")
        validate.boolean("handle_errors", self.handle_errors)
        validate.boolean("keep_log", self.keep_log)
        if self.keep_log and not self.handle_errors:
            raise SpecError("keep_log", self.keep_log, "needs handle_errors")

    def refs(self) -> tuple[Ref, ...]:
        """Return the log's device, if it has one, and the legs' devices."""
        dev = None if isinstance(self.log, CoreLog) else self.log.dev
        return (*([dev] if dev else []), *(leg.dev for leg in self.legs))

    def encode(self, resolve: Resolve) -> str:
        """Return `<log> <#words> <words> <n> (<dev> <offset>)*n [<#features> <features>]`."""
        words = list(log_words(self.log, resolve))
        legs = [leg.encode(resolve) for leg in self.legs]
        features = [name for name in ("handle_errors", "keep_log") if getattr(self, name)]
        return " ".join(
            [
                *(words[0], str(len(words) - 1), *words[1:]),
                *(str(len(legs)), *legs),
                *((str(len(features)), *features) if features else ()),
            ]
        )

    @classmethod
    def decode(cls, tokens: Tokens, lookup: Lookup) -> Self:
        """Read `<log> <#words> <words> <n> (<dev> <offset>)*n [<#features> <features>]`."""
        log = decode_log(tokens, lookup)
        count = tokens.wrapping("the number of legs", bits=32)
        if not _FEWEST_LEGS <= count <= _MOST_LEGS:
            raise tokens.error(f"{_FEWEST_LEGS}..{_MOST_LEGS} legs", back=1)
        legs = tuple(Leg.decode(tokens, lookup) for _ in range(count))
        features: set[str] = set()
        if len(tokens):
            number = tokens.wrapping("the number of features", bits=32)
            if number != len(tokens):
                raise tokens.error(f"{number} features")
            features.update(exact(tokens, "handle_errors", "keep_log") for _ in range(number))
        return cls(
            log=log, legs=legs, handle_errors="handle_errors" in features, keep_log="keep_log" in features
        )

    def check(self, start: int, length: int) -> None:
        """Refuse regions that are longer than the line, or too many; a daemon sees to its own."""
        del start
        if isinstance(self.log, UserspaceLog):
            return
        region = self.log.region
        if region > length:
            raise SpecError("log.region", region, f"is more than the line's {length} sectors")
        if -(-length // region) > U32_MAX:
            raise SpecError("log.region", region, f"the line's {length} sectors would be too many regions")

    def needs(self) -> Requirement:
        """Return the need for the feature that keeps the log, if this value wants that."""
        return Requirement(
            self.kernel_name, features=frozenset({_KEEP_LOG}) if self.keep_log else NO_FEATURES
        )

    def parse_status(self, text: str) -> MirrorStatus:
        """Read `<n> <dev>*n <synced>/<regions> 1 <letter>*n <log>`."""
        tokens = Tokens(text.replace("/", " ", 1), target=self.kernel_name)
        count = tokens.strict("the number of legs")
        devices = [Ref(tokens.word("a leg's device")) for _ in range(min(count, len(tokens)))]
        synced = tokens.strict("the regions in sync", bits=64)
        regions = tokens.strict("the number of regions", bits=64)
        tokens.keyword("1")
        letters = tokens.word("a letter per leg")
        if len(letters) != count or set(letters) - set(LegState):
            raise tokens.error(f"{count} letters of {', '.join(LegState)}", back=1)
        log = parse_log_status(tokens)
        legs = zip(devices, letters, strict=True)
        return MirrorStatus(
            tuple(LegHealth(dev, LegState(letter)) for dev, letter in legs), synced, regions, log
        )

    @classmethod
    def strategy(cls, space: Space) -> SearchStrategy[Mirror]:
        """Draw a log in memory or on a device, and any legs; no userspace log, which needs a daemon."""
        from hypothesis import strategies as st

        regions = [1 << bit for bit in range(1, 32) if 1 << bit <= space.length]
        if not regions:
            return st.nothing()

        @st.composite
        def values(draw: st.DrawFn) -> Mirror:
            region = draw(st.sampled_from(regions))
            sync = draw(st.none() | st.sampled_from(Sync))
            dev = draw(st.none() | space.devices(max(space.length, _LOG_SECTORS)))
            handle_errors = draw(st.booleans())
            return Mirror(
                log=CoreLog(region, sync) if dev is None else DiskLog(dev, region, sync),
                legs=tuple(draw(st.lists(space.legs(), min_size=_FEWEST_LEGS, max_size=_MOST_LEGS))),
                handle_errors=handle_errors,
                keep_log=handle_errors and _KEEP_LOG in space.features and draw(st.booleans()),
            )

        return values()
