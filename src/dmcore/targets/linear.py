"""linear: a piece of another device.

Sources: drivers/md/dm-linear.c (linear_ctr, linear_map, linear_status).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dmcore import validate
from dmcore.params import U64_MAX
from dmcore.target import Leg, Target

if TYPE_CHECKING:
    from typing import Self

    from hypothesis.strategies import SearchStrategy

    from dmcore.params import Tokens
    from dmcore.ref import Ref
    from dmcore.target import Lookup, Resolve, Space

__all__ = ["Linear"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear(Target):
    """Every request goes to `dev`, moved by `offset`; discards, write-zeroes and flushes too.

    Attributes:
        dev: Device below.
        offset: First sector used on `dev`, 0..2^64-1. That `offset` plus the line's length fits on `dev` is checked
            by the kernel (EINVAL, at the first load or at resume).

    Raises:
        SpecError: A value the kernel's constructor would refuse (EINVAL).
    """

    kernel_name: ClassVar[str] = "linear"
    kernel_module: ClassVar[str] = "dm-mod"

    dev: Ref
    offset: int = 0

    def __post_init__(self) -> None:
        validate.ref("dev", self.dev)
        validate.integer("offset", self.offset, 0, U64_MAX, "sectors")

    def refs(self) -> tuple[Ref, ...]:
        """Return the device below."""
        return (self.dev,)

    def encode(self, resolve: Resolve) -> str:
        """Return `<dev> <offset>`."""
        return f"{resolve(self.dev)} {self.offset}"

    @classmethod
    def decode(cls, tokens: Tokens, lookup: Lookup) -> Self:
        """Read `<dev> <offset>`."""
        leg = Leg.decode(tokens, lookup)
        tokens.done()
        return cls(dev=leg.dev, offset=leg.offset)

    @classmethod
    def strategy(cls, space: Space) -> SearchStrategy[Linear]:
        """Draw any part of a device that is long enough."""
        return space.legs().map(lambda leg: cls(dev=leg.dev, offset=leg.offset))
