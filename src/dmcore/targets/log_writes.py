"""log-writes: a linear device that logs what becomes durable, and when, on a second device.

Sources: drivers/md/dm-log-writes.c (log_writes_ctr, log_writes_map, log_mark, log_writes_status). The log's format
and a reader: `dmcore.formats.log_writes`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dmcore import validate
from dmcore.errors import SpecError
from dmcore.params import Tokens, quote
from dmcore.target import Silent, Status, Target
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from typing import Self

    from hypothesis.strategies import SearchStrategy

    from dmcore.ref import Ref
    from dmcore.target import Lookup, Resolve, Space

__all__ = ["LogWrites", "LogWritesStatus", "Mark"]

_HEADER = 32
_DISABLED = "logging_disabled"


@dataclass(frozen=True, slots=True)
class LogWritesStatus(Status):
    """Status of a log-writes target.

    Attributes:
        entries: Entries logged so far; the log's own super block lags behind.
        highest_sector: Last sector of the log device that is used.
        disabled: Whether logging has stopped, because the log is full or could not be written. Data still passes.
    """

    entries: int
    highest_sector: int
    disabled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LogWrites(Target):
    """Requests go to `dev` at the same sector they have on this device: such a line should start at sector 0.

    A write is logged when it is durable: when a flush that came after it is done, or by itself if it was a FUA write. At
    removal, or when another table takes its place, what no flush covered is logged, then the mark "dm-log-writes-end".
    The log is overwritten from its beginning with each load.

    Attributes:
        dev: Device below, for the data.
        log: Device for the log. Its logical block size should not exceed that of `dev`.

    Raises:
        SpecError: Not devices.
    """

    kernel_name: ClassVar[str] = "log-writes"
    kernel_module: ClassVar[str] = "dm-log-writes"

    dev: Ref
    log: Ref

    def __post_init__(self) -> None:
        validate.ref("dev", self.dev)
        validate.ref("log", self.log)

    def refs(self) -> tuple[Ref, ...]:
        """Return data and log device."""
        return (self.dev, self.log)

    def encode(self, resolve: Resolve) -> str:
        """Return `<dev> <log>`."""
        return f"{resolve(self.dev)} {resolve(self.log)}"

    @classmethod
    def decode(cls, tokens: Tokens, lookup: Lookup) -> Self:
        """Read `<dev> <log>`; more words are ignored, as every kernel does."""
        value = cls(dev=lookup(tokens.word("the data device")), log=lookup(tokens.word("the log device")))
        for _ in tokens:
            pass
        return value

    def parse_status(self, text: str) -> LogWritesStatus:
        """Read `<entries> <highest sector>[ logging_disabled]`."""
        tokens = Tokens(text, target=self.kernel_name)
        entries = tokens.strict("the number of entries", bits=64)
        highest = tokens.strict("the highest sector", bits=64)
        disabled = bool(len(tokens)) and tokens.keyword(_DISABLED) == _DISABLED
        tokens.done()
        return LogWritesStatus(entries, highest, disabled)

    @classmethod
    def strategy(cls, space: Space) -> SearchStrategy[LogWrites]:
        """Draw two devices, of which the first is long enough."""
        from hypothesis import strategies as st

        pairs = [
            (dev, log)
            for dev, size in space.refs.items()
            if size >= space.length
            for log in space.refs
            if log != dev
        ]
        return (
            st.sampled_from(pairs).map(lambda pair: cls(dev=pair[0], log=pair[1])) if pairs else st.nothing()
        )


@dataclass(frozen=True, slots=True)
class Mark(Silent):
    """Write a mark into the log, behind all that is durable now. The message returns before the mark is on the log.

    Attributes:
        label: 1 to `sector_size - 33` bytes of UTF-8 without NUL; the kernel would cut longer ones.
        sector_size: Bytes of the log's sectors: the logical block size of `LogWrites.dev`.

    Raises:
        SpecError: A label that would not arrive whole.
    """

    label: str
    sector_size: int = SECTOR

    def __post_init__(self) -> None:
        validate.integer("sector_size", self.sector_size, SECTOR, 1 << 16, "bytes")
        size = len(self.label.encode(errors="surrogateescape"))
        most = self.sector_size - _HEADER - 1
        if not 1 <= size <= most or "\0" in self.label:
            raise SpecError("label", self.label, f"{size} bytes, must be 1..{most} without NUL")

    def encode(self) -> str:
        """Return `mark <label>`, white space and backslashes quoted."""
        return f"mark {quote(self.label)}"
