"""The metadata of a thin-pool, in transactions: devices, their mappings, and which blocks of data are used.

Source: drivers/md/dm-thin-metadata.c. The mappings of a device are read when it is first used, as a whole, and its btree is
written anew when they changed; devices that were shot share their btree until then.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

from dmcore.errors import FormatError
from dmcore.formats.persistent_data import BLOCK, Reader, SpaceMapRoot, stamp
from dmcore.formats.persistent_writer import DataMap, Metadata
from dmcore.formats.thin import (
    DETAILS,
    NEEDS_CHECK,
    SUPERBLOCK,
    Details,
    SuperBlock,
    pack_mapping,
    unpack_mapping,
)
from dmcore.model.block import fault

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dmcore.model.block import BlockDevice

__all__ = ["ThinDevice", "ThinMetadata"]

_U64 = struct.Struct("<Q")
_MOST_RESERVED = 4096


class ThinDevice:
    """A device of a pool whose mappings are at hand.

    Attributes:
        mappings: `(block of data, time)` by block of the device.
        fresh: Blocks of data that were mapped in this transaction; they are counted already.
        changed: Whether the mappings are to be written.
    """

    def __init__(self, mappings: dict[int, tuple[int, int]]) -> None:
        self.mappings = mappings
        self.fresh: set[int] = set()
        self.changed = False


class ThinMetadata:
    """What is known of a pool.

    Args:
        disk: The metadata device.
        block_sectors: Sectors of a block of data.
        may_format: Make a pool on a device that begins with zeros.

    Attributes:
        data: Which blocks of data are used.
        time: Number of snapshots made so far.
        transaction_id: The number that users set.
        held_root: Block of the metadata snapshot; 0 without one.
        flags: `NEEDS_CHECK`, or nothing.
        opened: How many tables name a device, by its id.

    Raises:
        OSError: EPERM without metadata, if none may be made; what reading says.
        FormatError: Metadata that are damaged, or of another block size.
    """

    def __init__(self, disk: BlockDevice, block_sectors: int, *, may_format: bool) -> None:
        self._disk = disk
        self.block_sectors = block_sectors
        self.opened: dict[int, int] = {}
        found = SuperBlock.read(Reader(disk))
        if found is not None:
            self._open(found)
            return
        if not may_format:
            raise fault(errno.EPERM)
        self._metadata = Metadata(disk)
        self.data = DataMap(self._metadata)
        self.time = self.transaction_id = self.held_root = self.flags = 0
        self._formatted, self._uuid = self._metadata.blocks, bytes(16)
        self._roots: dict[int, int] = {}
        self._details: dict[int, Details] = {}
        self._forget()
        self._top = self._metadata.tree([], _U64.size)
        self._details_root = self._metadata.tree([], DETAILS.size)
        self._changed = True
        self.commit()

    def _forget(self) -> None:
        self._loaded: dict[int, ThinDevice] = {}
        self._owned: set[int] = set()
        self._changed = self._devices_changed = False

    def _open(self, found: SuperBlock) -> None:
        if found.block_sectors != self.block_sectors:
            reason = f"the pool has blocks of {found.block_sectors} sectors, not {self.block_sectors}"
            raise FormatError(reason, 336)
        self._metadata = Metadata.open(self._disk, found.metadata_map)
        self.data = DataMap(self._metadata, found.data_map)
        self.time, self.transaction_id, self.flags = found.time, found.transaction_id, found.flags
        self.held_root = found.held_root
        self._formatted, self._uuid = found.blocks, found.uuid
        self._top, self._details_root = found.mappings, found.details
        reader = self._metadata.reader
        self._roots = {key: _U64.unpack(value)[0] for key, value in reader.btree(self._top, _U64.size)}
        entries = reader.btree(self._details_root, DETAILS.size)
        self._details = {key: Details.decode(value) for key, value in entries}
        if self._roots.keys() != self._details.keys():
            odd = min(self._roots.keys() ^ self._details.keys())
            raise FormatError(f"device {odd} has no mappings or no details", self._top * BLOCK)
        self._forget()

    # -- use ---------------------------------------------------------------------------------------------------------

    @property
    def changed(self) -> bool:
        """Whether there is something to commit."""
        return self._changed

    @property
    def blocks(self) -> int:
        """Blocks of the metadata device that are managed."""
        return self._metadata.blocks

    @property
    def free(self) -> int:
        """Blocks of metadata that are free, but for a reserve of a tenth, up to 4096."""
        free = self._metadata.blocks - self._metadata.used
        return max(0, free - min(_MOST_RESERVED, self._metadata.blocks // 10))

    @property
    def most_blocks(self) -> int:
        """Blocks the metadata device has now; it may have grown."""
        return self._metadata.reader.blocks

    def free_data(self) -> int:
        """Return the blocks of data that nothing maps now, also those that cannot be used before the next transaction.

        Source: drivers/md/persistent-data/dm-space-map-disk.c (sm_disk_get_nr_free).
        """
        self.recount()
        return self.data.blocks - self.data.used

    def recount(self) -> None:
        """Have `data` count what is mapped now; nothing is committed."""
        if self._devices_changed:
            self._save_devices()

    # -- devices -----------------------------------------------------------------------------------------------------

    def details(self, dev_id: int) -> Details:
        """Return a device; ENODATA if there is none."""
        found = self._details.get(dev_id)
        if found is None:
            raise fault(errno.ENODATA)
        return found

    def device(self, dev_id: int) -> ThinDevice:
        """Return a device with its mappings.

        Raises:
            OSError: ENODATA, or what reading says.
            FormatError: They are damaged.
        """
        found = self._loaded.get(dev_id)
        if found is None:
            details = self.details(dev_id)
            found = ThinDevice(dict(self._read(dev_id)))
            if len(found.mappings) != details.mapped:
                there = len(found.mappings)
                reason = f"device {dev_id} has {there} blocks, and should have {details.mapped}"
                raise FormatError(reason, self._roots[dev_id] * BLOCK)
            self._loaded[dev_id] = found
        return found

    def _read(self, dev_id: int) -> Iterator[tuple[int, tuple[int, int]]]:
        root = self._roots[dev_id]
        for key, value in self._metadata.reader.btree(root, _U64.size):
            block, time = unpack_mapping(value)
            if block >= self.data.blocks or not self.data.count(block):
                reason = f"block {key} of device {dev_id} is block {block} of the data, which is not in use"
                raise FormatError(reason, root * BLOCK)
            yield key, (block, time)

    def insert(self, dev_id: int, block: int, data: int) -> None:
        """Map a block to one that was allocated in this transaction."""
        device, details = self.device(dev_id), self._details[dev_id]
        old = device.mappings.get(block)
        if old is None:
            self._details[dev_id] = details._replace(mapped=details.mapped + 1)
        else:
            self._unmap(device, old[0])
        device.mappings[block] = (data, self.time)
        device.fresh.add(data)
        self._touch(device)

    def _touch(self, device: ThinDevice) -> None:
        device.changed = self._changed = self._devices_changed = True

    def _unmap(self, device: ThinDevice, data: int) -> None:
        if data in device.fresh:
            device.fresh.remove(data)
            self.data.drop(data)

    def remove(self, dev_id: int, begin: int, end: int) -> list[tuple[int, bool]]:
        """Unmap blocks; return the blocks of data they were, and whether another device may have them too."""
        device, details = self.device(dev_id), self._details[dev_id]
        span = range(begin, end) if end - begin < len(device.mappings) else sorted(device.mappings)
        gone = [block for block in span if begin <= block < end and block in device.mappings]
        removed: list[tuple[int, bool]] = []
        for block in gone:
            data, time = device.mappings.pop(block)
            removed.append((data, details.snapshotted > time))
            self._unmap(device, data)
        if gone:
            self._details[dev_id] = details._replace(mapped=details.mapped - len(gone))
            self._touch(device)
        return removed

    def create(self, dev_id: int) -> None:
        """Make an empty device; EEXIST if there is one."""
        if dev_id in self._details:
            raise fault(errno.EEXIST)
        self._add(dev_id, self._metadata.tree([], _U64.size), 0)

    def _add(self, dev_id: int, root: int, mapped: int) -> None:
        self._roots[dev_id] = root
        self._owned.add(dev_id)
        self._details[dev_id] = Details(mapped, self.transaction_id, self.time, self.time)
        self._changed = self._devices_changed = True

    def snapshot(self, dev_id: int, origin: int) -> None:
        """Make a device that shares the mappings of another; EEXIST, ENODATA."""
        if dev_id in self._details:
            raise fault(errno.EEXIST)
        details = self.details(origin)
        self._save_device(origin)
        root = self._roots[origin]
        self._metadata.take(root)
        self.time += 1
        self._add(dev_id, root, details.mapped)
        self._details[origin] = self._details[origin]._replace(snapshotted=self.time)

    def delete(self, dev_id: int) -> None:
        """Delete a device; ENODATA, or EBUSY while a table names it."""
        self.details(dev_id)
        if self.opened.get(dev_id):
            raise fault(errno.EBUSY)
        self._save_device(dev_id)
        del self._details[dev_id]
        root = self._roots.pop(dev_id)
        self._loaded.pop(dev_id, None)
        if dev_id in self._owned:
            self._owned.remove(dev_id)
            self._drop_mappings(root)
        self._changed = self._devices_changed = True

    # -- the metadata snapshot ---------------------------------------------------------------------------------------

    def hold(self) -> None:
        """Keep a copy of the metadata as they are now; EBUSY if there is one."""
        if self.held_root:
            raise fault(errno.EBUSY)
        self._changed = True
        self.commit()
        self._metadata.take(self._top)
        self._metadata.take(self._details_root)
        none = SpaceMapRoot(0, 0, 0, 0)
        self.held_root = self._metadata.new(SUPERBLOCK, self._superblock(none, none).encode())
        self._changed = True

    def release(self) -> None:
        """Give that copy up; EINVAL without one."""
        if not self.held_root:
            raise fault(errno.EINVAL)
        held = SuperBlock.read(self._metadata.reader, self.held_root)
        if held is None:
            raise FormatError("there is no metadata snapshot where it should be", self.held_root * BLOCK)
        self._drop_top(held.mappings)
        self._metadata.drop_tree(held.details, DETAILS.size, lambda value: value)
        self._metadata.drop(self.held_root)
        self.held_root = 0
        self._changed = True

    # -- the end of a transaction ------------------------------------------------------------------------------------

    def _drop_mappings(self, root: int) -> None:
        self._metadata.drop_tree(root, _U64.size, lambda value: self.data.drop(unpack_mapping(value)[0]))

    def _drop_top(self, root: int) -> None:
        self._metadata.drop_tree(root, _U64.size, lambda value: self._drop_mappings(_U64.unpack(value)[0]))

    def _save_device(self, dev_id: int) -> None:
        """Write the btree of a device, if its mappings changed."""
        device = self._loaded.get(dev_id)
        if device is None or not device.changed:
            return
        for data, _ in device.mappings.values():
            if data not in device.fresh:
                self.data.take(data)
        entries = [(key, pack_mapping(*value)) for key, value in sorted(device.mappings.items())]
        old, self._roots[dev_id] = self._roots[dev_id], self._metadata.tree(entries, _U64.size)
        if dev_id in self._owned:
            self._drop_mappings(old)
        self._owned.add(dev_id)
        device.fresh.clear()
        device.changed = False

    def _save_devices(self) -> None:
        for dev_id in list(self._loaded):
            self._save_device(dev_id)
        for dev_id, root in self._roots.items():
            if dev_id not in self._owned:
                self._metadata.take(root)
        roots = [(dev_id, _U64.pack(root)) for dev_id, root in sorted(self._roots.items())]
        old, self._top = self._top, self._metadata.tree(roots, _U64.size)
        self._drop_top(old)
        self._owned.clear()
        details = [(dev_id, value.encode()) for dev_id, value in sorted(self._details.items())]
        old, self._details_root = self._details_root, self._metadata.tree(details, DETAILS.size)
        self._metadata.drop_tree(old, DETAILS.size, lambda value: value)
        self._devices_changed = False

    def _superblock(self, data_map: SpaceMapRoot, metadata_map: SpaceMapRoot) -> SuperBlock:
        return SuperBlock(
            self.flags,
            self.time,
            self.transaction_id,
            self.held_root,
            data_map,
            metadata_map,
            self._top,
            self._details_root,
            self.block_sectors,
            self._formatted,
            self._uuid,
        )

    def set_transaction_id(self, number: int) -> None:
        """Set the number that users set."""
        self.transaction_id = number
        self._changed = True

    def resize_data(self, blocks: int) -> None:
        """Let the data device have more blocks."""
        self.data.extend(blocks)
        self._changed = True

    def resize_metadata(self, blocks: int) -> None:
        """Let the metadata have more blocks."""
        self._metadata.extend(blocks)
        self._changed = True

    def commit(self) -> None:
        """End the transaction, if anything changed.

        Raises:
            OSError, FormatError: The disk still holds the transaction before; see `abort`.
        """
        if not self._changed:
            return
        if self._devices_changed:
            self._save_devices()
        data_map = self.data.save()

        def superblock(space_map: bytes) -> bytearray:
            return self._superblock(data_map, SpaceMapRoot.decode(space_map, 0)).encode()

        self._metadata.commit(SUPERBLOCK, superblock)
        self.data.begin()
        self._changed = False

    def abort(self) -> None:
        """Go back to the last transaction, and write down that the metadata need a check.

        Raises:
            OSError, FormatError: That is not possible.
        """
        found = SuperBlock.read(Reader(self._disk))
        if found is None:
            raise FormatError("the metadata are gone", 0)
        self._open(found)
        self.flags |= NEEDS_CHECK
        data = found._replace(flags=self.flags).encode()
        self._disk.write(0, memoryview(stamp(SUPERBLOCK, 0, data)))
