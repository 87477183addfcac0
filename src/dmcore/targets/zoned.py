"""zoned: a disk that takes writes anywhere, on devices with zones that are written from their beginning.

Sources: drivers/md/dm-zoned-target.c (dmz_ctr, dmz_status, dmz_message).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dmcore import validate
from dmcore.errors import SpecError
from dmcore.params import Tokens
from dmcore.target import Silent, Status, Target

if TYPE_CHECKING:
    from typing import Self

    from hypothesis.strategies import SearchStrategy

    from dmcore.ref import Ref
    from dmcore.target import Lookup, Resolve, Space

__all__ = ["Reclaim", "Zoned", "ZonedStatus", "Zones"]


@dataclass(frozen=True, slots=True)
class Zones:
    """Zones of one kind.

    Attributes:
        free: Those without data.
        total: All of them.
    """

    free: int
    total: int


@dataclass(frozen=True, slots=True)
class ZonedStatus(Status):
    """Status of a zoned device.

    Attributes:
        zones: Zones of all devices.
        cache: Zones of the regular device that comes first, if one does.
        random: Zones that can be written anywhere, of each zoned device.
        sequential: Zones that cannot, of each zoned device.
    """

    zones: int
    cache: Zones
    random: tuple[Zones, ...]
    sequential: tuple[Zones, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Zoned(Target):
    """All of one zoned device, or of a regular one (a cache) and zoned ones, formatted by `dmzadm`.

    The kernel sets the line's length itself, by the metadata.

    Attributes:
        devices: The devices, whole: one that is zoned; or a regular one, and zoned ones.

    Raises:
        SpecError: No device.
    """

    kernel_name: ClassVar[str] = "zoned"
    kernel_module: ClassVar[str] = "dm-zoned"
    singleton: ClassVar[bool] = True

    devices: tuple[Ref, ...]

    def __post_init__(self) -> None:
        validate.instance("devices", self.devices, tuple, "(Ref('/dev/nullb0'),)")
        if not self.devices:
            raise SpecError("devices", self.devices, "must name at least one")
        for index, dev in enumerate(self.devices):
            validate.ref(f"devices[{index}]", dev)

    def refs(self) -> tuple[Ref, ...]:
        """Return the devices."""
        return self.devices

    def encode(self, resolve: Resolve) -> str:
        """Return `<dev>...`."""
        return " ".join(map(resolve, self.devices))

    @classmethod
    def decode(cls, tokens: Tokens, lookup: Lookup) -> Self:
        """Read `<dev>...`."""
        first = lookup(tokens.word("a zoned device"))
        return cls(devices=(first, *map(lookup, tokens)))

    def parse_status(self, text: str) -> ZonedStatus:
        """Read `<zones> zones <free>/<all> cache [<free>/<all> random <free>/<all> sequential]*`."""
        tokens = Tokens(text.replace("/", " "), target=self.kernel_name)
        zones = tokens.strict("the number of zones")
        tokens.keyword("zones")
        cache = _zones(tokens, "cache")
        random: list[Zones] = []
        sequential: list[Zones] = []
        while len(tokens):
            random.append(_zones(tokens, "random"))
            sequential.append(_zones(tokens, "sequential"))
        return ZonedStatus(zones, cache, tuple(random), tuple(sequential))

    @classmethod
    def strategy(cls, space: Space) -> SearchStrategy[Zoned]:
        """Draw any devices; a kernel wants them zoned and formatted."""
        from hypothesis import strategies as st

        devices = st.lists(st.sampled_from(list(space.refs)), min_size=1, max_size=4)
        return st.builds(Zoned, devices=devices.map(tuple))


def _zones(tokens: Tokens, kind: str) -> Zones:
    zones = Zones(tokens.strict(f"free {kind} zones"), tokens.strict(f"all {kind} zones"))
    tokens.keyword(kind)
    return zones


@dataclass(frozen=True, slots=True)
class Reclaim(Silent):
    """Begin to empty random zones into sequential ones."""

    def encode(self) -> str:
        """Return `reclaim`."""
        return "reclaim"
