"""Verity: a read-only disk whose every block is checked against a tree of hashes."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any

from dmcore import targets
from dmcore.errors import DmError, SpecError
from dmcore.table import Table
from dmcore.targets.verity import VerityStatus
from dmcore.units import SECTOR
from pytest_dm.devices.base import DmDevice
from pytest_dm.devices.integrity import flip
from pytest_dm.devices.waiting import state_of

if TYPE_CHECKING:
    from pytest_dm.devices.base import Disk
    from pytest_dm.factory import Dm

__all__ = ["Verity"]

_PIECE = 1 << 20


def _per_block(block_size: int, digest_size: int) -> int:
    """Return how many digests a block of the tree holds: a power of two, each in a slot of its own."""
    return 1 << ((block_size // digest_size).bit_length() - 1)


def _tree_size(data_size: int, block_size: int, algorithm: str) -> int:
    """Return the bytes of the tree over `data_size` bytes, at least one block's.

    Raises:
        SpecError: Not a hash that Python has.
    """
    per_block = _per_block(block_size, _hash(algorithm).digest_size)
    blocks, total = data_size // block_size, 0
    while blocks > 1:
        blocks = -(-blocks // per_block)
        total += blocks
    return max(total, 1) * block_size


def _hash(algorithm: str, data: bytes = b"") -> hashlib._Hash:  # pyright: ignore[reportPrivateUsage] - the type has no other name
    try:
        return hashlib.new(algorithm, data, usedforsecurity=False)
    except ValueError as error:
        raise SpecError("algorithm", algorithm, "Python's hashlib has no such hash") from error


def _write_tree(data: Disk, hashes: Disk, size: int, algorithm: str, salt: bytes) -> bytes:
    """Write the tree (hash type 1: salt in front, digests in slots) over all of `data`'s blocks; return the root."""
    salted = _hash(algorithm, salt)

    def digests(content: bytes) -> list[bytes]:
        found: list[bytes] = []
        for at in range(0, len(content), size):
            one = salted.copy()
            one.update(content[at : at + size])
            found.append(one.digest())
        return found

    level: list[bytes] = []
    piece = max(_PIECE, size)
    with data.open(readonly=True) as file:
        end = data.size - data.size % size
        for at in range(0, end, piece):
            level += digests(file.read(at, min(piece, end - at)))
    per_block = _per_block(size, salted.digest_size)
    slot = size // per_block
    levels: list[bytes] = []
    while len(level) > 1:
        blocks = (
            b"".join(one.ljust(slot, b"\0") for one in level[at : at + per_block]).ljust(size, b"\0")
            for at in range(0, len(level), per_block)
        )
        levels.append(b"".join(blocks))
        level = digests(levels[-1])
    with hashes.open() as file:
        at = 0
        for content in reversed(levels):
            file.write(at, content)
            at += len(content)
        file.flush()
    return level[0]


class Verity(DmDevice):
    """A read-only view of `lower` that was formatted from its present content: a changed byte is EIO.

    Attributes:
        lower: The disk with the data; writing to it behind the device's back is what the tree finds.
        hashes: The disk with the tree.
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
        words: dict[str, Any],
    ) -> None:
        if hashes is None:
            hashes = maker.loop(_tree_size(lower.size, block_size, algorithm), label="tree")
        if salt is None:
            salt = os.urandom(32)
        self.hashes = hashes
        blocks = lower.size // block_size
        if not blocks:
            raise SpecError("block_size", block_size, f"{lower.name} has {lower.size} bytes")
        self.root = _write_tree(lower, hashes, block_size, algorithm, salt)
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
