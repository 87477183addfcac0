"""dust: bad blocks that heal when they are written. Sources: drivers/md/dm-dust.c (dust_map, dust_message, dust_status)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from dmcore.errors import ParseError
from dmcore.model.block import fault
from dmcore.model.target import Area, ModelTarget
from dmcore.params import U64_MAX, Tokens, quote
from dmcore.targets.dust import Dust
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dmcore.model.target import Context

__all__ = ["MODEL"]

_MOST_FAILURES = 255


class _Dust(ModelTarget[Dust]):
    def __init__(self, target: Dust, context: Context) -> None:
        super().__init__(target, context)
        (self._dev,) = self.lower
        self.max_io_len = target.block_size // SECTOR
        self._offset = target.offset
        self._bad: dict[int, int] = {}
        self._enabled = False
        self._quiet = False

    @property
    def areas(self) -> Iterable[Area]:
        """The part used."""
        return (Area(self._dev, self._offset, self.context.length),)

    @property
    def discards(self) -> bool:
        """Whether the device below takes them."""
        return self._dev.discards

    def _check_write(self, lower: int) -> None:
        """Let a write that begins at a sector of the device below fail, or heal the block there."""
        block = lower // self.max_io_len
        failures = self._bad.get(block) if self._enabled else None
        if failures:
            self._bad[block] = failures - 1
            raise fault(errno.EIO)
        if failures is not None:
            del self._bad[block]

    def readinto(self, sector: int, buffer: memoryview, flags: int) -> None:
        """Read below; EIO where the block of the first sector is listed."""
        lower = self._offset + sector
        if self._enabled and lower // self.max_io_len in self._bad:
            raise fault(errno.EIO)
        self._dev.readinto(lower, buffer, flags)

    def write(self, sector: int, data: memoryview, flags: int) -> None:
        """Write below, which heals the block of the first sector, or is one of its failures."""
        lower = self._offset + sector
        self._check_write(lower)
        self._dev.write(lower, data, flags)

    def discard(self, sector: int, count: int) -> None:
        """Discard below; for the list it is a write to the first block."""
        lower = self._offset + sector
        self._check_write(lower)
        self._dev.discard(lower, count)

    def flush(self) -> None:
        """Flush below; for the list it is a write to the block at the device's sector 0, wherever that maps to."""
        self._check_write((self._offset - self.context.start) & U64_MAX)
        super().flush()

    def status(self) -> str:
        """Return the device below, `bypass` or `fail_read_on_bad_block`, and `verbose` or `quiet`."""
        mode = "fail_read_on_bad_block" if self._enabled else "bypass"
        return f"{self._dev.word} {mode} {'quiet' if self._quiet else 'verbose'}"

    def message(self, words: list[str]) -> str:
        """Take `addbadblock`, `removebadblock`, `queryblock`, `countbadblocks` ...: the kernel's words in any case."""
        verb, *numbers = words
        if not numbers:
            return self._say(verb.lower())
        if len(numbers) > 2:
            raise fault(errno.EINVAL)
        block = _number(numbers[0], 64)
        failures = _number(numbers[1], 32) if len(numbers) == 2 else None
        if (failures or 0) > _MOST_FAILURES or block > self._dev.sectors // self.max_io_len:
            raise fault(errno.EINVAL)
        return self._about(verb.lower(), block, failures)

    def _say(self, verb: str) -> str:
        """Take a message of one word."""
        if verb in {"enable", "disable"}:
            self._enabled = verb == "enable"
            return ""
        if verb == "quiet":
            self._quiet = not self._quiet
            return ""
        if verb == "countbadblocks":
            return f"countbadblocks: {len(self._bad)} badblock(s) found"
        if verb == "listbadblocks":
            return "".join(f"{block}\n" for block in sorted(self._bad)) or "No blocks in badblocklist"
        if verb == "clearbadblocks":
            had = bool(self._bad)
            self._bad.clear()
            return f"dust_clear_badblocks: {'badblocks cleared' if had else 'no badblocks found'}"
        raise fault(errno.EINVAL)

    def _about(self, verb: str, block: int, failures: int | None) -> str:
        """Take a message about a block."""
        listed = block in self._bad
        if verb == "addbadblock" and not listed:
            self._bad[block] = failures or 0
            return ""
        if verb == "removebadblock" and failures is None and listed:
            del self._bad[block]
            return ""
        if verb == "queryblock" and failures is None:
            return f"dust_query_block: block {block} {'found' if listed else 'not found'} in badblocklist"
        raise fault(errno.EINVAL)


def _number(word: str, bits: int) -> int:
    try:
        return Tokens(quote(word)).wrapping("a number", bits=bits)
    except ParseError as error:
        raise fault(errno.EINVAL) from error


MODEL = _Dust
