"""Verity: a read-only disk whose every block is checked against a tree of hashes."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from dmcore import targets, validate
from dmcore.errors import DmError, SpecError, Unsupported
from dmcore.formats.reed_solomon import WORD
from dmcore.formats.verity import Tree
from dmcore.model.block import SYNC, BlockDevice
from dmcore.table import Table
from dmcore.targets.verity import Fec, VerityStatus
from dmcore.units import SECTOR
from dmcore.verity import format_verity
from pytest_dm.devices.base import DmDevice
from pytest_dm.devices.integrity import flip
from pytest_dm.devices.waiting import state_of

if TYPE_CHECKING:
    from pytest_dm.devices.base import Disk
    from pytest_dm.factory import Dm
    from pytest_dm.runtime import OpenDisk

__all__ = ["Verity"]


class _Opened(BlockDevice):
    """An open disk of a test, as the formatter takes it."""

    def __init__(self, disk: Disk, file: OpenDisk) -> None:
        self._file = file
        self.sectors = file.size // SECTOR
        self.block_size = file.block_size
        self.word = disk.name

    def readinto(self, sector: int, buffer: memoryview, flags: int = SYNC) -> None:
        """Read from it."""
        del flags
        buffer[:] = self._file.read(sector * SECTOR, len(buffer))

    def write(self, sector: int, data: memoryview, flags: int = SYNC) -> None:
        """Write to it."""
        del flags
        self._file.write(sector * SECTOR, data)

    def flush(self) -> None:
        """Make what was written durable."""
        self._file.flush()


def _tree(data_blocks: int, block_size: int, algorithm: str, salt: bytes) -> Tree:
    """Return the tree over so many blocks of data.

    Raises:
        SpecError: Not a hash that Python has.
    """
    try:
        return Tree(algorithm=algorithm, hash_block_size=block_size, data_blocks=data_blocks, salt=salt)
    except Unsupported as error:
        raise SpecError("algorithm", algorithm, "Python's hashlib has no such hash") from error


class Verity(DmDevice):
    """A read-only view of `lower` that was formatted from its present content: a changed byte is EIO.

    Attributes:
        lower: The disk with the data; writing to it behind the device's back is what the tree finds.
        hashes: The disk with the tree.
        parity: The disk with what repairs data and tree; None without.
        root: Digest of the tree's top.
    """

    def __init__(
        self,
        maker: Dm,
        lower: Disk,
        hashes: Disk | None,
        *,
        block_size: int,
        algorithm: str,
        salt: bytes | None,
        fec_roots: int | None,
        words: dict[str, Any],
    ) -> None:
        validate.integer("block_size", block_size, SECTOR, 4096, "bytes")
        blocks = lower.size // block_size
        if not blocks:
            raise SpecError("block_size", block_size, f"{lower.name} has {lower.size} bytes")
        if salt is None:
            salt = os.urandom(32)
        tree = _tree(blocks, block_size, algorithm, salt)
        if hashes is None:
            hashes = maker.loop(max(tree.blocks, 1) * block_size, label="tree")
        self.hashes = hashes
        self.parity: Disk | None = None
        if fec_roots is not None:
            validate.integer("fec_roots", fec_roots, 2, 24, "bytes")
            covered = blocks + hashes.size // block_size
            size = -(-covered // (WORD - fec_roots)) * fec_roots * block_size
            self.parity = maker.loop(size, label="parity")
            words = {"fec": Fec(dev=self.parity.ref, start=0, blocks=covered, roots=fec_roots), **words}
        with ExitStack() as stack:
            source = _Opened(lower, stack.enter_context(lower.open(readonly=True)))
            target = _Opened(hashes, stack.enter_context(hashes.open()))
            parity = None
            if self.parity is not None:
                parity = _Opened(self.parity, stack.enter_context(self.parity.open()))
            self.root = format_verity(
                source, target, algorithm=algorithm, data_block_size=block_size, hash_block_size=block_size,
                salt=salt, superblock=False, fec=parity, fec_roots=fec_roots or 2,
            )  # fmt: skip
        self._value = targets.Verity(
            data=lower.ref, hashes=hashes.ref, data_block_size=block_size, hash_block_size=block_size,
            data_blocks=blocks, algorithm=algorithm, root=self.root, salt=salt, **words,
        )  # fmt: skip
        length = blocks * block_size // SECTOR
        super().__init__(maker, Table.of(self._value, length), label="verity", lower=lower)

    @property
    def state(self) -> VerityStatus:
        """What the kernel says of it: whether a block did not match, and what FEC corrected."""
        return state_of(self, VerityStatus)

    @property
    def corrupted(self) -> bool:
        """Whether a block did not match since the table was loaded."""
        return self.state.corrupted

    def corrupt(self, offset: int, length: int = 1) -> None:
        """Flip all bits of `length` bytes of the data at `offset`; reads of those blocks fail from now on.

        Raises:
            SpecError: Past the end.
        """
        assert self.lower is not None
        flip(self.lower, offset, length, self.size)
        self.forget_cached()

    def corrupt_tree(self, block: int = 0) -> None:
        """Flip a byte in a block of the tree; 0 is the top, below which nothing can be read any more.

        Blocks that the kernel has verified already count as good until the device is suspended; this does that.

        Raises:
            SpecError: No such block.
            DmError: There is no tree, the root stands for the only block.
        """
        tree = self._value.tree_blocks
        if not tree:
            message = f"{self.name} has a single block of data, and no tree"
            raise DmError(message)
        size = self._value.hash_block_size
        start = self._value.hash_start * size
        flip(self.hashes, start + block * size, 1, start + tree * size)
        with self.device.suspended():
            pass
        self.forget_cached()
