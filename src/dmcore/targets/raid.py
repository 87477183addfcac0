"""raid: the md raid levels 0, 1, 4, 5, 6 and 10 under a dm table.

Sources: drivers/md/dm-raid.c (raid_ctr, parse_raid_params, parse_dev_params, validate_region_size,
rs_set_dev_and_array_sectors, rs_set_raid456_stripe_cache, raid_status, raid_message, sync_str, __raid_dev_status).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, cast

from dmcore import validate
from dmcore.errors import SpecError
from dmcore.params import Tokens
from dmcore.ref import Ref
from dmcore.target import Feature, Status, Target
from dmcore.targets._raid_messages import Check, Frozen, Idle, Recover, Repair, Resync
from dmcore.targets._raid_strategy import sets
from dmcore.targets._raid_types import FLAGS, WORDS, JournalMode, Raid10Format, RaidType, Sync, allowed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Self

    from hypothesis.strategies import SearchStrategy

    from dmcore.target import Features, Lookup, Resolve, Space

__all__ = [
    "Check",
    "DeviceState",
    "Frozen",
    "Idle",
    "JournalMode",
    "Raid",
    "Raid10Format",
    "RaidDevice",
    "RaidStatus",
    "RaidType",
    "Recover",
    "Repair",
    "Resync",
    "Sync",
    "SyncAction",
]

_INT_MAX = 2**31 - 1
_MOST_DEVICES = 253
_LEAST_CHUNK = 8
_MOST_REGIONS = 1 << 21
_LEAST_OFFSET = 32
_STRIPES = (17, 32768)


@dataclass(frozen=True, slots=True)
class RaidDevice:
    """One device of a set.

    Attributes:
        data: Where its part of the data lies; None for a device that is missing.
        meta: Where it keeps its superblock and the set's bitmap; None for a set that forgets its state.

    Raises:
        SpecError: Not devices, or metadata of a device that is missing (EINVAL).
    """

    data: Ref | None
    meta: Ref | None = None

    def __post_init__(self) -> None:
        for field, dev in (("data", self.data), ("meta", self.meta)):
            if dev is not None:
                validate.ref(field, dev)
        if self.meta is not None and self.data is None:
            raise SpecError("meta", self.meta, "a device that is missing has no metadata")


class DeviceState(StrEnum):
    """How a device does; the values are the kernel's letters."""

    IN_SYNC = "A"
    NOT_IN_SYNC = "a"
    """It works, and its content is being made; of a journal: it works, and holds writes back."""

    FAILED = "D"
    MISSING = "-"


class SyncAction(StrEnum):
    """What the set does beside I/O; the values are the kernel's words."""

    IDLE = "idle"
    FROZEN = "frozen"
    RESYNC = "resync"
    RECOVER = "recover"
    CHECK = "check"
    REPAIR = "repair"
    RESHAPE = "reshape"
    UNDEFINED = "undef"


@dataclass(frozen=True, slots=True)
class RaidStatus(Status):
    """Status of a raid set.

    Attributes:
        kind: How data are spread; a format of raid10 is told here: "raid10_far".
        devices: Each device's state, in the order of the table.
        done: Sectors of each device that are in sync, or that the action has done.
        total: Sectors of each device.
        action: What goes on.
        mismatches: Sectors that differed in the last `Check`; 0 after any other action.
        data_offset: First sector of the data on each device.
        journal: State of the journal: IN_SYNC for writethrough, NOT_IN_SYNC for writeback; None without one.
    """

    kind: RaidType
    devices: tuple[DeviceState, ...]
    done: int
    total: int
    action: SyncAction
    mismatches: int
    data_offset: int
    journal: DeviceState | None

    @property
    def in_sync(self) -> bool:
        """Whether all devices are, and nothing is going on."""
        quiet = self.action is SyncAction.IDLE and self.done == self.total
        return quiet and set(self.devices) == {DeviceState.IN_SYNC}


@dataclass(frozen=True, slots=True, kw_only=True)
class Raid(Target):
    """Devices that make up one disk, with copies or parity.

    The constructor runs the set: it reads superblocks, and refuses (EINVAL, "Failed to run raid array") what the level cannot
    do with the devices that are there. What is in the superblocks counts, unless `sync` or `rebuild` say otherwise.
    Resuming starts to make what is not in sync; an event tells the end, and every device that fails.

    Traps: a raid10 set needs metadata devices, and no `sync` when it is new; `length * copies / devices` should be a whole
    number of chunks, else the device becomes smaller than its table says. Level 4 has its parity on the first device.

    Attributes:
        kind: How data are spread.
        chunk: Sectors in a row on one device: a power of two from 8; 0 for RAID1.
        devices: 1..253 devices, more than the level has parity.
        sync: What to believe at first; None for what the metadata say.
        rebuild: Devices (from 0) whose content is to be made anew; not with `sync`.
        daemon_sleep: Clock ticks between the bitmap's updates, 0..2^31-1; 0 becomes 5 seconds' worth where there are metadata.
        min_recovery_rate: KiB per second for each device that resyncing may take at least.
        max_recovery_rate: And at most; 0 for the system's.
        write_mostly: RAID1: devices that are read only if no other can be; not all of them.
        max_write_behind: RAID1: writes to those devices that may be outstanding; the kernel prints half of it.
        stripe_cache: Levels 4, 5, 6: stripes kept in memory, 17..32768 (the kernel takes half the chunk if that is more).
        region_size: Sectors that one bit of the bitmap stands for: a power of two, from the chunk to the length; None for 8192. (0, which the kernel takes for None, is refused: it
            prints 8192 for it, which it would not take again in a shorter line.)
        raid10_copies: Of each chunk, 2..devices; None for 2.
        raid10_format: Where they lie; None for NEAR.
        raid10_use_near_sets: Copies stay within sets of devices; not with NEAR. The kernel does not print it, but counts it:
            a table with it cannot be read back, by the kernel as little as here.
        delta_disks: Devices to add, or to remove if below 0: a reshape, if the metadata are of the set before it.
        data_offset: First sector of the data after a reshape: 0, or a multiple of 8 from 32.
        journal_dev: Levels 4, 5, 6: device for a journal of writes.
        journal_mode: When a write is done; needs `journal_dev`. None for WRITETHROUGH.

    Raises:
        SpecError: A value the kernel's constructor would refuse (EINVAL).
    """

    kernel_name: ClassVar[str] = "raid"
    kernel_module: ClassVar[str] = "dm-raid"
    features: ClassVar[Mapping[str, Feature]] = {
        "raid.busy_while_suspended": Feature("raid1 2 0 nosync 2 - {dev} - -", busy="x")
    }

    kind: RaidType
    chunk: int = 0
    devices: tuple[RaidDevice, ...]
    sync: Sync | None = None
    rebuild: tuple[int, ...] = ()
    daemon_sleep: int | None = None
    min_recovery_rate: int | None = None
    max_recovery_rate: int | None = None
    write_mostly: tuple[int, ...] = ()
    max_write_behind: int | None = None
    stripe_cache: int | None = None
    region_size: int | None = None
    raid10_copies: int | None = None
    raid10_format: Raid10Format | None = None
    raid10_use_near_sets: bool = False
    delta_disks: int | None = None
    data_offset: int | None = None
    journal_dev: Ref | None = None
    journal_mode: JournalMode | None = None

    def __post_init__(self) -> None:
        validate.instance("kind", self.kind, RaidType, "RaidType.RAID1")
        self._check_devices()
        self._check_chunk()
        self._check_words()
        self._check_numbers()
        self._check_conflicts()

    def _check_devices(self) -> None:
        validate.instance("devices", self.devices, tuple, "(RaidDevice(Ref('7:0')), RaidDevice(Ref('7:1')))")
        least = self.kind.parity + 1
        if not least <= len(self.devices) <= _MOST_DEVICES:
            raise SpecError("devices", len(self.devices), f"must be {least}..{_MOST_DEVICES}")
        for index, device in enumerate(self.devices):
            validate.instance(f"devices[{index}]", device, RaidDevice, "RaidDevice(Ref('7:0'))")
        if all(device.data is None for device in self.devices):
            raise SpecError("devices", self.devices, "at least one must be there")

    def _check_chunk(self) -> None:
        if self.kind is RaidType.RAID1:
            validate.integer("chunk", self.chunk, 0, 0)
            return
        validate.integer("chunk", self.chunk, _LEAST_CHUNK, _INT_MAX, "sectors")
        if self.chunk & (self.chunk - 1):
            raise SpecError("chunk", self.chunk, "must be a power of two")

    def _check_words(self) -> None:
        known = allowed(self.kind)
        for word in (*WORDS, "raid10_use_near_sets"):
            value = getattr(self, word)
            if value is not None and value is not False and value != () and word not in known:
                raise SpecError(word, value, f"{self.kind} takes no {word}")
        if self.sync is not None:
            validate.instance("sync", self.sync, Sync, "Sync.NOSYNC")
            if self.sync.value not in known:
                raise SpecError("sync", self.sync, f"{self.kind} takes no {self.sync}")
        if self.raid10_format is not None:
            validate.instance("raid10_format", self.raid10_format, Raid10Format, "Raid10Format.FAR")
        validate.boolean("raid10_use_near_sets", self.raid10_use_near_sets)
        if self.journal_dev is not None:
            validate.ref("journal_dev", self.journal_dev)
        if self.journal_mode is not None:
            validate.instance("journal_mode", self.journal_mode, JournalMode, "JournalMode.WRITEBACK")

    def _check_numbers(self) -> None:
        for field in ("daemon_sleep", "min_recovery_rate", "max_recovery_rate", "max_write_behind"):
            if getattr(self, field) is not None:
                validate.integer(field, getattr(self, field), 0, _INT_MAX)
        for field in ("rebuild", "write_mostly"):
            self._check_indexes(field, getattr(self, field))
        if self.stripe_cache is not None:
            validate.integer("stripe_cache", self.stripe_cache, 0, _INT_MAX, "stripes")
            if not _STRIPES[0] <= max(self.stripe_cache, self.chunk // 2) <= _STRIPES[1]:
                raise SpecError("stripe_cache", self.stripe_cache, f"must be {_STRIPES[0]}..{_STRIPES[1]}")
        if self.region_size is not None:
            self._check_region(self.region_size)
        if self.raid10_copies is not None:
            validate.integer("raid10_copies", self.raid10_copies, 2, len(self.devices))
        self._check_reshape()

    def _check_reshape(self) -> None:
        if self.delta_disks is not None:
            validate.integer("delta_disks", self.delta_disks, -_MOST_DEVICES, _MOST_DEVICES)
            most = _MOST_DEVICES - (4 if self.kind.level == 6 else 2)
            if not 1 <= abs(self.delta_disks) <= most:
                raise SpecError("delta_disks", self.delta_disks, f"must be 1..{most}, or as many below 0")
        if self.data_offset is not None:
            validate.integer("data_offset", self.data_offset, 0, _INT_MAX, "sectors")
            if self.data_offset and (self.data_offset < _LEAST_OFFSET or self.data_offset % 8):
                raise SpecError(
                    "data_offset", self.data_offset, f"must be 0, or a multiple of 8 from {_LEAST_OFFSET}"
                )

    def _check_indexes(self, field: str, indexes: object) -> None:
        validate.instance(field, indexes, tuple, "(0,)")
        found = cast("tuple[object, ...]", indexes)
        for place, index in enumerate(found):
            validate.integer(f"{field}[{place}]", index, 0, len(self.devices) - 1)
        if len(set(found)) < len(found):
            raise SpecError(field, found, "must name each device once")

    def _check_region(self, region: int) -> None:
        validate.integer("region_size", region, 1, _INT_MAX, "sectors")
        if region & (region - 1):
            raise SpecError("region_size", region, "must be a power of two")
        if region < self.chunk:
            raise SpecError("region_size", region, f"is less than the chunk of {self.chunk}")

    def _check_conflicts(self) -> None:
        if self.rebuild and self.sync is not None:
            raise SpecError("rebuild", self.rebuild, "conflicts with sync")
        for index in self.rebuild:
            if self.devices[index].data is None:
                raise SpecError("rebuild", self.rebuild, f"device {index} is missing")
        if len(self.write_mostly) >= len(self.devices):
            raise SpecError("write_mostly", self.write_mostly, "one device must be read")
        if self.max_recovery_rate and (self.min_recovery_rate or 0) > self.max_recovery_rate:
            raise SpecError("min_recovery_rate", self.min_recovery_rate, "is more than max_recovery_rate")
        if self.raid10_use_near_sets and self.raid10_format in {None, Raid10Format.NEAR}:
            raise SpecError("raid10_use_near_sets", self.raid10_use_near_sets, "not with the format near")
        if self.kind.level == 10 and len(self.devices) < 2:
            raise SpecError("devices", len(self.devices), "must hold 2 copies")
        if self.journal_mode is not None and self.journal_dev is None:
            raise SpecError("journal_mode", self.journal_mode, "needs journal_dev")

    def refs(self) -> tuple[Ref, ...]:
        """Return the journal's device, if any, and each device's metadata and data, those that are there."""
        pairs = [dev for device in self.devices for dev in (device.meta, device.data) if dev is not None]
        return (*([self.journal_dev] if self.journal_dev else []), *pairs)

    def _words(self, resolve: Resolve) -> Iterator[str]:
        if self.sync is not None:
            yield self.sync.value
        if self.raid10_use_near_sets:
            yield "raid10_use_near_sets"
        for word in WORDS:
            value = getattr(self, word)
            if isinstance(value, Ref):
                yield f"{word} {resolve(value)}"
            elif isinstance(value, tuple):
                yield from (f"{word} {index}" for index in value)  # pyright: ignore[reportUnknownVariableType]
            elif value is not None:
                yield f"{word} {value}"

    def encode(self, resolve: Resolve) -> str:
        """Return `<kind> <#words> <chunk> <words> <#devices> (<meta> <data>)*`."""
        words = " ".join([str(self.chunk), *self._words(resolve)])
        devices = [
            " ".join("-" if dev is None else resolve(dev) for dev in (device.meta, device.data))
            for device in self.devices
        ]
        return " ".join([str(self.kind), str(words.count(" ") + 1), words, str(len(devices)), *devices])

    @classmethod
    def decode(cls, tokens: Tokens, lookup: Lookup) -> Self:
        """Read what `encode` writes, words in any order; words behind the devices are ignored."""
        kind = tokens.keyword(*RaidType)
        count = tokens.ranged("the number of words", 0, len(tokens))
        if not 1 <= count <= len(tokens):
            raise tokens.error("the chunk and words as many as announced")
        end = len(tokens) - count
        chunk = tokens.signed("the chunk size in sectors")
        words = _Words(tokens, lookup, end)
        number = tokens.ranged("the number of devices", 1, _MOST_DEVICES)
        if len(words.write_mostly) >= number:
            raise tokens.error("a device that is not write_mostly", back=1)
        if len(tokens) < 2 * number:
            raise tokens.error(f"{number} times metadata and data device")
        devices = tuple(_decode_device(tokens, lookup) for _ in range(number))
        for _ in tokens:
            pass
        level1 = kind == RaidType.RAID1
        return cls(kind=RaidType(kind), chunk=0 if level1 else chunk, devices=devices, **words.fields())

    def readback(self, features: Features) -> Raid:
        """Return the value as it is printed: half of `max_write_behind`, the cache that is used."""
        del features
        behind, cache = self.max_write_behind, self.stripe_cache
        return replace(
            self,
            rebuild=tuple(sorted(self.rebuild)),
            write_mostly=tuple(sorted(self.write_mostly)),
            max_write_behind=None if behind is None else behind // 2,
            stripe_cache=None if cache is None else max(cache, self.chunk // 2),
        )

    def check(self, start: int, length: int) -> None:
        """Refuse a length that the devices cannot share evenly, and a region that does not fit it."""
        del start
        data = len(self.devices) - self.kind.parity
        copies = (self.raid10_copies or 2) if self.kind.level == 10 else 1
        if self.kind is not RaidType.RAID1 and length * copies % data:
            raise SpecError(
                "devices", len(self.devices), f"{data} of them cannot share {length} sectors evenly"
            )
        if self.region_size:
            if self.region_size > length:
                raise SpecError("region_size", self.region_size, f"is more than the line's {length} sectors")
            if self.region_size < length // _MOST_REGIONS:
                raise SpecError("region_size", self.region_size, f"makes more than {_MOST_REGIONS} regions")

    def parse_status(self, text: str) -> RaidStatus:
        """Read `<kind> <n> <letter>*n <done>/<total> <action> <mismatches> <data offset> <journal>`."""
        tokens = Tokens(text.replace("/", " ", 1), target=self.kernel_name)
        kind = tokens.keyword(*RaidType)
        count = tokens.strict("the number of devices")
        letters = tokens.word("a letter per device")
        if len(letters) != count or set(letters) - set(DeviceState):
            raise tokens.error(f"{count} letters of {', '.join(DeviceState)}", back=1)
        done, total = (tokens.strict(f"the sectors {what}", bits=64) for what in ("done", "in all"))
        action = tokens.keyword(*SyncAction)
        mismatches = tokens.strict("the mismatches", bits=64)
        offset = tokens.strict("the data offset", bits=64)
        journal = tokens.word("the journal's letter")
        if journal not in set(DeviceState):
            raise tokens.error(f"one of {', '.join(DeviceState)}", back=1)
        tokens.done()
        return RaidStatus(
            kind=RaidType(kind),
            devices=tuple(map(DeviceState, letters)),
            done=done,
            total=total,
            action=SyncAction(action),
            mismatches=mismatches,
            data_offset=offset,
            journal=None if journal == DeviceState.MISSING else DeviceState(journal),
        )

    @classmethod
    def strategy(cls, space: Space) -> SearchStrategy[Raid]:
        """Draw sets of 2..6 different devices that run at once: no reshapes, no journals, at most one device missing."""
        return sets(Raid, RaidDevice, space)


class _Words:
    """The optional words of a table."""

    def __init__(self, tokens: Tokens, lookup: Lookup, end: int) -> None:
        """Read words until `end` are left."""
        self.plain: set[str] = set()
        self.rebuild: list[int] = []
        self.write_mostly: list[int] = []
        self.numbers: dict[str, int] = {}
        self.journal_dev: Ref | None = None
        self.journal_mode: JournalMode | None = None
        self.format: Raid10Format | None = None
        while len(tokens) > end:
            valued = WORDS if len(tokens) > end + 1 else ()
            word = tokens.keyword(*FLAGS, *valued)
            if word in self.plain:
                raise tokens.error(f"{word} only once", back=1)
            if word not in {"rebuild", "write_mostly"}:
                self.plain.add(word)
            if word not in FLAGS:
                self._value(tokens, lookup, word)
        if {"sync", "nosync"} <= self.plain:
            raise tokens.error("either sync or nosync", back=1)

    def _value(self, tokens: Tokens, lookup: Lookup, word: str) -> None:
        match word:
            case "raid10_format":
                self.format = Raid10Format(tokens.keyword(*Raid10Format))
            case "journal_dev":
                self.journal_dev = lookup(tokens.word("the journal's device"))
            case "journal_mode":
                if self.journal_dev is None:
                    raise tokens.error("journal_dev before journal_mode", back=1)
                self.journal_mode = JournalMode(tokens.keyword(*JournalMode))
            case "rebuild":
                self.rebuild.append(tokens.signed("a device's number", low=0))
            case "write_mostly":
                self.write_mostly.append(tokens.signed("a device's number", low=0))
            case "delta_disks":
                self.numbers[word] = tokens.signed("devices to add or remove")
            case "data_offset":
                self.numbers[word] = tokens.signed("the data offset", low=0)
            case _:
                self.numbers[word] = tokens.signed(f"a number for {word}", low=0)

    def fields(self) -> dict[str, Any]:
        """Return the fields of `Raid` that the words stand for."""
        sync = next((Sync(word) for word in ("sync", "nosync") if word in self.plain), None)
        return {
            **self.numbers,
            "sync": sync,
            "rebuild": tuple(self.rebuild),
            "write_mostly": tuple(dict.fromkeys(self.write_mostly)),
            "raid10_format": self.format,
            "raid10_use_near_sets": "raid10_use_near_sets" in self.plain,
            "journal_dev": self.journal_dev,
            "journal_mode": self.journal_mode,
        }


def _decode_device(tokens: Tokens, lookup: Lookup) -> RaidDevice:
    meta = tokens.word("a metadata device, or -")
    data = tokens.word("a data device, or -")
    if data == "-" and meta != "-":
        raise tokens.error("the data device of these metadata", back=1)
    return RaidDevice(None if data == "-" else lookup(data), None if meta == "-" else lookup(meta))
