"""Era: a disk that knows when each of its blocks was written last."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from dmcore import targets
from dmcore.errors import DmError
from dmcore.table import Table
from dmcore.targets.era import Checkpoint, DropMetadataSnap, EraStatus, TakeMetadataSnap
from dmcore.units import SECTOR
from pytest_dm.devices.base import DmDevice
from pytest_dm.devices.waiting import state_of
from pytest_dm.runtime import check_tool

if TYPE_CHECKING:
    from pytest_dm.devices.base import Disk
    from pytest_dm.devices.flakey import Flakey
    from pytest_dm.factory import Dm

__all__ = ["Era"]

_TOOL = "era_invalidate"
_TIMEOUT = 60.0


class Era(DmDevice):
    """A disk, and the era in which each block was written last; eras end with `checkpoint` and at every suspend.

    Attributes:
        lower: The disk with the data.
        metadata: The device with the record, healthy at first, with the verbs of `flakey`.
        era_block_size: Bytes of a block.
    """

    def __init__(self, maker: Dm, lower: Disk, metadata: Flakey, *, block_sectors: int) -> None:
        self.metadata = metadata
        self.era_block_size = block_sectors * SECTOR
        value = targets.Era(metadata=metadata.ref, origin=lower.ref, block_sectors=block_sectors)
        super().__init__(maker, Table.of(value, lower.size // SECTOR), label="era", lower=lower)

    @property
    def state(self) -> EraStatus:
        """What the kernel says of it: use of the metadata, the present era, the metadata snapshot."""
        return state_of(self, EraStatus)

    @property
    def era(self) -> int:
        """The present era: blocks written from now on belong to it."""
        return self.state.era

    def checkpoint(self) -> int:
        """End the present era; returns the one that begins: `written_since` it tells what comes after this call."""
        self.device.send(Checkpoint())
        return self.era

    def written_since(self, era: int) -> tuple[range, ...]:
        """Return the blocks that were written in `era` or later, as ascending ranges of block numbers.

        Asks `era_invalidate` about a metadata snapshot, which ends the present era too.

        Raises:
            Unsupported: The program is not installed.
            DmError: It failed, or said something else than a list of blocks.
        """
        program = check_tool(_TOOL)
        self.device.send(TakeMetadataSnap())
        try:
            command = [
                str(program),
                "--metadata-snapshot",
                "--written-since",
                str(era),
                str(self.metadata.path),
            ]
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        finally:
            self.device.send(DropMetadataSnap())
        if done.returncode:
            message = f"{_TOOL}: exit status {done.returncode}\n{done.stdout}{done.stderr}".rstrip()
            raise DmError(message)
        return _ranges(done.stdout)


def _ranges(text: str) -> tuple[range, ...]:
    try:
        found: list[range] = []
        for element in ET.fromstring(text):  # noqa: S314 - of a program of this machine
            if element.tag == "block":
                block = int(element.attrib["block"])
                found.append(range(block, block + 1))
            else:
                found.append(range(int(element.attrib["begin"]), int(element.attrib["end"])))
    except (ET.ParseError, KeyError, ValueError) as error:
        message = f"{_TOOL} printed something else than blocks: {text[:200]!r}"
        raise DmError(message) from error
    return tuple(found)
