"""Repair of verity's blocks from Reed-Solomon parity.

Source: drivers/md/dm-verity-fec.c (verity_fec_decode, fec_decode, fec_read_bufs, fec_decode_bufs).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from dmcore.formats.reed_solomon import WORD, TooManyErrors, correct, syndromes
from dmcore.model.block import fault
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Callable

    from dmcore.model.block import BlockDevice
    from dmcore.targets.verity import Verity

__all__ = ["Repair"]


class Repair:
    """Repairs blocks of one table.

    Args:
        target: The table's line; it has `fec`.
        data: Device with the data.
        hashes: Device with the tree.
        parity: Device with the parity.
        find: Says of a data block what its digest should be, and whether those are zeros that are known; OSError if it
            cannot be told.
        digest: Makes digests.

    Attributes:
        corrected: Blocks that were repaired.
    """

    def __init__(
        self,
        target: Verity,
        data: BlockDevice,
        hashes: BlockDevice,
        parity: BlockDevice,
        *,
        find: Callable[[int], tuple[bytes, bool]],
        digest: Callable[[bytearray], bytes],
    ) -> None:
        assert target.fec is not None
        self._target, self._fec = target, target.fec
        self._data, self._hashes, self._parity = data, hashes, parity
        self._find, self._digest = find, digest
        self._size = target.data_block_size
        self._unit = self._size // SECTOR
        self._columns = WORD - self._fec.roots
        self._region = -(-self._fec.blocks // self._columns)
        self._working = False
        self.corrected = 0
        if (self._fec.start + self._region * self._fec.roots) * self._unit > parity.sectors:
            raise fault(errno.E2BIG)

    def data_block(self, block: int, want: bytes) -> bytearray | None:
        """Return what a data block should be, or None."""
        return self._repair(block, want)

    def hash_block(self, block: int, want: bytes) -> bytearray | None:
        """Return what a block of the tree, by its place on the hash device, should be, or None."""
        return self._repair(block - self._target.hash_start + self._target.data_blocks, want)

    def _repair(self, block: int, want: bytes) -> bytearray | None:
        """Try without erasures, which take long to find, then with them. It does not repair what it reads meanwhile."""
        if self._working:
            return None
        self._working = True
        try:
            for erasures in (False, True):
                fixed = self._decode(block, want, erasures=erasures)
                if fixed is not None:
                    self.corrected += 1
                    return fixed
        finally:
            self._working = False
        return None

    def _decode(self, block: int, want: bytes, *, erasures: bool) -> bytearray | None:
        wanted, index = divmod(block, self._region)
        if wanted >= self._columns:
            return None
        columns: list[bytes | bytearray] = []
        erased: list[int] = []
        for column in range(self._columns):
            content, damaged = self._message(column * self._region + index)
            columns.append(content)
            if damaged and len(erased) < self._fec.roots:
                erased.append(column)
        try:
            columns += self._read_parity(index)
        except OSError:
            return None
        fixed = bytearray(columns[wanted])
        found = syndromes(columns, self._fec.roots)
        try:
            for at, syndrome in enumerate(zip(*found, strict=True)):
                fixed[at] ^= correct(syndrome, erased if erasures else ()).get(wanted, 0)
        except TooManyErrors:
            return None
        return fixed if self._digest(fixed) == want else None

    def _message(self, block: int) -> tuple[bytes | bytearray, bool]:
        """Return block `block` of all that is covered, and whether it is known to be damaged."""
        zeros = bytes(self._size)
        in_tree = block - self._target.data_blocks
        if in_tree >= self._fec.blocks - self._target.data_blocks:
            return zeros, False
        device, at = (self._data, block) if in_tree < 0 else (self._hashes, in_tree + self._target.hash_start)
        if (at + 1) * self._unit > device.sectors:
            return zeros, True
        try:
            content = device.read(at * self._unit, self._unit)
        except OSError:
            return zeros, True
        if in_tree >= 0:
            return content, False
        try:
            want, known = self._find(block)
        except OSError:
            return content, False
        return (zeros, False) if known else (content, self._digest(content) != want)

    def _read_parity(self, index: int) -> list[bytearray]:
        roots = self._fec.roots
        raw = self._parity.read((self._fec.start + index * roots) * self._unit, roots * self._unit)
        return [raw[root::roots] for root in range(roots)]
