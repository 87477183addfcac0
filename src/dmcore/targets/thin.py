"""thin: a device that takes its blocks from a thin-pool as it is written.

Sources: drivers/md/dm-thin.c (thin_ctr, thin_status, thin_preresume).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dmcore import validate
from dmcore.errors import SpecError
from dmcore.params import Tokens
from dmcore.target import Status, Target
from dmcore.targets._persistent import Failed, Unreadable, given_up, number_or_dash

if TYPE_CHECKING:
    from typing import Self

    from hypothesis.strategies import SearchStrategy

    from dmcore.ref import Ref
    from dmcore.target import Lookup, Resolve, Space

__all__ = ["Failed", "Thin", "ThinStatus", "Unreadable"]

_MAX_DEV_ID = 2**24 - 1


@dataclass(frozen=True, slots=True)
class ThinStatus(Status):
    """Status of a thin device.

    Attributes:
        mapped: Sectors that have blocks, in whole blocks: may be more than the device's length.
        highest: Last sector that has a block, which may lie behind the device's end; None if there is none.
    """

    mapped: int
    highest: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Thin(Target):
    """A device of a pool, made before by `CreateThin` or `CreateSnap`, else ENODATA.

    What was never written reads as zeros, or as the external origin. The length is free, and may be more than the pool
    holds. Two tables may name the same id at once: the kernel lets them, and their users see each other's writes.

    Attributes:
        pool: The device of the pool, which must not be suspended at the load (EINVAL).
        dev_id: Which device of the pool, 0..2^24-1.
        origin: Device outside of the pool that shows where nothing has been written; zeros follow its end. Only read.
            Must not be `pool`.

    Raises:
        SpecError: A value the kernel's constructor would refuse (EINVAL).
    """

    kernel_name: ClassVar[str] = "thin"
    kernel_module: ClassVar[str] = "dm-thin-pool"
    failed: ClassVar[tuple[str, Status] | None] = ("Fail", Failed())

    pool: Ref
    dev_id: int
    origin: Ref | None = None

    def __post_init__(self) -> None:
        validate.ref("pool", self.pool)
        validate.integer("dev_id", self.dev_id, 0, _MAX_DEV_ID)
        if self.origin is not None:
            validate.ref("origin", self.origin)
            if self.origin == self.pool:
                raise SpecError("origin", self.origin, "must not be the pool")

    def refs(self) -> tuple[Ref, ...]:
        """Return the pool, and the external origin if there is one."""
        return (self.pool,) if self.origin is None else (self.pool, self.origin)

    def encode(self, resolve: Resolve) -> str:
        """Return `<pool> <id> [<origin>]`."""
        head = f"{resolve(self.pool)} {self.dev_id}"
        return head if self.origin is None else f"{head} {resolve(self.origin)}"

    @classmethod
    def decode(cls, tokens: Tokens, lookup: Lookup) -> Self:
        """Read `<pool> <id> [<origin>]`."""
        pool = lookup(tokens.word("the pool's device"))
        dev_id = tokens.strict("the device id", bits=64)
        origin = lookup(tokens.word("the external origin")) if len(tokens) else None
        tokens.done()
        return cls(pool=pool, dev_id=dev_id, origin=origin)

    def parse_status(self, text: str) -> ThinStatus | Failed | Unreadable:
        """Read `<mapped> <highest or ->`, "Fail" or "Error"."""
        tokens = Tokens(text, target=self.kernel_name)
        if (end := given_up(tokens)) is not None:
            return end
        status = ThinStatus(
            tokens.strict("the mapped sectors", bits=64), number_or_dash(tokens, "the highest mapped sector")
        )
        tokens.done()
        return status

    @classmethod
    def strategy(cls, space: Space) -> SearchStrategy[Thin]:
        """Draw any device as the pool, any id, and another device or none as the origin."""
        from hypothesis import strategies as st

        def of(pool: Ref) -> SearchStrategy[Thin]:
            others = st.sampled_from([None, *(ref for ref in space.refs if ref != pool)])
            return st.builds(Thin, pool=st.just(pool), dev_id=st.integers(0, _MAX_DEV_ID), origin=others)

        return st.sampled_from(sorted(space.refs, key=str)).flatmap(of)
