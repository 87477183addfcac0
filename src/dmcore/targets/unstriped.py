"""unstriped: one leg's chunks of a device that others have striped, put together again.

Sources: drivers/md/dm-unstripe.c (unstripe_ctr, map_to_core, unstripe_status).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dmcore import validate
from dmcore.errors import SpecError
from dmcore.params import U32_MAX, U64_MAX
from dmcore.target import Target

if TYPE_CHECKING:
    from typing import Self

    from hypothesis.strategies import SearchStrategy

    from dmcore.params import Tokens
    from dmcore.ref import Ref
    from dmcore.target import Lookup, Resolve, Space

__all__ = ["Unstriped"]

_MOST = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Unstriped(Target):
    """Chunk i of the device is chunk `i * stripes + index` of `dev`, counted from `offset`.

    The kernel checks that `offset` and the line's length fit `dev`, not where the last chunk ends up: I/O behind the
    end of `dev` fails with EIO. A flush is not passed on, and discards are not supported (EOPNOTSUPP).

    Attributes:
        stripes: How many legs the chunks of `dev` were dealt out to, 1..2^31-1. (The kernel takes up to 2^32-1 here and
            for `index`, and prints what is above as a negative number, which nobody could load again.)
        chunk: Sectors of a chunk, 1..2^32-1; it need not be a power of two.
        index: Which leg to show, counted from 0. With one stripe any number up to 2^31-1, else at most `stripes`; the
            kernel lets `stripes` itself pass, which shows leg 0 one row further on.
        dev: The device that holds the legs' chunks in turn.
        offset: First sector used on `dev`, 0..2^64-1.

    Raises:
        SpecError: A value the kernel's constructor would refuse (EINVAL), or would print as a negative number.
    """

    kernel_name: ClassVar[str] = "unstriped"
    kernel_module: ClassVar[str] = "dm-unstripe"

    stripes: int
    chunk: int
    index: int
    dev: Ref
    offset: int = 0

    def __post_init__(self) -> None:
        validate.integer("stripes", self.stripes, 1, _MOST)
        validate.integer("chunk", self.chunk, 1, U32_MAX, "sectors")
        validate.integer("index", self.index, 0, _MOST)
        validate.ref("dev", self.dev)
        validate.integer("offset", self.offset, 0, U64_MAX, "sectors")
        if self.stripes > 1 and self.index > self.stripes:
            raise SpecError("index", self.index, f"there are only {self.stripes} stripes")

    def refs(self) -> tuple[Ref, ...]:
        """Return the device below."""
        return (self.dev,)

    def encode(self, resolve: Resolve) -> str:
        """Return `<stripes> <chunk> <index> <dev> <offset>`."""
        return f"{self.stripes} {self.chunk} {self.index} {resolve(self.dev)} {self.offset}"

    @classmethod
    def decode(cls, tokens: Tokens, lookup: Lookup) -> Self:
        """Read `<stripes> <chunk> <index> <dev> <offset>`."""
        stripes = tokens.strict("the number of stripes")
        chunk = tokens.strict("the chunk size in sectors")
        index = tokens.strict("the number of the stripe to show")
        dev = lookup(tokens.word("a device"))
        offset = tokens.wrapping("the first sector on the device")
        tokens.done()
        return cls(stripes=stripes, chunk=chunk, index=index, dev=dev, offset=offset)

    def check(self, start: int, length: int) -> None:
        """Refuse a length that is not a whole number of chunks."""
        del start
        if length % self.chunk:
            raise SpecError(
                "chunk", self.chunk, f"the line's {length} sectors are not a whole number of chunks"
            )

    @classmethod
    def strategy(cls, space: Space) -> SearchStrategy[Unstriped]:
        """Draw any leg of 1 to 9 stripes, and a chunk that fits the line's length."""
        from hypothesis import strategies as st

        chunks = [chunk for chunk in range(1, space.length + 1) if space.length % chunk == 0]

        @st.composite
        def values(draw: st.DrawFn) -> Unstriped:
            leg = draw(space.legs())
            stripes = draw(st.integers(1, 9))
            return Unstriped(
                stripes=stripes,
                chunk=draw(st.sampled_from(chunks)),
                index=draw(st.integers(0, stripes if stripes > 1 else _MOST)),
                dev=leg.dev,
                offset=leg.offset,
            )

        return values()
