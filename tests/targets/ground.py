"""What generated lines of a target stand on.

A test file `test_NAME.py` may define `ground(lab)`, a context manager that gives a `Ground` of its own, for a target whose
constructor looks at what is on its devices.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

from dmcore.abi.dm import TableLine
from dmcore.kernel.block import BlockFile
from dmcore.ref import Ref
from dmcore.table import Table
from dmcore.target import Target
from dmcore.targets.dust import AddBadBlock, Enable, Quiet


class Ground:
    """The lab's disks, as they are: enough for a target that reads nothing when it is loaded.

    Attributes:
        lab: The lab.
        refs: Devices that lines may name, with their sizes in sectors.
        fresh: Load every line on a new device: the kind of a device's first table would bind those that follow.
    """

    fresh = False

    def __init__(self, lab) -> None:
        self.lab = lab
        self.refs: dict[Ref, int] = {
            ref: disk.size // 512 for ref, disk in zip(lab.refs, lab.disks, strict=True)
        }

    def prepare(self, line: TableLine) -> None:
        """Make the devices fit for loading `line`."""

    def fits(self, target: Target, length: int) -> bool:
        """Whether the devices are large enough for it, which the library cannot know."""
        return True

    def printed(self, table: Table) -> Table:
        """Return what the kernel will print: the readback, where that does not depend on the devices."""
        return table.readback(self.lab.features)

    def later(self, line: TableLine) -> bool:
        """Whether the kernel refuses the line only when it is resumed, unlike the library."""
        return False


class Blank(Ground):
    """Disks of zeros before every load: for targets that format their metadata device at the first load."""

    def prepare(self, line: TableLine) -> None:
        self.lab.wipe()


@contextlib.contextmanager
def plain(lab) -> Iterator[Ground]:
    yield Ground(lab)


@contextlib.contextmanager
def blank(lab) -> Iterator[Ground]:
    yield Blank(lab)


def check_offline(tool: str, path) -> None:
    """Let an offline checker look at a metadata device."""
    run = subprocess.run([tool, str(path)], capture_output=True, text=True, timeout=30, check=False)
    assert run.returncode == 0, f"{tool}: {run.stdout}{run.stderr}"


def fail_next_writes(dust, below, blocks: int) -> None:
    """Let the next write to each block of 4 KiB that is still blank fail: what is there can be read on."""
    with BlockFile(below) as file:
        blank = [block for block in range(blocks) if not any(file.read(4096 * block, 4096))]
    dust.send(Quiet())
    for block in blank:
        dust.send(AddBadBlock(block, write_failures=1))
    dust.send(Enable())
