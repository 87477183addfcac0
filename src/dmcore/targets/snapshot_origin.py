"""snapshot-origin: a device whose old content its snapshots keep.

Sources: drivers/md/dm-snap.c (origin_ctr, origin_map, origin_resume, origin_status).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dmcore import validate
from dmcore.target import Target
from dmcore.targets._snapshot import SnapshotParams

if TYPE_CHECKING:
    from typing import Self

    from hypothesis.strategies import SearchStrategy

    from dmcore.params import Tokens
    from dmcore.ref import Ref
    from dmcore.target import Lookup, Resolve, Space

__all__ = ["SnapshotOrigin"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotOrigin(Target):
    """All of `dev`; before a write changes a chunk, every active snapshot of `dev` that lacks it copies the old content.

    Writes to `dev` itself do not pass here and spoil the snapshots. The device learns how its snapshots divide it into
    chunks when it is resumed: suspend it before a snapshot is made or changed, and resume it after the snapshot. A write
    for which a snapshot has no room succeeds and makes that snapshot invalid. Discards are not supported (EOPNOTSUPP).
    Sectors are not moved: the line begins at sector 0 of the device and of `dev`.

    Attributes:
        dev: Device below.

    Raises:
        SpecError: Not a device.
    """

    kernel_name: ClassVar[str] = "snapshot-origin"
    kernel_module: ClassVar[str] = "dm-snapshot"

    dev: Ref

    def __post_init__(self) -> None:
        validate.ref("dev", self.dev)

    def refs(self) -> tuple[Ref, ...]:
        """Return the device below."""
        return (self.dev,)

    def serves(self, other: Target) -> bool:
        """Whether it is a snapshot of the device, or the merge of one."""
        return isinstance(other, SnapshotParams) and other.origin == self.dev

    def encode(self, resolve: Resolve) -> str:
        """Return `<dev>`."""
        return resolve(self.dev)

    @classmethod
    def decode(cls, tokens: Tokens, lookup: Lookup) -> Self:
        """Read `<dev>`."""
        dev = lookup(tokens.word("a device"))
        tokens.done()
        return cls(dev=dev)

    @classmethod
    def strategy(cls, space: Space) -> SearchStrategy[SnapshotOrigin]:
        """Draw any device that is large enough."""
        from hypothesis import strategies as st

        return st.builds(SnapshotOrigin, dev=space.devices())
