"""cache: the often used blocks of a slow device, kept on a fast one.

Sources: drivers/md/dm-cache-target.c (cache_ctr, parse_features, parse_policy, set_config_values, cache_status,
cache_message, process_invalidate_cblocks_message), drivers/md/dm-cache-policy-smq.c (mq_set_config_value).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, cast

from dmcore import validate
from dmcore.errors import SpecError
from dmcore.params import U32_MAX, U64_MAX, Tokens
from dmcore.target import Silent, Status, Target
from dmcore.targets._persistent import Failed, Unreadable, Usage, check_block, given_up, metadata_usage

if TYPE_CHECKING:
    from typing import Self

    from hypothesis.strategies import SearchStrategy

    from dmcore.ref import Ref
    from dmcore.target import Lookup, Resolve, Space

__all__ = [
    "MQ_TUNABLES",
    "Cache",
    "CacheMode",
    "CacheStatus",
    "Failed",
    "InvalidateCblocks",
    "Policy",
    "SetMigrationThreshold",
    "SetTunable",
    "Unreadable",
    "Usage",
]

MQ_TUNABLES = (
    "random_threshold",
    "sequential_threshold",
    "discard_promote_adjustment",
    "read_promote_adjustment",
    "write_promote_adjustment",
)
"""What the policy `mq` takes, and ignores since it is `smq` in fact."""

_MIN_BLOCK = 64
_MAX_BLOCK = 2097152
_MOST_FEATURES = 3
_MOST_POLICY_WORDS = 1024
_THRESHOLD = "migration_threshold"
_COUNTS = (
    "read_hits",
    "read_misses",
    "write_hits",
    "write_misses",
    "demotions",
    "promotions",
    "dirty",
)


class CacheMode(StrEnum):
    """What a write does; the values are the kernel's words."""

    WRITEBACK = "writeback"
    WRITETHROUGH = "writethrough"
    PASSTHROUGH = "passthrough"


class Policy(StrEnum):
    """What decides which blocks are cached; the values are the kernel's words."""

    SMQ = "smq"
    CLEANER = "cleaner"
    MQ = "mq"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class CacheStatus(Status):
    """Status of a cache that works, or one that has become read-only.

    Attributes:
        metadata: Use of the metadata device, in blocks of 4 KiB.
        block_sectors: Sectors of a block.
        blocks: Blocks of the cache device, those in use and all.
        read_hits: Reads that found their block in the cache; the four counts live through removals.
        read_misses: Reads that did not.
        write_hits: Writes that did.
        write_misses: Writes that did not.
        demotions: Blocks that were taken out of the cache since the load.
        promotions: Blocks that were taken into it since the load.
        dirty: Blocks that are newer than the origin's.
        mode: What a write does.
        metadata2: Whether the table asks for metadata of version 2.
        no_discard_passdown: Whether discards are not sent to the origin.
        migration_threshold: Most sectors that move between the devices at once.
        policy: Name of the policy that is at work: `Policy.DEFAULT` becomes "smq".
        tunables: What the policy says of itself, as keys and values.
        read_only: Whether the metadata cannot be written.
        needs_check: The metadata has to be checked (`cache_check`, `cache_repair`) before the device is writable again.
    """

    metadata: Usage
    block_sectors: int
    blocks: Usage
    read_hits: int
    read_misses: int
    write_hits: int
    write_misses: int
    demotions: int
    promotions: int
    dirty: int
    mode: CacheMode
    metadata2: bool
    no_discard_passdown: bool
    migration_threshold: int
    policy: str
    tunables: tuple[tuple[str, int], ...]
    read_only: bool
    needs_check: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache(Target):
    """An origin with a cache of its often used blocks on a faster device.

    The metadata device is formatted if its first 4 KiB are zeros, and then always has that block size. All of the cache
    device is used, and the origin from its first sector on. Before the cache is taken away, the policy `CLEANER` writes
    the dirty blocks back (`CacheStatus.dirty`).

    Attributes:
        metadata: Device for the metadata.
        cache: The fast device, of at least one block.
        origin: The slow device, at least as long as the line.
        block_sectors: Sectors of a block: a multiple of 64 (32 KiB), up to 2097152 (1 GiB).
        mode: Writes go to the cache only (WRITEBACK), to both (WRITETHROUGH), or to the origin only, with all reads from
            it too (PASSTHROUGH: a write takes its block out; with dirty blocks the resume fails with EBUSY, or the
            load with EINVAL, depending on the kernel).
        metadata2: Format the metadata as version 2, whose dirty bits are kept apart; formatted metadata keep theirs.
        no_discard_passdown: Do not send discards to the origin.
        policy: What decides which blocks are cached.
        migration_threshold: Most sectors that move between the devices at once, 0..2^64-1; None for 2048.
        tunables: Further keys and values of the policy, each key once: `MQ` takes `MQ_TUNABLES` (numbers, ignored), the
            others take none.

    Raises:
        SpecError: A value the kernel's constructor would refuse (EINVAL).
    """

    kernel_name: ClassVar[str] = "cache"
    kernel_module: ClassVar[str] = "dm-cache"

    metadata: Ref
    cache: Ref
    origin: Ref
    block_sectors: int = _MIN_BLOCK
    mode: CacheMode = CacheMode.WRITEBACK
    metadata2: bool = False
    no_discard_passdown: bool = False
    policy: Policy = Policy.SMQ
    migration_threshold: int | None = None
    tunables: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        for field in ("metadata", "cache", "origin"):
            validate.ref(field, getattr(self, field))
        check_block("block_sectors", self.block_sectors, _MIN_BLOCK, _MAX_BLOCK)
        validate.instance("mode", self.mode, CacheMode, "CacheMode.WRITEBACK")
        validate.boolean("metadata2", self.metadata2)
        validate.boolean("no_discard_passdown", self.no_discard_passdown)
        validate.instance("policy", self.policy, Policy, "Policy.SMQ")
        if self.migration_threshold is not None:
            validate.integer(_THRESHOLD, self.migration_threshold, 0, U64_MAX, "sectors")
        validate.instance("tunables", self.tunables, tuple, "(('random_threshold', 4),)")
        for index, tunable in enumerate(self.tunables):
            _check_tunable(f"tunables[{index}]", tunable, self.policy)
        if len({key for key, _ in self.tunables}) < len(self.tunables):
            raise SpecError("tunables", self.tunables, "must name each key once")

    def refs(self) -> tuple[Ref, ...]:
        """Return metadata device, cache device and origin."""
        return self.metadata, self.cache, self.origin

    def encode(self, resolve: Resolve) -> str:
        """Return `<metadata> <cache> <origin> <block> <#features> <features> <policy> <#words> (<key> <value>)*`."""
        features = [
            *(["metadata2"] if self.metadata2 else []),
            str(self.mode),
            *(["no_discard_passdown"] if self.no_discard_passdown else []),
        ]
        pairs = [
            *([] if self.migration_threshold is None else [f"{_THRESHOLD} {self.migration_threshold}"]),
            *(f"{key} {value}" for key, value in self.tunables),
        ]
        devices = " ".join(resolve(ref) for ref in self.refs())
        words = [devices, str(self.block_sectors), str(len(features)), *features]
        return " ".join([*words, str(self.policy), str(2 * len(pairs)), *pairs])

    @classmethod
    def decode(cls, tokens: Tokens, lookup: Lookup) -> Self:
        """Read what `encode` writes, in any order; of a key given twice the last counts, words behind are ignored."""
        metadata, cache, origin = (
            lookup(tokens.word(f"the {what} device")) for what in ("metadata", "cache", "origin")
        )
        block = tokens.strict("the block size in sectors", bits=64)
        mode, features = _decode_features(tokens)
        policy = tokens.word("a policy")
        if policy not in set(Policy):
            raise tokens.error(f"a policy: {', '.join(Policy)}", back=1)
        pairs = _decode_pairs(tokens, Policy(policy))
        for _ in tokens:
            pass
        return cls(
            metadata=metadata,
            cache=cache,
            origin=origin,
            block_sectors=block,
            mode=mode,
            metadata2="metadata2" in features,
            no_discard_passdown="no_discard_passdown" in features,
            policy=Policy(policy),
            migration_threshold=pairs.pop(_THRESHOLD, None),
            tunables=tuple(pairs.items()),
        )

    def parse_status(self, text: str) -> CacheStatus | Failed | Unreadable:
        """Read the words of a cache's status, or "Fail" or "Error"."""
        tokens = Tokens(text, target=self.kernel_name)
        if (end := given_up(tokens)) is not None:
            return end
        metadata = metadata_usage(tokens)
        block = tokens.strict("the block size in sectors", bits=64)
        blocks = Usage.decode(tokens, "blocks of the cache")
        counts = {name: tokens.strict(f"the count of {name}", bits=64) for name in _COUNTS}
        mode, features = _decode_features(tokens)
        tokens.keyword("2")
        tokens.keyword(_THRESHOLD)
        threshold = tokens.strict("the migration threshold", bits=64)
        policy = tokens.word("the policy")
        tunables = _status_pairs(tokens)
        read_only = tokens.keyword("rw", "ro") == "ro"
        needs_check = tokens.keyword("needs_check", "-") != "-"
        tokens.done()
        return CacheStatus(
            metadata=metadata,
            block_sectors=block,
            blocks=blocks,
            **counts,
            mode=mode,
            metadata2="metadata2" in features,
            no_discard_passdown="no_discard_passdown" in features,
            migration_threshold=threshold,
            policy=policy,
            tunables=tunables,
            read_only=read_only,
            needs_check=needs_check,
        )

    @classmethod
    def strategy(cls, space: Space) -> SearchStrategy[Cache]:
        """Draw devices, with metadata of their own, a block that fits the cache device, and any features and tunables."""
        from hypothesis import strategies as st

        pairs = st.dictionaries(st.sampled_from(MQ_TUNABLES), st.integers(0, U64_MAX))

        @st.composite
        def values(draw: st.DrawFn) -> Cache:
            origin = draw(space.devices())
            metadata = draw(st.sampled_from([ref for ref in space.refs if ref != origin]))
            cache = draw(st.sampled_from([ref for ref in space.refs if ref != metadata]))
            most = min(space.refs[cache], _MAX_BLOCK) // _MIN_BLOCK
            policy = draw(st.sampled_from(Policy))
            tunables = draw(pairs) if policy is Policy.MQ else {}
            return Cache(
                metadata=metadata,
                cache=cache,
                origin=origin,
                block_sectors=_MIN_BLOCK * draw(st.integers(1, most)),
                mode=draw(st.sampled_from(CacheMode)),
                metadata2=draw(st.booleans()),
                no_discard_passdown=draw(st.booleans()),
                policy=policy,
                migration_threshold=draw(st.none() | st.integers(0, U64_MAX)),
                tunables=tuple(tunables.items()),
            )

        return values()


def _check_tunable(field: str, tunable: object, policy: Policy) -> None:
    validate.instance(field, tunable, tuple, "('random_threshold', 4)")
    pair = cast("tuple[object, ...]", tunable)
    if len(pair) != 2:
        raise SpecError(field, tunable, "must be a key and a number, such as ('random_threshold', 4)")
    key, value = pair
    known = MQ_TUNABLES if policy is Policy.MQ else ()
    if key not in known:
        takes = f"one of {', '.join(known)}" if known else "none of its own"
        raise SpecError(field, key, f"the policy {policy} takes {takes}")
    validate.integer(field, value, 0, U64_MAX)


def _decode_features(tokens: Tokens) -> tuple[CacheMode, set[str]]:
    """Read `<#features> <features>`; the mode is there once at most."""
    count = tokens.ranged("the number of features", 0, _MOST_FEATURES)
    mode: CacheMode | None = None
    features: set[str] = set()
    for _ in range(count):
        word = tokens.keyword(*CacheMode, "metadata2", "no_discard_passdown")
        if word in set(CacheMode):
            if mode is not None:
                raise tokens.error("only one mode", back=1)
            mode = CacheMode(word)
        features.add(word)
    return mode or CacheMode.WRITEBACK, features


def _decode_pairs(tokens: Tokens, policy: Policy) -> dict[str, int]:
    """Read `<#words> (<key> <value>)*`."""
    count = tokens.ranged("the number of policy words", 0, _MOST_POLICY_WORDS)
    if count % 2:
        raise tokens.error("an even number of policy words", back=1)
    pairs: dict[str, int] = {}
    for _ in range(count // 2):
        key = tokens.keyword(_THRESHOLD, *(MQ_TUNABLES if policy is Policy.MQ else ()))
        pairs[key] = tokens.strict(f"the {key}", bits=64)
    return pairs


def _status_pairs(tokens: Tokens) -> tuple[tuple[str, int], ...]:
    """Read `<#words> (<key> <value>)*` of any policy."""
    count = tokens.ranged("the number of policy words", 0, _MOST_POLICY_WORDS)
    if count % 2:
        raise tokens.error("an even number of policy words", back=1)
    return tuple(
        (key, tokens.strict(f"the {key}", bits=64))
        for key in (tokens.word("a key of the policy") for _ in range(count // 2))
    )


@dataclass(frozen=True, slots=True)
class SetMigrationThreshold(Silent):
    """Set how much moves between the devices at once. Every message fails (EOPNOTSUPP) when read-only or failed.

    Attributes:
        sectors: 0..2^64-1.
    """

    sectors: int

    def __post_init__(self) -> None:
        validate.integer("sectors", self.sectors, 0, U64_MAX)

    def encode(self) -> str:
        """Return `migration_threshold <sectors>`."""
        return f"{_THRESHOLD} {self.sectors}"


@dataclass(frozen=True, slots=True)
class SetTunable(Silent):
    """Set a tunable of the policy `MQ`, which takes and ignores it. EINVAL with other policies.

    Attributes:
        key: One of `MQ_TUNABLES`.
        value: 0..2^64-1.
    """

    key: str
    value: int

    def __post_init__(self) -> None:
        if self.key not in MQ_TUNABLES:
            raise SpecError("key", self.key, f"must be one of {', '.join(MQ_TUNABLES)}")
        validate.integer("value", self.value, 0, U64_MAX)

    def encode(self) -> str:
        """Return `<key> <value>`."""
        return f"{self.key} {self.value}"


@dataclass(frozen=True, slots=True)
class InvalidateCblocks(Silent):
    """Take blocks out of the cache, without writing them back. EPERM unless PASSTHROUGH, EINVAL behind the cache's end.

    Ranges before a wrong one are done.

    Attributes:
        ranges: Which blocks of the cache device, each as a Python range without a step: 0..2^32-1.
    """

    ranges: tuple[range, ...]

    def __post_init__(self) -> None:
        validate.instance("ranges", self.ranges, tuple, "(range(0, 3),)")
        for index, blocks in enumerate(self.ranges):
            field = f"ranges[{index}]"
            validate.instance(field, blocks, range, "range(0, 3)")
            if not blocks or blocks.step != 1 or blocks[0] < 0 or blocks[-1] >= U32_MAX:
                raise SpecError(
                    field, blocks, f"must be blocks of 0..{U32_MAX - 1}, in steps of 1, not empty"
                )

    def encode(self) -> str:
        """Return `invalidate_cblocks (<first>-<behind last>)*`."""
        return " ".join(["invalidate_cblocks", *(f"{blocks.start}-{blocks.stop}" for blocks in self.ranges)])
