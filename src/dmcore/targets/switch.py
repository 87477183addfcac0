"""switch: regions of fixed size, each served by one of several paths, which messages change.

Sources: drivers/md/dm-switch.c (switch_ctr, switch_map, process_set_region_mappings, switch_status).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dmcore import validate
from dmcore.errors import SpecError
from dmcore.params import U32_MAX, U64_MAX
from dmcore.target import Leg, Silent, Target

if TYPE_CHECKING:
    from typing import Self

    from hypothesis.strategies import SearchStrategy

    from dmcore.params import Tokens
    from dmcore.ref import Ref
    from dmcore.target import Lookup, Resolve, Space

__all__ = ["Map", "Repeat", "SetRegionMappings", "Switch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch(Target):
    """Each region of the device goes to a path, to the same place there as on the device.

    At first region r goes to path `r % n`; `SetRegionMappings` changes that. Nothing tells the mappings, and a new
    table begins anew. A discard goes whole to the path of its first sector; a flush is not passed on.

    Attributes:
        region: Sectors of a region, 1..2^32-1; it need not be a power of two. The last one may be shorter.
        paths: The devices and where their parts begin, at least one. Each part is as long as the line.

    Raises:
        SpecError: A value the kernel's constructor would refuse (EINVAL).
    """

    kernel_name: ClassVar[str] = "switch"
    kernel_module: ClassVar[str] = "dm-switch"

    region: int
    paths: tuple[Leg, ...]

    def __post_init__(self) -> None:
        validate.integer("region", self.region, 1, U32_MAX, "sectors")
        validate.instance("paths", self.paths, tuple, "(Leg(Ref('7:0')), Leg(Ref('7:1')))")
        if not self.paths:
            raise SpecError("paths", self.paths, "must have at least one path")
        for index, leg in enumerate(self.paths):
            validate.instance(f"paths[{index}]", leg, Leg, "Leg(Ref('7:0'), 2048)")

    def regions(self, length: int) -> int:
        """Return how many regions a line of `length` sectors has."""
        return -(-length // self.region)

    def refs(self) -> tuple[Ref, ...]:
        """Return the paths' devices."""
        return tuple(leg.dev for leg in self.paths)

    def encode(self, resolve: Resolve) -> str:
        """Return `<n> <region> 0 (<dev> <offset>)*n`."""
        return " ".join([f"{len(self.paths)} {self.region} 0", *(leg.encode(resolve) for leg in self.paths)])

    @classmethod
    def decode(cls, tokens: Tokens, lookup: Lookup) -> Self:
        """Read `<n> <region> 0 (<dev> <offset>)*n`."""
        count = tokens.ranged("the number of paths", 1, U32_MAX)
        region = tokens.ranged("the region size in sectors", 1, U32_MAX)
        tokens.ranged("the number of optional arguments", 0, 0)
        if len(tokens) != 2 * count:
            raise tokens.error(f"{count} times device and offset")
        paths = [
            Leg(lookup(tokens.word("a device")), tokens.strict("the first sector on the device", bits=64))
            for _ in range(count)
        ]
        return cls(region=region, paths=tuple(paths))

    @classmethod
    def strategy(cls, space: Space) -> SearchStrategy[Switch]:
        """Draw up to 5 paths and any region size, those beyond the line's length included."""
        from hypothesis import strategies as st

        return st.builds(
            Switch,
            region=st.integers(1, space.length + 1) | st.integers(1, U32_MAX),
            paths=st.lists(space.legs(), min_size=1, max_size=5).map(tuple),
        )


@dataclass(frozen=True, slots=True)
class Map:
    """Let one region go to a path.

    Attributes:
        path: The path's number, from 0.
        region: The region's number, from 0; None for the one after the region that the word before set (1 for the first
            word of a message, which counts from 0).

    Raises:
        SpecError: Not such numbers.
    """

    path: int
    region: int | None = None

    def __post_init__(self) -> None:
        validate.integer("path", self.path, 0, U32_MAX)
        if self.region is not None:
            validate.integer("region", self.region, 0, U64_MAX)

    def __str__(self) -> str:
        return f":{self.path:x}" if self.region is None else f"{self.region:x}:{self.path:x}"


@dataclass(frozen=True, slots=True)
class Repeat:
    """Go on as the last regions went: each of the next `count` regions goes where the one `cycle` before it goes.

    Attributes:
        cycle: Regions that repeat, at least 1; as many must lie before the next one.
        count: How many regions to set; all must exist.

    Raises:
        SpecError: Not such numbers.
    """

    cycle: int
    count: int

    def __post_init__(self) -> None:
        validate.integer("cycle", self.cycle, 1, U64_MAX, "regions")
        validate.integer("count", self.count, 0, U64_MAX, "regions")

    def __str__(self) -> str:
        return f"R{self.cycle:x},{self.count:x}"


@dataclass(frozen=True, slots=True)
class SetRegionMappings(Silent):
    """Change where regions go, step by step, while I/O goes on.

    EINVAL for a step that names a region or path the device does not have; the steps before it stay done.

    Attributes:
        steps: What to do, in this order; none is allowed.

    Raises:
        SpecError: Something else among the steps.
    """

    steps: tuple[Map | Repeat, ...]

    def __post_init__(self) -> None:
        validate.instance("steps", self.steps, tuple, "(Map(0, 5), Map(1), Repeat(2, 10))")
        for index, step in enumerate(self.steps):
            _check_step(f"steps[{index}]", step)

    def encode(self) -> str:
        """Return `set_region_mappings <step>...`, numbers in hexadecimal."""
        return " ".join(["set_region_mappings", *map(str, self.steps)])


def _check_step(field: str, value: object) -> None:
    if not isinstance(value, (Map, Repeat)):
        raise SpecError(field, value, "must be a Map or a Repeat")
