"""Families: the factory's methods that make devices of several: copies, caches, pools, paths."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, TypeVar

from dmcore import targets
from dmcore.errors import SpecError
from dmcore.units import SECTOR, to_sectors
from pytest_dm import devices
from pytest_dm.below import beside, faulty, flaky, given, one, whole
from pytest_dm.devices.base import Disk

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dmcore.targets.cache import CacheMode
    from dmcore.targets.crypt import Key, KeyringKey
    from dmcore.targets.integrity import Mode
    from dmcore.targets.multipath import Selector
    from dmcore.targets.raid import RaidType
    from dmcore.targets.snapshot import Store
    from pytest_dm.below import Lower, Size
    from pytest_dm.factory import Dm

__all__ = ["Families"]

T = TypeVar("T", bound="Disk")
_METADATA = 4 << 20
"""Bytes of a metadata disk that nobody gave: plenty for the disks of tests."""

_FEWEST = {"raid4": 3, "raid5": 3, "raid6": 4, "raid10": 4}
"""Legs of a set that nobody said the number of."""

_MOST_REGION = 1024
"""Sectors that a mirror copies at once, if it is so long."""

_ROOM = 4
"""How many times its size a pool's fresh data disk has, so that it can grow."""


class Families(ABC):
    """The part of `Dm` that makes whole families of devices.

    Disks below may be any disks of ours, those with faults of their own included; those left out are fresh loop devices,
    and a size may stand for a fresh one of that size: `dm.cache("256M", "64M")`.
    Every disk below whose failure is of interest is a `flakey` of its own (one that is given as such stays as it is):
    `mirror.legs[0].fail()`. A failed method leaves nothing behind, of what it made.
    """

    @abstractmethod
    def build(self, make: Callable[[Dm], T]) -> T:
        """Keep the device that `make` returns; if it fails, remove what it made before."""

    def mirror(
        self,
        legs: int | Sequence[Lower] = 2,
        *,
        size: Size | None = None,
        region: Size | None = None,
        log: Lower | bool = False,
        sync: bool = True,
        handle_errors: bool = True,
        keep_log: bool | None = None,
    ) -> devices.Mirror:
        """Make a disk with copies.

        Args:
            legs: How many, 2..9, or the disks.
            size: Of fresh legs; by default the marker's, else 64M.
            region: Sectors that are copied at once, a power of two; by default 512 KiB, or less of a shorter disk.
            log: The log's disk, True for a fresh one; by default the log is in memory.
            sync: Copy the first leg to the others at first; False for legs that are alike.
            handle_errors: Tell of legs that fail, and leave them out.
            keep_log: Let a write that a leg failed succeed, which else **waits** for the next table; as `handle_errors`.
        """

        def make(dm: Dm) -> devices.Mirror:
            below = faulty(dm, "legs", legs, size)
            sectors = min(leg.size for leg in below) // SECTOR
            at_once = (
                min(_MOST_REGION, 1 << (sectors.bit_length() - 1)) if region is None else to_sectors(region)
            )
            disk = (
                None
                if log is False
                else beside(dm, "log", None if log is True else log, _METADATA, label="mirror-log")
            )
            return devices.Mirror(
                dm, below, log=disk, region=at_once, sync=sync, handle_errors=handle_errors,
                keep_log=handle_errors if keep_log is None else keep_log,
            )  # fmt: skip

        return self.build(make)

    def raid(
        self,
        kind: RaidType | str = "raid5_ls",
        legs: int | Sequence[Lower] | None = None,
        *,
        size: Size | None = None,
        chunk: Size = "64K",
        metadata: bool = True,
        **words: Any,
    ) -> devices.Raid:
        """Make a raid set.

        Args:
            kind: How data are spread: "raid1", "raid5_ls", "raid6_zr", "raid10" ...
            legs: How many, by default as few as make sense, or the disks.
            size: Of each fresh leg; by default the marker's, else 64M.
            chunk: Sectors in a row on one leg, or text with a unit; not for raid1.
            metadata: Give each leg a disk for its superblock and bitmap; a set without forgets its state. Raid10 needs it.
            words: Further fields of `targets.Raid`.
        """

        def make(dm: Dm) -> devices.Raid:
            fewest = next((count for word, count in _FEWEST.items() if kind.startswith(word)), 2)
            below = faulty(dm, "legs", fewest if legs is None else legs, size)
            supers = [dm.loop(_METADATA, label="raid-metadata") for _ in below] if metadata else []
            return devices.Raid(dm, kind, below, supers, chunk=to_sectors(chunk), words=words)

        return self.build(make)

    def crypt(
        self,
        lower: Lower | None = None,
        *,
        cipher: str = "aes-xts-plain64",
        key: bytes | Key | KeyringKey | None = None,
        size: Size | None = None,
        **words: Any,
    ) -> devices.Crypt:
        """Make an encrypted disk.

        Args:
            lower: The disk with the encrypted data.
            cipher: As in a table.
            key: Its key, or the name of one in a keyring; by default 64 random bytes (32 if the cipher is not xts).
            size: Of a fresh disk.
            words: Further fields of `targets.Crypt`: `sector_size`, `iv_offset`, `tags` ...
        """
        return self.build(
            lambda dm: devices.Crypt(dm, one(dm, "lower", lower, size), cipher=cipher, key=key, words=words)
        )

    def verity(
        self,
        lower: Lower | None = None,
        hashes: Lower | None = None,
        *,
        size: Size | None = None,
        block_size: int = 4096,
        algorithm: str = "sha256",
        salt: bytes | None = None,
        fec_roots: int | None = None,
        **words: Any,
    ) -> devices.Verity:
        """Make a read-only disk that checks every block: the tree is made of what `lower` holds now.

        Args:
            lower: The disk with the data.
            hashes: The disk for the tree; by default a fresh one.
            size: Of a fresh data disk.
            block_size: Bytes of a block of data, and of the tree: a power of two, 512..4096.
            algorithm: The hash.
            salt: What each block is hashed with; by default 32 random bytes.
            fec_roots: Parity bytes for each 255, 2..24, on a fresh disk: what does not match is repaired where the kernel
                can ("verity.fec"). None: no parity.
            words: Further fields of `targets.Verity`: `on_corruption`, `ignore_zero_blocks` ...
        """

        def make(dm: Dm) -> devices.Verity:
            data = one(dm, "lower", lower, size)
            tree = None if hashes is None else beside(dm, "hashes", hashes, data.size, label="hashes")
            return devices.Verity(
                dm, data, tree, block_size=block_size, algorithm=algorithm, salt=salt, fec_roots=fec_roots,
                words=words,
            )  # fmt: skip

        return self.build(make)

    def integrity(
        self,
        lower: Lower | None = None,
        *,
        metadata: Lower | bool = True,
        mode: Mode | str = "J",
        internal_hash: str | None = "crc32c",
        size: Size | None = None,
        **words: Any,
    ) -> devices.Integrity:
        """Make a disk that notices changed bytes; it is formatted.

        Args:
            lower: The disk with the data; it must begin with zeros, or have been formatted so before.
            metadata: The disk for tags and journal, True for a fresh one; False puts them between the data.
            mode: "J" with a journal, "B" with a bitmap, "D" without either, "R" for reading whatever is there.
            internal_hash: The tags; None (with `tag_size`) leaves them to a `crypt` above.
            size: Of a fresh disk.
            words: Further fields of `targets.Integrity`: `block_size`, `recalculate`, `tag_size`, `allow_discards` ...
        """

        def make(dm: Dm) -> devices.Integrity:
            data = one(dm, "lower", lower, size)
            room = max(_METADATA, data.size // 4)
            tags = (
                None
                if metadata is False
                else beside(dm, "metadata", None if metadata is True else metadata, room, label="tags")
            )
            return devices.Integrity(dm, data, tags, mode=mode, internal_hash=internal_hash, words=words)

        return self.build(make)

    def snapshot_origin(
        self, lower: Lower | None = None, *, size: Size | None = None
    ) -> devices.SnapshotOrigin:
        """Make a disk that `snapshot` can shoot: its old content is copied to the snapshots before it changes."""
        return self.build(lambda dm: devices.SnapshotOrigin(dm, one(dm, "lower", lower, size)))

    def snapshot(
        self,
        origin: Lower | None = None,
        cow: Lower | None = None,
        *,
        store: Store | str = "P",
        chunk: Size = "4K",
        size: Size | None = None,
        cow_size: Size | None = None,
    ) -> devices.Snapshot:
        """Shoot a disk: the result shows what it holds now, whatever is written to `result.origin` from now on.

        Args:
            origin: What `snapshot_origin` made; any other disk gets such a device above it, a fresh one if None.
            cow: The disk for what differs; by default a fresh one.
            store: "P" persistent, "PO" persistent with a full disk that stays readable, "N" in memory.
            chunk: What is copied at once: sectors, or text with a unit; a power of two.
            size: Of a fresh origin.
            cow_size: Of a fresh disk for what differs; by default as large as the origin and a bit.
        """

        def make(dm: Dm) -> devices.Snapshot:
            if isinstance(origin, devices.SnapshotOrigin):
                if size is not None:
                    raise SpecError("size", size, "give the origin or a size, not both")
                shot = origin
            else:
                shot = dm.snapshot_origin(origin, size=size)
            sectors = to_sectors(chunk)
            room = shot.size + shot.size // 16 + 64 * sectors * SECTOR
            disk = beside(dm, "cow", cow, room, size=cow_size, size_field="cow_size", label="cow")
            return devices.Snapshot(dm, shot, disk, store=store, chunk=sectors)

        return self.build(make)

    def thin_pool(
        self,
        data: Lower | None = None,
        metadata: Lower | None = None,
        *,
        size: Size | None = None,
        block: Size = "64K",
        **words: Any,
    ) -> devices.ThinPool:
        """Make a pool; `pool.thin()` makes disks in it, `thin.snapshot()` snapshots of them.

        Args:
            data: The disk for the blocks; by default a fresh one with room to `grow`.
            metadata: The disk that says which block is where; by default a fresh one. It must begin with zeros.
            size: How much of `data` is used at first; all of a disk that is given, else the marker's size.
            block: Sectors of a block, or text with a unit: a multiple of 64K.
            words: Further fields of `targets.ThinPool`: `error_if_no_space`, `low_water`, `skip_block_zeroing` ...
        """

        def make(dm: Dm) -> devices.ThinPool:
            disk, room = given("data", data, None if isinstance(data, Disk) else size)
            used = size if room is None else room
            sectors = dm.length(used) if disk is None or used is not None else disk.size // SECTOR
            blocks = dm.loop(_ROOM * sectors * SECTOR, label="pool-data") if disk is None else disk
            if sectors > blocks.size // SECTOR:
                raise SpecError("size", size, f"{blocks.name} has {blocks.size} bytes")
            below = flaky(dm, blocks)
            meta = flaky(dm, beside(dm, "metadata", metadata, _METADATA, label="pool-metadata"))
            value = targets.ThinPool(
                metadata=meta.ref, data=below.ref, block_sectors=to_sectors(block), **words
            )
            return devices.ThinPool(dm, below, meta, length=sectors, value=value)

        return self.build(make)

    def cache(
        self,
        origin: Lower | None = None,
        fast: Lower | None = None,
        metadata: Lower | None = None,
        *,
        mode: CacheMode | str = "writeback",
        block: Size = "32K",
        size: Size | None = None,
        cache_size: Size | None = None,
        **words: Any,
    ) -> devices.Cache:
        """Make a disk with a cache of its often used blocks.

        Args:
            origin: The slow disk.
            fast: The disk for the cached blocks; by default a fresh one.
            metadata: The disk that says which they are; by default a fresh one. It must begin with zeros.
            mode: "writeback", "writethrough" or "passthrough".
            block: Sectors of a block, or text with a unit: a multiple of 32K.
            size: Of a fresh origin.
            cache_size: Of a fresh `fast`; by default a quarter of the origin.
            words: Further fields of `targets.Cache`: `policy`, `metadata2`, `migration_threshold` ...
        """

        def make(dm: Dm) -> devices.Cache:
            slow = flaky(dm, one(dm, "origin", origin, size))
            sectors = to_sectors(block)
            quick = flaky(dm, _fast(dm, fast, whole(slow.size // 4, sectors), cache_size))
            meta = flaky(dm, beside(dm, "metadata", metadata, _METADATA, label="cache-metadata"))
            return devices.Cache(dm, slow, quick, meta, block_sectors=sectors, mode=mode, words=words)

        return self.build(make)

    def writecache(
        self,
        origin: Lower | None = None,
        fast: Lower | None = None,
        *,
        block_size: int = 4096,
        size: Size | None = None,
        cache_size: Size | None = None,
        **words: Any,
    ) -> devices.Writecache:
        """Make a disk whose writes a fast one takes.

        Args:
            origin: The slow disk.
            fast: The fast one; by default a fresh one. It must begin with zeros.
            block_size: Bytes of a block, 512..4096; the device's logical block.
            size: Of a fresh origin.
            cache_size: Of a fresh `fast`; by default a quarter of the origin.
            words: Further fields of `targets.Writecache`: watermarks, `autocommit_ms`, `cleaner` ...
        """

        def make(dm: Dm) -> devices.Writecache:
            slow = flaky(dm, one(dm, "origin", origin, size))
            quick = flaky(dm, _fast(dm, fast, whole(max(slow.size // 4, 1 << 20), 8), cache_size))
            return devices.Writecache(dm, slow, quick, block_size=block_size, words=words)

        return self.build(make)

    def era(
        self,
        lower: Lower | None = None,
        metadata: Lower | None = None,
        *,
        block: Size = "4K",
        size: Size | None = None,
    ) -> devices.Era:
        """Make a disk that knows when each of its blocks was written last.

        Args:
            lower: The disk with the data.
            metadata: The disk for the record; by default a fresh one. It must begin with zeros.
            block: Sectors of a block, or text with a unit: a multiple of 4K.
            size: Of a fresh data disk.
        """

        def make(dm: Dm) -> devices.Era:
            data = one(dm, "lower", lower, size)
            meta = flaky(dm, beside(dm, "metadata", metadata, _METADATA, label="era-metadata"))
            return devices.Era(dm, data, meta, block_sectors=to_sectors(block))

        return self.build(make)

    def clone(
        self,
        source: Lower | None = None,
        dest: Lower | None = None,
        metadata: Lower | None = None,
        *,
        region: Size = "4K",
        hydrate: bool = False,
        size: Size | None = None,
        **words: Any,
    ) -> devices.Clone:
        """Make a copy of a disk that can be used from the first moment on.

        Args:
            source: The disk that is copied.
            dest: The disk for the copy; by default a fresh one.
            metadata: The disk that says which regions are there; by default a fresh one. It must begin with zeros.
            region: What is copied at once: sectors, or text with a unit; a power of two.
            hydrate: Copy in the background from the start; False: by `hydrate()` only.
            size: Of a fresh source.
            words: Further fields of `targets.Clone`.
        """

        def make(dm: Dm) -> devices.Clone:
            old = flaky(dm, one(dm, "source", source, size))
            new = flaky(dm, beside(dm, "dest", dest, old.size, label="clone"))
            meta = flaky(dm, beside(dm, "metadata", metadata, _METADATA, label="clone-metadata"))
            value = targets.Clone(
                metadata=meta.ref, dest=new.ref, source=old.ref, region_sectors=to_sectors(region),
                no_hydration=not hydrate, **words,
            )  # fmt: skip
            return devices.Clone(dm, old, new, meta, value=value)

        return self.build(make)

    def switch(
        self, paths: int | Sequence[Lower] = 2, *, region: Size = "64K", size: Size | None = None
    ) -> devices.Switch:
        """Make a disk whose regions each go to one of several paths.

        Args:
            paths: How many, or the disks.
            region: Sectors of a region, or text with a unit.
            size: Of fresh paths, and of the disk.
        """
        return self.build(
            lambda dm: devices.Switch(dm, faulty(dm, "paths", paths, size), region=to_sectors(region))
        )

    def multipath(
        self,
        lower: Lower | None = None,
        *,
        groups: Sequence[int] = (2,),
        selector: Selector | str = "round-robin",
        queue_if_no_path: bool = False,
        size: Size | None = None,
    ) -> devices.Multipath:
        """Make several paths to one disk.

        Args:
            lower: The disk.
            groups: How many paths each group has, groups in the order in which they are tried.
            selector: What chooses a path within a group: "round-robin", "queue-length", "service-time".
            queue_if_no_path: Let I/O **wait** while no path is left, instead of failing with EIO.
            size: Of a fresh disk.
        """

        def make(dm: Dm) -> devices.Multipath:
            disk = one(dm, "lower", lower, size)
            ways = [[dm.flakey(disk) for _ in range(count)] for count in groups]
            return devices.Multipath(
                dm,
                disk,
                ways,
                selector=selector,
                queue_if_no_path=queue_if_no_path,
            )

        return self.build(make)


def _fast(dm: Dm, fast: Lower | None, default: int, cache_size: Size | None) -> Disk:
    return beside(dm, "fast", fast, default, size=cache_size, size_field="cache_size", label="fast")
