"""verity: reads are checked against the tree, and repaired from parity where there is some.

Sources: drivers/md/dm-verity-target.c (verity_ctr, verity_map, verity_verify_io, verity_hash_for_block,
verity_verify_level, verity_handle_err, verity_handle_data_hash_mismatch, verity_status, verity_postsuspend).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from dmcore.errors import SpecError, Unsupported
from dmcore.formats.verity import Tree
from dmcore.model.block import fault
from dmcore.model.target import Area, ModelTarget
from dmcore.model.targets._verity_fec import Repair
from dmcore.targets.verity import OnCorruption, Verity
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dmcore.model.block import BlockDevice
    from dmcore.model.target import Context

__all__ = ["MODEL"]

_CACHED = 16 << 20


class _Verity(ModelTarget[Verity]):
    def __init__(self, target: Verity, context: Context) -> None:
        super().__init__(target, context)
        if not context.readonly:
            raise SpecError("readonly", value=False, reason="a table with verity must be loaded read-only")
        self._data, self._hashes = self.lower[:2]
        for field, device in (("data_block_size", self._data), ("hash_block_size", self._hashes)):
            if getattr(target, field) < device.block_size:
                reason = f"less than the {device.block_size}-byte blocks of {device.word or 'its device'}"
                raise SpecError(field, getattr(target, field), reason)
        if target.root_hash_sig_key_desc is not None:
            reason = "signatures are checked by the kernel's keyring only"
            raise Unsupported("root_hash_sig_key_desc", reason, "leave it out, or use a kernel")
        self._tree = Tree(
            version=target.version, algorithm=target.algorithm, hash_block_size=target.hash_block_size,
            data_blocks=target.data_blocks, hash_start=target.hash_start, salt=target.salt,
        )  # fmt: skip
        if self._tree.digest_size != len(target.root):
            reason = f"a digest of {target.algorithm} has {self._tree.digest_size} bytes"
            raise SpecError("root", target.root.hex(), reason)
        self._hash_unit = target.hash_block_size // SECTOR
        if self._hashes.sectors < (target.hash_start + self._tree.blocks) * self._hash_unit:
            raise fault(errno.E2BIG)
        self._unit = target.data_block_size // SECTOR
        self._zeros = self._tree.digest(bytes(target.data_block_size)) if target.ignore_zero_blocks else None
        self._checked = bytearray(context.length // self._unit if target.check_at_most_once else 0)
        self._cache: dict[int, bytes | bytearray] = {}
        self._verified: set[int] = set()
        self._corrupted = False
        self._repair: Repair | None = None
        if target.fec is not None:
            parity = self.lower[2]
            self._repair = Repair(
                target, self._data, self._hashes, parity, find=self._find, digest=self._tree.digest
            )

    @property
    def areas(self) -> Iterable[Area]:
        """The line's length of the data device."""
        return [Area(self._data, 0, self.context.length)]

    @property
    def block_size(self) -> int:
        """The data block."""
        return self.target.data_block_size

    @property
    def flushed(self) -> Iterable[BlockDevice]:
        """Nothing."""
        return ()

    def postsuspend(self) -> None:
        """Drop the cached blocks of the tree."""
        self._cache.clear()
        self._verified.clear()

    # -- the tree ----------------------------------------------------------------------------------------------------

    def _mismatch(self) -> None:
        """Do what the table says about damage (verity_handle_err).

        Raises:
            OSError: EIO, unless the damage is ignored.
            Unsupported: The kernel would restart or panic.
        """
        self._corrupted = True
        action = self.target.on_corruption
        if action is None:
            raise fault(errno.EIO)
        if action is not OnCorruption.IGNORE:
            word = "restart" if action is OnCorruption.RESTART else "panic"
            raise Unsupported(
                action, f"a block does not match: a kernel would {word} now", "use a throw-away VM"
            )

    def _hash_block(self, block: int, want: bytes) -> bytes | bytearray:
        """Return a block of the tree, checked unless it was before."""
        if block in self._verified:
            return self._cache[block]
        content = self._cache.get(block)
        if content is None:
            if len(self._cache) * self.target.hash_block_size > _CACHED:
                self.postsuspend()
            try:
                content = self._hashes.read(block * self._hash_unit, self._hash_unit)
            except OSError:
                fixed = self._repair.hash_block(block, want) if self._repair else None
                if fixed is None:
                    raise
                content = fixed
            self._cache[block] = content
        if self._tree.digest(content) != want:
            fixed = self._repair.hash_block(block, want) if self._repair else None
            if not fixed:
                self._mismatch()
                return content
            content = self._cache[block] = fixed
        self._verified.add(block)
        return content

    def _find(self, block: int) -> tuple[bytes, bool]:
        """Return a data block's digest, and whether it is that of zeros which need not be read."""
        size = self._tree.digest_size
        want = self.target.root
        if self._tree.levels:
            leaf, at = self._tree.place(block, 0)
            if leaf in self._verified:
                want = bytes(self._cache[leaf][at : at + size])
            else:
                for level in reversed(range(len(self._tree.levels))):
                    there, at = self._tree.place(block, level)
                    want = bytes(self._hash_block(there, want)[at : at + size])
        return want, want == self._zeros

    # -- requests ----------------------------------------------------------------------------------------------------

    def readinto(self, sector: int, buffer: memoryview, flags: int) -> None:
        """Read, and check every block; EIO for one that does not match and cannot be repaired."""
        failed: OSError | None = None
        try:
            self._data.readinto(sector, buffer, flags)
        except OSError as error:
            if self._repair is None:
                raise
            failed = error
        size = self.target.data_block_size
        for at in range(0, len(buffer), size):
            self._check(sector // self._unit + at // size, buffer[at : at + size], failed)

    def _check(self, block: int, content: memoryview, failed: OSError | None) -> None:
        once = self.target.check_at_most_once
        if once and failed is None and self._checked[block]:
            return
        want, known = self._find(block)
        if known:
            content[:] = bytes(len(content))
            return
        if self._tree.digest(content) != want:
            fixed = self._repair.data_block(block, want) if self._repair else None
            if fixed:
                content[:] = fixed
                return
            if failed is not None:
                raise fault(errno.EIO)
            self._mismatch()
        elif once:
            self._checked[block] = 1

    def write(self, sector: int, data: memoryview, flags: int) -> None:
        """Fail: there is nothing to write."""
        del sector, data, flags
        raise fault(errno.EIO)

    def status(self) -> str:
        """Return whether damage was seen, and the number of repaired blocks (- without parity), as 7.2 does."""
        letter = "C" if self._corrupted else "V"
        return f"{letter} {self._repair.corrected if self._repair else '-'}"


MODEL = _Verity
