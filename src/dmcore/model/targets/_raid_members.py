"""The devices of a raid set, and which of them can be read and written. Source: drivers/md/md.c (md_error)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dmcore.formats.raid import DONE
from dmcore.model.block import SYNC
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Callable

    from dmcore.model.block import BlockDevice

__all__ = ["Member", "Members"]


@dataclass(slots=True, kw_only=True)
class Member:
    """One device of a set.

    Attributes:
        index: Its place.
        data: Where its data lie; None if it is missing.
        meta: Where its superblock is kept; None if nowhere.
        offset: First sector of its data.
        faulty: It failed, and is not used any more.
        in_sync: Its content is what it should be.
        write_mostly: It is read only if no other can be.
    """

    index: int
    data: BlockDevice | None
    meta: BlockDevice | None = None
    offset: int = 0
    faulty: bool = False
    in_sync: bool = True
    write_mostly: bool = False

    @property
    def there(self) -> bool:
        """Whether it can be written."""
        return self.data is not None and not self.faulty

    @property
    def readable(self) -> bool:
        """Whether it can be read."""
        return self.there and self.in_sync

    @property
    def recovery_offset(self) -> int:
        """Up to where its content was made, as the superblock tells it."""
        return DONE if self.in_sync and not self.faulty else 0

    def readinto(self, sector: int, buffer: memoryview, flags: int = SYNC) -> None:
        """Read data; `sector` counts from its first one."""
        assert self.data is not None
        self.data.readinto(self.offset + sector, buffer, flags)

    def read(self, sector: int, count: int) -> bytes:
        """Return data."""
        buffer = bytearray(count * SECTOR)
        self.readinto(sector, memoryview(buffer))
        return bytes(buffer)

    def write(self, sector: int, data: bytes | memoryview, flags: int = SYNC) -> None:
        """Write data."""
        assert self.data is not None
        self.data.write(self.offset + sector, memoryview(data), flags)


class Members(list[Member]):
    """All devices of a set, in order.

    Attributes:
        failed: Called with a device that has just failed.
    """

    def __init__(self, members: list[Member], failed: Callable[[Member], None]) -> None:
        super().__init__(members)
        self.failed = failed

    def fail(self, member: Member) -> None:
        """Use a device no longer."""
        if member.there:
            member.faulty, member.in_sync = True, False
            self.failed(member)

    @property
    def degraded(self) -> int:
        """How many devices cannot be read."""
        return sum(not member.readable for member in self)
