"""ebs: blocks of another size than the device below has.

Sources: drivers/md/dm-ebs-target.c (ebs_ctr, ebs_map, ebs_status, ebs_io_hints), drivers/md/dm-table.c
(device_area_is_invalid, which the device's own block size goes into).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dmcore import validate
from dmcore.errors import SpecError
from dmcore.params import U64_MAX
from dmcore.target import Leg, Target

if TYPE_CHECKING:
    from typing import Self

    from hypothesis.strategies import SearchStrategy

    from dmcore.params import Tokens
    from dmcore.ref import Ref
    from dmcore.target import Lookup, Resolve, Space

__all__ = ["Ebs"]

_MOST_EMULATED = 8
_MOST_UNDERLYING = 32768


@dataclass(frozen=True, slots=True, kw_only=True)
class Ebs(Target):
    """A part of a device, with smaller blocks than the device has: what is not whole blocks below is read, changed, written.

    Attributes:
        dev: Device below.
        offset: First sector used on `dev`, 0..2^64-1; a multiple of both blocks.
        emulated: Sectors of a block that the device shows: 1, 2, 4 or 8. The line is a whole number of them.
        underlying: Sectors of a block below: a power of two up to 32768; None for `dev`'s own.

    Raises:
        SpecError: A value that the kernel would refuse (EINVAL): in its constructor, or, what is not whole emulated
            blocks, when it works out the limits of a device's first table; of later ones at resume.
    """

    kernel_name: ClassVar[str] = "ebs"
    kernel_module: ClassVar[str] = "dm-ebs"

    dev: Ref
    offset: int = 0
    emulated: int
    underlying: int | None = None

    def __post_init__(self) -> None:
        validate.ref("dev", self.dev)
        validate.integer("offset", self.offset, 0, U64_MAX, "sectors")
        _check_block("emulated", self.emulated, _MOST_EMULATED)
        if self.offset % self.emulated:
            raise SpecError("offset", self.offset, f"must be a multiple of emulated={self.emulated}")
        if self.underlying is not None:
            _check_block("underlying", self.underlying, _MOST_UNDERLYING)
            if self.offset % self.underlying:
                raise SpecError("offset", self.offset, f"must be a multiple of underlying={self.underlying}")

    def refs(self) -> tuple[Ref, ...]:
        """Return the device below."""
        return (self.dev,)

    def encode(self, resolve: Resolve) -> str:
        """Return `<dev> <offset> <emulated> [<underlying>]`."""
        words = [resolve(self.dev), str(self.offset), str(self.emulated)]
        return " ".join([*words, *([] if self.underlying is None else [str(self.underlying)])])

    @classmethod
    def decode(cls, tokens: Tokens, lookup: Lookup) -> Self:
        """Read `<dev> <offset> <emulated> [<underlying>]`."""
        leg = Leg.decode(tokens, lookup)
        emulated = tokens.wrapping("the emulated block in sectors", bits=16)
        underlying = tokens.wrapping("the block below in sectors", bits=16) if len(tokens) else None
        tokens.done()
        return cls(dev=leg.dev, offset=leg.offset, emulated=emulated, underlying=underlying)

    def check(self, start: int, length: int) -> None:
        """Refuse a line that is not whole blocks."""
        del start
        if length % self.emulated:
            raise SpecError("emulated", self.emulated, f"the line's {length} sectors are not whole blocks")

    @classmethod
    def strategy(cls, space: Space) -> SearchStrategy[Ebs]:
        """Draw any part of a device that is whole blocks, and blocks of up to 4 KiB."""
        from hypothesis import strategies as st

        blocks = st.sampled_from([1, 2, 4, 8])
        shown = st.sampled_from([size for size in (1, 2, 4, 8) if space.length % size == 0])

        @st.composite
        def values(draw: st.DrawFn) -> Ebs:
            leg = draw(space.legs())
            underlying = draw(st.none() | blocks)
            emulated = draw(shown)
            offset = leg.offset - leg.offset % max(underlying or 1, emulated)
            return Ebs(dev=leg.dev, offset=offset, emulated=emulated, underlying=underlying)

        return values()


def _check_block(field: str, value: int, most: int) -> None:
    validate.integer(field, value, 1, most, "sectors")
    if value & (value - 1):
        raise SpecError(field, value, "must be a power of two")
