"""ModelTarget: how one line of a table serves requests, and what it stands in.

A model mirrors the kernel's target: `readinto`, `write`, `discard` and `write_zeroes` are its map function, `status` and
`message` what their names say, `resume` and `postsuspend` the hooks of a table that goes live or away. Work that the
kernel does in the background (a resync, a merge) is done by `settle`, and only there: nothing happens behind a test's
back.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from dmcore.model.block import ZERO_PAGE, BlockDevice, fault, pieces, zeros
from dmcore.target import NO_FEATURES, Features, Target
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from dmcore.model.clock import Clock
    from dmcore.ref import Ref

__all__ = ["Area", "Context", "ModelTarget"]

T = TypeVar("T", bound=Target)


@dataclass(slots=True, kw_only=True)
class Context:
    """What a line of a table stands in.

    Attributes:
        start: The line's first sector of the device.
        length: Its sectors.
        block_size: Logical block size in bytes: the largest of all devices below.
        open: Gives the disk for a device below.
        clock: The stack's time.
        features: The kernel to behave as, where kernels differ: names as in `Target.features`.
        event: Raises an event of the device (its number grows, waiters wake).
        random: The stack's source of chance.
        readonly: The table is loaded read-only.
        keys: Payloads of keys that tables name in a keyring, by `type:description` or by description.
        shared: What lines of all tables of the stack keep for each other, by the device at which they meet.
    """

    start: int
    length: int
    block_size: int
    open: Callable[[Ref], BlockDevice]
    clock: Clock
    features: Features = NO_FEATURES
    event: Callable[[], None] = lambda: None
    random: Random = field(default_factory=lambda: Random(0))  # noqa: S311 - chance that repeats
    readonly: bool = False
    keys: Mapping[str, bytes] = field(default_factory=dict[str, bytes], repr=False)
    shared: dict[BlockDevice, list[Any]] = field(default_factory=dict["BlockDevice", "list[Any]"])


class Area(NamedTuple):
    """Sectors that a line uses of a device below; they must lie on it, in whole logical blocks."""

    device: BlockDevice
    start: int
    length: int


class ModelTarget(ABC, Generic[T]):
    """One line of a live table. Sectors count from the line's start; requests lie within the line.

    `__init__` is the kernel's constructor: it opens what is below, reads metadata and may refuse. A subclass sets:

    Attributes:
        max_io_len: Reads and writes are cut at multiples of this many sectors (0: nowhere), as `dm_set_target_max_io_len`.

    Raises:
        OSError: In a constructor: the kernel's constructor fails with that errno.
        SpecError, FormatError: The same, with the reason.
    """

    max_io_len: int = 0

    def __init__(self, target: T, context: Context) -> None:
        self.target = target
        self.context = context
        self.lower: tuple[BlockDevice, ...] = tuple(context.open(ref) for ref in target.refs())

    @property
    def areas(self) -> Iterable[Area]:
        """What must lie on the devices below, which give the device its limits (the kernel's iterate_devices)."""
        return ()

    @property
    def block_size(self) -> int:
        """Bytes of the logical block that the line asks for (the kernel's io_hints); the device's is the largest of all."""
        return SECTOR

    @property
    def largest_block(self) -> int:
        """Bytes of the largest logical block of the line and of the devices it takes its limits from."""
        return max([self.block_size, *(device.block_size for device in self.limiting)])

    @property
    def flushed(self) -> Iterable[BlockDevice]:
        """The devices a flush goes to; all below, each once."""
        return dict.fromkeys(self.lower)

    @property
    def limiting(self) -> Iterable[BlockDevice]:
        """The devices that the dm device takes its limits from: those of `areas`, all below where there are none."""
        return dict.fromkeys(area.device for area in self.areas) or self.lower

    @property
    def write_cache(self) -> bool:
        """Whether flushes matter to this line; a device without a line they matter to gets none.

        Since 6.11 every device has the write cache of one below, also where its own line takes no flushes: known by the feature
        "error.discard", which is older, but which 6.1 lacks. Sources: drivers/md/dm-table.c (dm_table_supports_flush),
        block/blk-settings.c (blk_stack_limits, BLK_FEAT_INHERIT_MASK).
        """
        takes = any(True for _ in self.flushed) or "error.discard" in self.context.features
        return takes and any(device.write_cache for device in self.limiting)

    @property
    def discards(self) -> bool:
        """Whether the line takes discards; a device takes them if all its lines do."""
        return False

    @property
    def discard_granularity(self) -> int:
        """Bytes of the smallest range that a discard can free; the device's is the largest of all lines."""
        return max([SECTOR, *(device.discard_granularity for device in self.limiting)])

    @property
    def zeroes_natively(self) -> bool:
        """Whether the line has write-zeroes as an operation; elsewhere zeros are written."""
        return False

    @property
    def tag_size(self) -> int:
        """Bytes of the tags that the line keeps for the layer above (0: none); see `BlockDevice`."""
        return 0

    @property
    def tag_interval(self) -> int:
        """Bytes of data that each of them is for."""
        return 0

    def readinto_tagged(self, sector: int, buffer: memoryview, tags: memoryview, flags: int) -> None:
        """Read data with their tags; called only where `tag_size` holds, in whole intervals."""
        del sector, buffer, tags, flags
        raise fault(errno.EOPNOTSUPP)

    def write_tagged(self, sector: int, data: memoryview, tags: memoryview, flags: int) -> None:
        """Write data with their tags; called only where `tag_size` holds, in whole intervals."""
        del sector, data, tags, flags
        raise fault(errno.EOPNOTSUPP)

    @abstractmethod
    def readinto(self, sector: int, buffer: memoryview, flags: int) -> None:
        """Fill `buffer` from `sector` of the line on; raises OSError for a failed request."""

    @abstractmethod
    def write(self, sector: int, data: memoryview, flags: int) -> None:
        """Write `data` from `sector` of the line on; raises OSError for a failed request."""

    def flush(self) -> None:
        """Flush what is below; all of it, also past a failure."""
        failed: OSError | None = None
        for device in self.flushed:
            try:
                device.flush()
            except OSError as error:
                failed = error
        if failed is not None:
            raise failed

    def discard(self, sector: int, count: int) -> None:
        """Discard a range; called only where `discards` holds."""
        del sector, count
        raise fault(errno.EOPNOTSUPP)

    def write_zeroes(self, sector: int, count: int) -> None:
        """Zero a range; by default as writes of zeros."""
        for piece in pieces(sector, count, ZERO_PAGE // SECTOR):
            self.write(piece.sector, zeros(piece.length * SECTOR), 0)

    def status(self) -> str:
        """Return the INFO text ("" for a target that has none), as the kernel prints it."""
        return ""

    def params(self) -> str:
        """Return the TABLE text; what the loaded value reads back as, unless the target changed since."""
        context = self.context
        readback = self.target.readback(context.features)
        return readback.encode(lambda ref: context.open(ref).word or ref.name)

    def data_extents(self) -> Iterable[tuple[int, int]]:
        """Yield `(sector, count)` of all of the line that may read as something else than zeros, in order."""
        return [(0, self.context.length)]

    def message(self, words: list[str]) -> str:
        """Take a message, its words already split; return the reply ("" for none).

        Raises:
            OSError: EINVAL for a message the target does not know, and whatever else the kernel answers.
        """
        del words
        raise fault(errno.EINVAL)

    def preresume(self) -> None:
        """Prepare to go live; OSError keeps the device suspended."""

    def resume(self) -> None:
        """Go live."""

    def presuspend(self) -> None:
        """Prepare to go away or to pause; `settle` is not implied."""

    def postsuspend(self) -> None:
        """Pause: all requests are done."""

    def settle(self) -> None:
        """Finish all background work that the kernel would finish if one waited long enough."""

    def close(self) -> None:
        """End: the table is destroyed (the kernel's destructor). The devices below are closed by their owner."""
