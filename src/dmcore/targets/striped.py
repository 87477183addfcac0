"""striped: chunks dealt out to several devices in turn (RAID 0).

Sources: drivers/md/dm-stripe.c (stripe_ctr, get_stripe, stripe_map, stripe_end_io, stripe_status).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dmcore import validate
from dmcore.errors import SpecError
from dmcore.params import U32_MAX, Tokens
from dmcore.ref import Ref
from dmcore.target import Leg, Status, Target

if TYPE_CHECKING:
    from typing import Self

    from hypothesis.strategies import SearchStrategy

    from dmcore.target import Lookup, Resolve, Space

__all__ = ["StripeHealth", "Striped", "StripedStatus"]


@dataclass(frozen=True, slots=True)
class StripeHealth:
    """One leg in the status.

    Attributes:
        dev: The device, as "major:minor".
        failed: Whether a request to it failed since the table was loaded.
    """

    dev: Ref
    failed: bool


@dataclass(frozen=True, slots=True)
class StripedStatus(Status):
    """Status of a striped target.

    Attributes:
        legs: Each leg's health, in the order of the table. A device that serves several legs fails in all of them.
    """

    legs: tuple[StripeHealth, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Striped(Target):
    """Chunk i of the device lies on leg `i % n`, at chunk `i // n` of the leg.

    Attributes:
        chunk: Sectors of a chunk, 1..2^32-1; it need not be a power of two.
        legs: The devices and where their parts begin, at least one. Each serves `length / n` sectors.

    Raises:
        SpecError: A value the kernel's constructor would refuse (EINVAL).
    """

    kernel_name: ClassVar[str] = "striped"
    kernel_module: ClassVar[str] = "dm-mod"

    chunk: int
    legs: tuple[Leg, ...]

    def __post_init__(self) -> None:
        validate.integer("chunk", self.chunk, 1, U32_MAX, "sectors")
        validate.instance("legs", self.legs, tuple, "(Leg(Ref('7:0')), Leg(Ref('7:1')))")
        if not self.legs:
            raise SpecError("legs", self.legs, "must have at least one leg")
        for index, leg in enumerate(self.legs):
            validate.instance(f"legs[{index}]", leg, Leg, "Leg(Ref('7:0'), 2048)")

    def refs(self) -> tuple[Ref, ...]:
        """Return the legs' devices."""
        return tuple(leg.dev for leg in self.legs)

    def encode(self, resolve: Resolve) -> str:
        """Return `<n> <chunk> (<dev> <offset>)*n`."""
        return " ".join([f"{len(self.legs)} {self.chunk}", *(leg.encode(resolve) for leg in self.legs)])

    @classmethod
    def decode(cls, tokens: Tokens, lookup: Lookup) -> Self:
        """Read `<n> <chunk> (<dev> <offset>)*n`."""
        count = tokens.strict("the number of stripes")
        if not count:
            raise tokens.error("at least one stripe", back=1)
        chunk = tokens.strict("the chunk size in sectors")
        if len(tokens) != 2 * count:
            raise tokens.error(f"{count} times device and offset")
        return cls(chunk=chunk, legs=tuple(Leg.decode(tokens, lookup) for _ in range(count)))

    def check(self, start: int, length: int) -> None:
        """Refuse a length that is not a whole number of chunks on every leg."""
        del start
        per_leg, rest = divmod(length, len(self.legs))
        if rest:
            raise SpecError("legs", len(self.legs), f"the line's {length} sectors cannot be divided by it")
        if per_leg % self.chunk:
            raise SpecError(
                "chunk", self.chunk, f"each leg's {per_leg} sectors are not a whole number of chunks"
            )

    def parse_status(self, text: str) -> StripedStatus:
        """Read `<n> <dev>*n 1 <A or D>*n`."""
        tokens = Tokens(text, target=self.kernel_name)
        count = tokens.strict("the number of stripes")
        devices = [Ref(tokens.word("a stripe's device")) for _ in range(min(count, len(tokens)))]
        tokens.keyword("1")
        letters = tokens.word("a letter per stripe")
        if len(letters) != count or set(letters) - set("AD"):
            raise tokens.error(f"{count} letters A or D", back=1)
        tokens.done()
        legs = zip(devices, letters, strict=True)
        return StripedStatus(tuple(StripeHealth(dev, letter == "D") for dev, letter in legs))

    @classmethod
    def strategy(cls, space: Space) -> SearchStrategy[Striped]:
        """Draw up to 5 legs, and a chunk that fits the line's length."""
        from hypothesis import strategies as st

        counts = [legs for legs in range(1, 6) if space.length % legs == 0]

        @st.composite
        def values(draw: st.DrawFn) -> Striped:
            count = draw(st.sampled_from(counts))
            per_leg = space.length // count
            chunks = [chunk for chunk in range(1, per_leg + 1) if per_leg % chunk == 0]
            legs = [draw(space.legs(per_leg)) for _ in range(count)]
            return Striped(chunk=draw(st.sampled_from(chunks)), legs=tuple(legs))

        return values()
