"""Integrity: a disk that notices changed bytes below."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dmcore import targets
from dmcore.errors import SpecError
from dmcore.table import Table
from dmcore.targets.integrity import Algorithm, IntegrityStatus, Mode
from dmcore.units import SECTOR
from pytest_dm.devices.base import DmDevice
from pytest_dm.devices.waiting import PATIENCE, kernel_word, state_of, wait_until

if TYPE_CHECKING:
    from pytest_dm.devices.base import Disk
    from pytest_dm.factory import Dm

__all__ = ["Integrity"]

_PROBE = 8
"""Sectors of the device that only formats, as integritysetup does: the kernel then says how many it provides."""


class Integrity(DmDevice):
    """A disk with a tag for each block: reading one that does not match fails with EILSEQ.

    It is formatted, and with `recalculate` its unwritten blocks become good in the background: `wait_recalculated`.

    Attributes:
        lower: The disk with the data, sector for sector if there is a `metadata` disk.
        metadata: The disk with tags and journal; None if they are between the data on `lower`.
        mode: How writes are made durable with their tags.
    """

    def __init__(
        self,
        maker: Dm,
        lower: Disk,
        metadata: Disk | None,
        *,
        mode: Mode | str,
        internal_hash: str | None,
        words: dict[str, Any],
    ) -> None:
        self.metadata = metadata
        self.mode = kernel_word("mode", Mode, mode)
        value = targets.Integrity(
            dev=lower.ref,
            mode=self.mode,
            meta_device=None if metadata is None else metadata.ref,
            internal_hash=None if internal_hash is None else Algorithm(internal_hash),
            **words,
        )
        probe = maker.make(Table.of(value, max(_PROBE, value.block_size // SECTOR)), "integrity-format")
        try:
            (status,) = probe.status()
        finally:
            probe.remove()
        assert isinstance(status, IntegrityStatus), status
        length = status.provided_sectors - status.provided_sectors % (value.block_size // SECTOR)
        super().__init__(maker, Table.of(value, length), label="integrity", lower=lower)

    @property
    def state(self) -> IntegrityStatus:
        """What the kernel says of it: mismatches, sectors, and how far recalculation is."""
        return state_of(self, IntegrityStatus)

    @property
    def mismatches(self) -> int:
        """Blocks that did not match their tag since the table was loaded."""
        return self.state.mismatches

    def wait_recalculated(self, timeout: float = PATIENCE) -> None:
        """Wait until every block has its tag.

        Raises:
            DmError: That is not so after `timeout` seconds, or nothing recalculates.
        """
        wait_until(self, "recalculated", lambda: self._recalculated, timeout)

    @property
    def _recalculated(self) -> bool:
        status = self.state
        return status.recalculated is not None and status.recalculated >= status.provided_sectors

    def corrupt(self, offset: int, length: int = 1) -> None:
        """Flip all bits of `length` bytes at `offset` below, behind the tags' back; reads of those blocks then fail.

        What a journal still holds is written to its place first.

        Raises:
            SpecError: Past the end, or tags and data share a disk, where the place is not known.
        """
        if self.metadata is None:
            raise SpecError(
                "offset", offset, "tags lie between the data: make the device with a metadata disk"
            )
        assert self.lower is not None
        if self.mode is Mode.JOURNAL:
            with self.device.suspended():
                pass
        flip(self.lower, offset, length, self.size)
        self.forget_cached()


def flip(disk: Disk, offset: int, length: int, end: int) -> None:
    """Flip all bits of `length` bytes at `offset`, which need not be whole blocks.

    Raises:
        SpecError: Not below `end`.
    """
    if offset < 0 or length < 1 or offset + length > end:
        raise SpecError("offset", offset, f"{length} bytes from there are not within {end} bytes")
    with disk.open() as file:
        block = file.block_size
        first = offset - offset % block
        last = -(-(offset + length) // block) * block
        data = bytearray(file.read(first, last - first))
        for at in range(offset - first, offset - first + length):
            data[at] ^= 0xFF
        file.write(first, data)
        file.flush()
