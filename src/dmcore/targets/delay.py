"""delay: every request waits before it is sent on.

Sources: drivers/md/dm-delay.c (delay_ctr, delay_map, delay_presuspend, delay_status).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dmcore import validate
from dmcore.errors import SpecError
from dmcore.params import U32_MAX, U64_MAX, Tokens
from dmcore.target import Leg, Status, Target

if TYPE_CHECKING:
    from typing import Self

    from hypothesis.strategies import SearchStrategy

    from dmcore.ref import Ref
    from dmcore.target import Lookup, Resolve, Space

__all__ = ["Delay", "DelayStatus", "Delayed"]


@dataclass(frozen=True, slots=True)
class Delayed:
    """Where one class of requests goes, and how long it waits first.

    Attributes:
        dev: Device below.
        offset: First sector used on `dev`, 0..2^64-1.
        ms: Milliseconds, 0..2^32-1; 0 means at once. The kernel rounds to its clock tick (4 ms at HZ=250, 10 ms at
            HZ=100): a request can be sent up to one tick early, and some ticks late.

    Raises:
        SpecError: A value the kernel's constructor would refuse (EINVAL).
    """

    dev: Ref
    offset: int = 0
    ms: int = 0

    def __post_init__(self) -> None:
        validate.ref("dev", self.dev)
        validate.integer("offset", self.offset, 0, U64_MAX, "sectors")
        validate.integer("ms", self.ms, 0, U32_MAX, "milliseconds")

    def encode(self, resolve: Resolve) -> str:
        """Return `<dev> <offset> <ms>`."""
        return f"{resolve(self.dev)} {self.offset} {self.ms}"

    @classmethod
    def decode(cls, tokens: Tokens, lookup: Lookup) -> Delayed:
        """Read `<dev> <offset> <ms>`; numbers wrap as the kernel's do."""
        leg = Leg.decode(tokens, lookup)
        return cls(leg.dev, leg.offset, tokens.wrapping("the delay in milliseconds", bits=32))


@dataclass(frozen=True, slots=True)
class DelayStatus(Status):
    """How many requests wait now.

    Attributes:
        reads: Reads.
        writes: Writes, discards included.
        flushes: Flushes.
    """

    reads: int
    writes: int
    flushes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Delay(Target):
    """Requests wait by their class. A suspend sends on what waits, at once.

    Attributes:
        read: Reads; and all else where nothing is given for it.
        write: Writes and discards; None for the same as reads.
        flush: Flushes, and writes that ask for one first; None for the same as writes. Needs `write`.

    Raises:
        SpecError: A value the kernel's constructor would refuse (EINVAL).
    """

    kernel_name: ClassVar[str] = "delay"
    kernel_module: ClassVar[str] = "dm-delay"

    read: Delayed
    write: Delayed | None = None
    flush: Delayed | None = None

    def __post_init__(self) -> None:
        for field, value in (("read", self.read), ("write", self.write), ("flush", self.flush)):
            if field == "read" or value is not None:
                validate.instance(field, value, Delayed, "Delayed(Ref('7:0'), ms=100)")
        if self.flush is not None and self.write is None:
            raise SpecError("flush", self.flush, "a table with a flush delay has a write delay too")

    @classmethod
    def of(
        cls,
        dev: Ref,
        *,
        read_ms: int,
        write_ms: int | None = None,
        flush_ms: int | None = None,
        offset: int = 0,
    ) -> Self:
        """Return the value for one device below; what is None is delayed as the class before it."""
        if flush_ms is not None and write_ms is None:
            write_ms = read_ms
        return cls(
            read=Delayed(dev, offset, read_ms),
            write=None if write_ms is None else Delayed(dev, offset, write_ms),
            flush=None if flush_ms is None else Delayed(dev, offset, flush_ms),
        )

    def _given(self) -> tuple[Delayed, ...]:
        return tuple(each for each in (self.read, self.write, self.flush) if each is not None)

    def refs(self) -> tuple[Ref, ...]:
        """Return the device of each class that is given."""
        return tuple(each.dev for each in self._given())

    def encode(self, resolve: Resolve) -> str:
        """Return one to three times `<dev> <offset> <ms>`."""
        return " ".join(each.encode(resolve) for each in self._given())

    @classmethod
    def decode(cls, tokens: Tokens, lookup: Lookup) -> Self:
        """Read one to three times `<dev> <offset> <ms>`."""
        count = len(tokens)
        if count not in {3, 6, 9}:
            for _ in tokens:
                pass
            raise tokens.error("3, 6 or 9 words: one to three times device, offset and delay")
        return cls(
            read=Delayed.decode(tokens, lookup),
            write=Delayed.decode(tokens, lookup) if count > 3 else None,
            flush=Delayed.decode(tokens, lookup) if count > 6 else None,
        )

    def parse_status(self, text: str) -> DelayStatus:
        """Read `<reads> <writes> <flushes>`."""
        tokens = Tokens(text, target=self.kernel_name)
        status = DelayStatus(
            *(tokens.strict(f"the number of waiting {kind}") for kind in ("reads", "writes", "flushes"))
        )
        tokens.done()
        return status

    @classmethod
    def strategy(cls, space: Space) -> SearchStrategy[Delay]:
        """Draw every form, with any delays."""
        from hypothesis import strategies as st

        @st.composite
        def values(draw: st.DrawFn) -> Delay:
            def delayed() -> Delayed:
                leg = draw(space.legs())
                return Delayed(leg.dev, leg.offset, draw(st.integers(0, U32_MAX) | st.integers(0, 20)))

            given = draw(st.integers(1, 3))
            return Delay(
                read=delayed(),
                write=delayed() if given > 1 else None,
                flush=delayed() if given > 2 else None,
            )

        return values()
