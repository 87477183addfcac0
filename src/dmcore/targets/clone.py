"""clone: a copy of a slow read-only device, usable from the start, made in the background.

Sources: drivers/md/dm-clone-target.c (clone_ctr, parse_feature_args, parse_core_args, parse_region_size, clone_status,
clone_message).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

from dmcore import validate
from dmcore.errors import SpecError
from dmcore.params import U32_MAX, Tokens
from dmcore.target import Silent, Status, Target
from dmcore.targets._persistent import Failed, Unreadable, Usage, Word, given_up, metadata_usage

if TYPE_CHECKING:
    from typing import Self

    from hypothesis.strategies import SearchStrategy

    from dmcore.ref import Ref
    from dmcore.target import Lookup, Resolve, Space

__all__ = [
    "Clone",
    "CloneMode",
    "CloneStatus",
    "DisableHydration",
    "EnableHydration",
    "Failed",
    "SetHydrationBatchSize",
    "SetHydrationThreshold",
    "Unreadable",
    "Usage",
]

_MIN_REGION = 8
_MAX_REGION = 2097152
_MOST_REGIONS = 2**31
_FEATURES = ("no_hydration", "no_discard_passdown")
_CORE = ("hydration_threshold", "hydration_batch_size")


class CloneMode(StrEnum):
    """What can be done with the metadata; the values are the kernel's words."""

    WRITABLE = "rw"
    READ_ONLY = "ro"


@dataclass(frozen=True, slots=True)
class CloneStatus(Status):
    """Status of a clone.

    Attributes:
        metadata: Use of the metadata device, in blocks of 4 KiB.
        region_sectors: Sectors of a region.
        regions: Regions that are on the destination (`used`), of all.
        hydrating: Regions that are being copied now.
        hydration: Whether regions are copied in the background.
        discard_passdown: Whether discards are sent to the destination: not if it knows none.
        hydration_threshold: Most regions that are copied at once.
        hydration_batch_size: Most neighbouring regions that are copied as one.
        mode: Whether the metadata can be written.
    """

    metadata: Usage
    region_sectors: int
    regions: Usage
    hydrating: int
    hydration: bool
    discard_passdown: bool
    hydration_threshold: int
    hydration_batch_size: int
    mode: CloneMode


@dataclass(frozen=True, slots=True, kw_only=True)
class Clone(Target):
    """A destination that fills with the source's regions, in the background and as they are written.

    A read of a region that is not there yet goes to the source; a write of a part of one copies it first, a write or
    discard of all of it does not. The metadata device is formatted if its first 4 KiB are zeros, and then always has
    that region size and length (else EINVAL). Source and destination are used from their first sectors on.

    Attributes:
        metadata: Device for the metadata.
        dest: Device that becomes the copy.
        source: Device that is copied; only read.
        region_sectors: Sectors of a region: a power of two, 8 (4 KiB)..2097152 (1 GiB), a multiple of the logical
            blocks of `dest` and `source`, and so large that there are at most 2^31 regions.
        no_hydration: Copy nothing in the background at first; `EnableHydration` begins it.
        no_discard_passdown: Do not send discards to `dest`.
        hydration_threshold: Most regions that are copied at once, 0..2^32-1; None for the kernel's default, 1.
        hydration_batch_size: Most neighbouring regions that are copied as one, 0..2^32-1; None for the default, 1.

    Raises:
        SpecError: A value the kernel's constructor would refuse (EINVAL).
    """

    kernel_name: ClassVar[str] = "clone"
    kernel_module: ClassVar[str] = "dm-clone"

    metadata: Ref
    dest: Ref
    source: Ref
    region_sectors: int = _MIN_REGION
    no_hydration: bool = False
    no_discard_passdown: bool = False
    hydration_threshold: int | None = None
    hydration_batch_size: int | None = None

    def __post_init__(self) -> None:
        for field in ("metadata", "dest", "source"):
            validate.ref(field, getattr(self, field))
        validate.integer("region_sectors", self.region_sectors, _MIN_REGION, _MAX_REGION, "sectors")
        if self.region_sectors & (self.region_sectors - 1):
            raise SpecError("region_sectors", self.region_sectors, "must be a power of two")
        for field in _FEATURES:
            validate.boolean(field, getattr(self, field))
        for field in _CORE:
            if getattr(self, field) is not None:
                validate.integer(field, getattr(self, field), 0, U32_MAX, "regions")

    def refs(self) -> tuple[Ref, ...]:
        """Return metadata device, destination and source."""
        return self.metadata, self.dest, self.source

    def encode(self, resolve: Resolve) -> str:
        """Return `<metadata> <dest> <source> <region> [<#features> <features> [<#words> (<key> <value>)*]]`."""
        words = [*(resolve(ref) for ref in self.refs()), str(self.region_sectors)]
        features = [field for field in _FEATURES if getattr(self, field)]
        core = [f"{field} {getattr(self, field)}" for field in _CORE if getattr(self, field) is not None]
        if features or core:
            words += [str(len(features)), *features]
        if core:
            words += [str(2 * len(core)), *core]
        return " ".join(words)

    @classmethod
    def decode(cls, tokens: Tokens, lookup: Lookup) -> Self:
        """Read what `encode` writes, in any order; of a key given twice the last counts, words behind are ignored."""
        metadata, dest, source = (
            lookup(tokens.word(f"the {what} device")) for what in ("metadata", "destination", "source")
        )
        region = tokens.ranged("the region size in sectors", _MIN_REGION, _MAX_REGION)
        features: set[str] = set()
        core: dict[str, int] = {}
        if len(tokens):
            count = tokens.ranged("the number of features", 0, len(_FEATURES))
            features.update(tokens.keyword(*_FEATURES) for _ in range(count))
        if len(tokens):
            count = tokens.ranged("the number of core words", 0, 2 * len(_CORE))
            if count % 2:
                raise tokens.error("an even number of core words", back=1)
            for _ in range(count // 2):
                key = tokens.keyword(*_CORE)
                core[key] = tokens.strict(f"the {key}")
        for _ in tokens:
            pass
        return cls(
            metadata=metadata,
            dest=dest,
            source=source,
            region_sectors=region,
            no_hydration="no_hydration" in features,
            no_discard_passdown="no_discard_passdown" in features,
            hydration_threshold=core.get("hydration_threshold"),
            hydration_batch_size=core.get("hydration_batch_size"),
        )

    def check(self, start: int, length: int) -> None:
        """Refuse a line of too many regions."""
        del start
        if -(-length // self.region_sectors) > _MOST_REGIONS:
            raise SpecError(
                "region_sectors", self.region_sectors, f"the line has more than {_MOST_REGIONS} regions"
            )

    def parse_status(self, text: str) -> CloneStatus | Failed | Unreadable:
        """Read the words of a clone's status, or "Fail" or "Error"."""
        tokens = Tokens(text, target=self.kernel_name)
        if (end := given_up(tokens)) is not None:
            return end
        metadata = metadata_usage(tokens)
        region = tokens.strict("the region size in sectors", bits=64)
        regions = Usage.decode(tokens, "regions")
        hydrating = tokens.strict("the regions being copied")
        count = tokens.ranged("the number of features", 0, len(_FEATURES))
        features = [tokens.keyword(*_FEATURES) for _ in range(count)]
        tokens.keyword("4")
        tokens.keyword("hydration_threshold")
        threshold = tokens.strict("the threshold")
        tokens.keyword("hydration_batch_size")
        batch = tokens.strict("the batch size")
        mode = CloneMode(tokens.keyword(*CloneMode))
        tokens.done()
        return CloneStatus(
            metadata,
            region,
            regions,
            hydrating,
            "no_hydration" not in features,
            "no_discard_passdown" not in features,
            threshold,
            batch,
            mode,
        )

    @classmethod
    def strategy(cls, space: Space) -> SearchStrategy[Clone]:
        """Draw devices, with metadata of their own, a region size, and any features and core arguments."""
        from hypothesis import strategies as st

        number = st.none() | st.integers(0, U32_MAX)

        def of(metadata: Ref) -> SearchStrategy[Clone]:
            others = st.sampled_from(
                [ref for ref, size in space.refs.items() if ref != metadata and size >= space.length]
            )
            return st.builds(
                Clone,
                metadata=st.just(metadata),
                dest=others,
                source=others,
                region_sectors=st.integers(3, 21).map(lambda bit: 1 << bit),
                no_hydration=st.booleans(),
                no_discard_passdown=st.booleans(),
                hydration_threshold=number,
                hydration_batch_size=number,
            )

        return st.sampled_from(sorted(space.refs, key=str)).flatmap(of)


@dataclass(frozen=True, slots=True)
class EnableHydration(Word):
    """Copy regions in the background from now on."""

    text: ClassVar[str] = "enable_hydration"


@dataclass(frozen=True, slots=True)
class DisableHydration(Word):
    """Begin no more copies in the background."""

    text: ClassVar[str] = "disable_hydration"


@dataclass(frozen=True, slots=True)
class SetHydrationThreshold(Silent):
    """Set how many regions are copied at once.

    Attributes:
        regions: 0..2^32-1; 0 stops the copying in the background.
    """

    regions: int

    def __post_init__(self) -> None:
        validate.integer("regions", self.regions, 0, U32_MAX)

    def encode(self) -> str:
        """Return `hydration_threshold <regions>`."""
        return f"hydration_threshold {self.regions}"


@dataclass(frozen=True, slots=True)
class SetHydrationBatchSize(Silent):
    """Set how many neighbouring regions are copied as one.

    Attributes:
        regions: 0..2^32-1.
    """

    regions: int

    def __post_init__(self) -> None:
        validate.integer("regions", self.regions, 0, U32_MAX)

    def encode(self) -> str:
        """Return `hydration_batch_size <regions>`."""
        return f"hydration_batch_size {self.regions}"
