"""verity images without root: make them, byte for byte as veritysetup does, and read them.

Source: cryptsetup's lib/verity (VERITY_create, VERITY_FEC_encode, VERITY_FEC_blocks, VERITY_hash_offset_block).
"""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from dmcore import validate
from dmcore.errors import FormatError, SpecError
from dmcore.formats.verity import SUPERBLOCK_SIZE, Superblock, Tree
from dmcore.model.block import BlockDevice
from dmcore.model.stores import FileStore
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeAlias

    from dmcore.target import Features
    from dmcore.targets.verity import OnCorruption
    from dmcore.volume import Volume

    Disk: TypeAlias = str | os.PathLike[str] | BlockDevice | Volume

__all__ = ["format_verity", "open_verity"]

_CHUNK = 1 << 20
_SALT_SIZE = 32
_AHEAD = 4


def _same(one: Disk, other: Disk) -> bool:
    if not isinstance(one, str | os.PathLike) or not isinstance(other, str | os.PathLike):
        return one is other
    try:
        return Path(one).samefile(other)
    except FileNotFoundError:
        return False


def _open(stack: ExitStack, disk: Disk, *, room: int | None = None) -> BlockDevice:
    """Open a disk; a file is made, and grows to `room` bytes. None: only to be read."""
    if isinstance(disk, BlockDevice):
        return disk
    if not isinstance(disk, str | os.PathLike):
        return disk.device
    if room is not None:
        fd = os.open(disk, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            found = os.fstat(fd)
            if stat.S_ISREG(found.st_mode) and found.st_size < room:
                os.truncate(fd, room)
        finally:
            os.close(fd)
    return stack.enter_context(FileStore(disk, readonly=room is None))


def _fits(device: BlockDevice, room: int, field: str) -> None:
    if device.sectors * SECTOR < room:
        raise SpecError(field, device.word or "(device)", f"too small: it must have {room} bytes")


def _tree_start(hash_offset: int, hash_block_size: int, *, superblock: bool) -> int:
    """Return the tree's first hash block; the superblock takes the one before."""
    return -(-(hash_offset + SUPERBLOCK_SIZE * superblock) // hash_block_size)


def _block_size(field: str, size: int) -> None:
    validate.integer(field, size, SECTOR, 1 << 16, "bytes")
    if size & (size - 1):
        raise SpecError(field, size, "must be a power of two")


def _offset(field: str, offset: int, unit: int) -> None:
    validate.integer(field, offset, 0, 2**63 - 1, "bytes")
    if offset % unit:
        raise SpecError(field, offset, f"must be a multiple of {unit} bytes")


def _checked_salt(salt: bytes | None, *, superblock: bool) -> bytes:
    if salt is None:
        if not superblock:
            raise SpecError("salt", salt, "must be given without a superblock, which would keep a random one")
        return os.urandom(_SALT_SIZE)
    if len(salt) > 256:
        raise SpecError("salt", f"({len(salt)} bytes)", "at most 256 bytes")
    return salt


def format_verity(
    data: Disk,
    hashes: Disk,
    *,
    version: int = 1,
    algorithm: str = "sha256",
    data_block_size: int = 4096,
    hash_block_size: int = 4096,
    data_blocks: int | None = None,
    hash_offset: int = 0,
    salt: bytes | None = None,
    uuid: UUID | None = None,
    superblock: bool = True,
    fec: Disk | None = None,
    fec_offset: int = 0,
    fec_roots: int = 2,
    threads: int = 1,
) -> bytes:
    """Write the tree of hashes of `data`, and parity if there is a disk for it, as `veritysetup format` does.

    Args:
        data: What is to be protected: a file, block device, `BlockDevice` or volume. It is only read.
        hashes: Where the tree goes; may be the same. A file is made where there is none, and grows as needed.
        version: Hash type, 0 or 1.
        algorithm: Hash, by its kernel name.
        data_block_size: Bytes: a power of two, 512..65536; the end of `data` that is no whole block is left out.
        hash_block_size: The same for the tree; at least two digests.
        data_blocks: How much of `data` to protect; None for all.
        hash_offset: Where superblock and tree begin on `hashes`: bytes, a multiple of 512, without superblock of
            `hash_block_size`.
        salt: At most 256 bytes; None for 32 random ones, which only the superblock then tells.
        uuid: Of the superblock; None for a random one.
        superblock: Write one.
        fec: Where parity goes; both block sizes must be the same. A file is made or grows. May be `hashes`.
        fec_offset: Where parity begins: bytes, whole data blocks.
        fec_roots: Parity bytes for each 255, 2..24.
        threads: How many make hashes at once. More than one saves time, and costs some CPU.

    Returns:
        The root hash, which nothing on the disks tells.

    Raises:
        SpecError: A bad argument, or a disk that is too small; nothing was written.
        Unsupported: Python does not have the hash.
        OSError: A disk cannot be read or written.
    """
    validate.integer("version", version, 0, 1)
    validate.integer("threads", threads, 1, 1024)
    _block_size("data_block_size", data_block_size)
    _block_size("hash_block_size", hash_block_size)
    _offset("hash_offset", hash_offset, SECTOR if superblock else hash_block_size)
    salt = _checked_salt(salt, superblock=superblock)
    if fec is not None:
        _check_parity(fec_offset, fec_roots, data_block_size, hash_block_size)
    with ExitStack() as stack:
        source = _open(stack, data)
        there = source.sectors * SECTOR // data_block_size
        count = there if data_blocks is None else data_blocks
        validate.integer("data_blocks", count, 1, there, "blocks of data")
        start = _tree_start(hash_offset, hash_block_size, superblock=superblock)
        tree = Tree(
            version=version, algorithm=algorithm, hash_block_size=hash_block_size, data_blocks=count,
            hash_start=start, salt=salt,
        )  # fmt: skip
        _check_digests(tree)
        if _same(data, hashes) and hash_offset < count * data_block_size:
            raise SpecError("hash_offset", hash_offset, f"lies in the data, {count} blocks")
        room = (start + tree.blocks) * hash_block_size
        target = _open(stack, hashes, room=room)
        _fits(target, room, "hashes")
        parity = None
        if fec is not None:
            parity = _Parity(
                stack, hashes, target, fec, offset=fec_offset, roots=fec_roots,
                block_size=hash_block_size, data_blocks=count, start=start, tree_blocks=tree.blocks,
            )  # fmt: skip
        root = _write_tree(source, target, tree, data_block_size, count, threads=threads)
        if superblock:
            head = Superblock(
                version=version, uuid=uuid or uuid4(), algorithm=algorithm, data_block_size=data_block_size,
                hash_block_size=hash_block_size, data_blocks=count, salt=salt,
            )  # fmt: skip
            target.write(hash_offset // SECTOR, memoryview(head.encode()))
        if parity is not None:
            parity.write(source)
        target.flush()
    return root


def _check_parity(offset: int, roots: int, data_block_size: int, hash_block_size: int) -> None:
    validate.integer("fec_roots", roots, 2, 24, "bytes")
    _offset("fec_offset", offset, data_block_size)
    if data_block_size != hash_block_size:
        raise SpecError("hash_block_size", hash_block_size, "must be the data block size for parity")


def _check_digests(tree: Tree) -> None:
    if tree.hash_block_size < 2 * tree.digest_size:
        reason = f"must hold two digests of {tree.digest_size} bytes"
        raise SpecError("hash_block_size", tree.hash_block_size, reason)


class _Parity:
    """Where parity goes, and what it covers: the data, and the tree's disk from the tree's start on."""

    def __init__(
        self,
        stack: ExitStack,
        hashes: Disk,
        target: BlockDevice,
        fec: Disk,
        *,
        offset: int,
        roots: int,
        block_size: int,
        data_blocks: int,
        start: int,
        tree_blocks: int,
    ) -> None:
        self._offset, self._roots, self._block_size = offset, roots, block_size
        self._data_blocks, self._start, self._target = data_blocks, start, target
        self._cover = _covered(hashes, target, fec, offset, block_size=block_size, start=start)
        if self._cover < tree_blocks:
            raise SpecError("fec_offset", offset, "lies in front of the tree's end")
        room = offset + _region(data_blocks + self._cover, roots) * roots * block_size
        self._device = _open(stack, fec, room=room)
        _fits(self._device, room, "fec")

    def write(self, source: BlockDevice) -> None:
        """Write the parity of what is there now, and flush it."""
        covered = _Covered(
            source, self._data_blocks, self._target,
            start=self._start, more=self._cover, block_size=self._block_size,
        )  # fmt: skip
        _write_parity(covered, self._device, self._offset, self._roots)
        self._device.flush()


def _covered(
    hashes: Disk, device: BlockDevice, fec: Disk, fec_offset: int, *, block_size: int, start: int
) -> int:
    """Return how many blocks parity covers from the tree's start on: to the parity, or to the end of another disk."""
    end = fec_offset if _same(hashes, fec) else device.sectors * SECTOR
    return end // block_size - start


class _Room:
    """Room for some blocks, cut into them once for all."""

    def __init__(self, count: int, block_size: int) -> None:
        self.content = memoryview(bytearray(count * block_size))
        self.blocks = [self.content[at : at + block_size] for at in range(0, len(self.content), block_size)]


def _digests(
    source: BlockDevice, tree: Tree, block_size: int, count: int, threads: int
) -> Iterator[list[bytes]]:
    """Yield the digests of all data blocks, some at a time, in order."""
    each = max(_CHUNK // block_size, 1)
    unit = block_size // SECTOR

    def chunk(first: int, room: _Room | None = None) -> list[bytes]:
        room = room or _Room(each, block_size)
        number = min(each, count - first)
        source.readinto(first * unit, room.content[: number * block_size])
        return tree.digests(room.blocks if number == each else room.blocks[:number])

    firsts = iter(range(0, count, each))
    if threads == 1:
        room = _Room(each, block_size)
        yield from (chunk(first, room) for first in firsts)
        return
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - a tenth of a second, for few

    with ThreadPoolExecutor(threads) as pool:
        waiting = [pool.submit(chunk, first) for first in islice(firsts, threads + _AHEAD)]
        while waiting:
            yield waiting.pop(0).result()
            waiting += [pool.submit(chunk, first) for first in islice(firsts, 1)]


def _write_tree(
    source: BlockDevice, target: BlockDevice, tree: Tree, block_size: int, count: int, *, threads: int
) -> bytes:
    """Write all levels at once, each block when it is full; return the root. Memory is a block for each level."""
    unit = tree.hash_block_size // SECTOR
    pending: list[list[bytes]] = [[] for _ in tree.levels]
    written = [0] * len(tree.levels)
    root = b""

    def put(level: int, digests: list[bytes], *, last: bool) -> None:
        nonlocal root
        if level == len(tree.levels):
            root = digests[0]
            return
        waiting = pending[level]
        waiting += digests
        above: list[bytes] = []
        while len(waiting) >= tree.fanout or (last and waiting):
            block = tree.pack(waiting[: tree.fanout])
            del waiting[: tree.fanout]
            target.write((tree.levels[level].start + written[level]) * unit, memoryview(block))
            written[level] += 1
            above.append(tree.digest(block))
        if above or last:
            put(level + 1, above, last=last)

    done = 0
    for digests in _digests(source, tree, block_size, count, threads):
        done += len(digests)
        put(0, digests, last=done == count)
    return root


class _Covered:
    """The blocks that parity covers: data, then what stands on the hash device from the tree on."""

    def __init__(
        self,
        data: BlockDevice,
        data_blocks: int,
        hashes: BlockDevice,
        *,
        start: int,
        more: int,
        block_size: int,
    ) -> None:
        self._data, self._data_blocks = data, data_blocks
        self._hashes, self._start = hashes, start
        self.blocks = data_blocks + more
        self.block_size = block_size
        self._unit = block_size // SECTOR

    def read(self, first: int, count: int) -> bytes:
        """Return `count` blocks from `first`, which end where the covered ones do."""
        count = min(count, self.blocks - first)
        parts: list[bytes | bytearray] = []
        if first < self._data_blocks:
            here = min(count, self._data_blocks - first)
            parts.append(self._data.read(first * self._unit, here * self._unit))
            first, count = first + here, count - here
        if count > 0:
            at = self._start + first - self._data_blocks
            parts.append(self._hashes.read(at * self._unit, count * self._unit))
        return b"".join(parts)


def _region(blocks: int, roots: int) -> int:
    """Return how many code words, a block wide, `blocks` blocks are: as many blocks has each byte of parity."""
    from dmcore.formats.reed_solomon import WORD  # noqa: PLC0415 - for few

    return -(-blocks // (WORD - roots))


def _write_parity(covered: _Covered, target: BlockDevice, offset: int, roots: int) -> None:
    from dmcore.formats.reed_solomon import WORD, parity  # noqa: PLC0415 - for few

    size = covered.block_size
    columns = WORD - roots
    region = _region(covered.blocks, roots)
    each = max((_CHUNK >> 4) // size, 1)
    for first in range(0, region, each):
        count = min(each, region - first)
        words = count * size
        starts = [column * region + first for column in range(columns)]
        message = (
            covered.read(start, count).ljust(words, b"\0") if start < covered.blocks else None
            for start in starts
        )
        found = parity(message, roots, words)
        mixed = bytearray(words * roots)
        for root, column in enumerate(found):
            mixed[root::roots] = column
        target.write((offset + first * size * roots) // SECTOR, memoryview(mixed))


def open_verity(
    data: Disk,
    hashes: Disk,
    root: bytes,
    *,
    hash_offset: int = 0,
    fec: Disk | None = None,
    fec_offset: int = 0,
    fec_roots: int = 2,
    on_corruption: OnCorruption | None = None,
    ignore_zero_blocks: bool = False,
    check_at_most_once: bool = False,
    features: Features = frozenset(),
) -> Volume:
    """Open an image with a superblock, as `veritysetup open` does, to be read.

    Args:
        data: What is protected.
        hashes: Where superblock and tree are; may be the same.
        root: The root hash: what the rest is trusted for.
        hash_offset: Where the superblock is on `hashes`: bytes, a multiple of 512.
        fec: Where parity is, which repairs what does not match. May be `hashes`.
        fec_offset: Where it begins: bytes, whole blocks.
        fec_roots: Parity bytes for each 255.
        on_corruption: See `targets.Verity`, as for the other options.
        ignore_zero_blocks: Return zeros unread where they are expected.
        check_at_most_once: Check a block at its first read only.
        features: The kernel to behave as, where kernels differ.

    Returns:
        A read-only volume; reads of what does not match fail with EIO.

    Raises:
        FormatError: No superblock there, or one that cannot be.
        SpecError: A bad argument, or a disk that is too small.
        OSError: A disk cannot be read; E2BIG: it ends within the tree or the parity.
    """
    from dmcore.ref import Ref  # noqa: PLC0415 - whoever only formats need not wait for what only volumes need
    from dmcore.table import Table  # noqa: PLC0415
    from dmcore.targets.verity import Fec, Verity  # noqa: PLC0415
    from dmcore.volume import open_volume  # noqa: PLC0415

    _offset("hash_offset", hash_offset, SECTOR)
    with ExitStack() as stack:
        device = _open(stack, hashes)
        if hash_offset + SUPERBLOCK_SIZE > device.sectors * SECTOR:
            raise FormatError("the disk ends before the verity superblock", hash_offset)
        head = Superblock.decode(device.read(hash_offset // SECTOR, 1), hash_offset)
        start = _tree_start(hash_offset, head.hash_block_size, superblock=True)
        disks: dict[str, Disk] = {"data": data, "hashes": hashes}
        parity_of = None
        if fec is not None:
            _offset("fec_offset", fec_offset, head.data_block_size)
            more = _covered(hashes, device, fec, fec_offset, block_size=head.hash_block_size, start=start)
            parity_of = Fec(
                dev=Ref("fec"), start=fec_offset // head.data_block_size, blocks=max(head.data_blocks + more, 1),
                roots=fec_roots,
            )  # fmt: skip
            disks["fec"] = fec
    target = Verity(
        version=head.version, data=Ref("data"), hashes=Ref("hashes"), data_block_size=head.data_block_size,
        hash_block_size=head.hash_block_size, data_blocks=head.data_blocks, hash_start=start,
        algorithm=head.algorithm, root=root, salt=head.salt, on_corruption=on_corruption,
        ignore_zero_blocks=ignore_zero_blocks, check_at_most_once=check_at_most_once, fec=parity_of,
    )  # fmt: skip
    table = Table.of(target, head.data_blocks * head.data_block_size // SECTOR)
    return open_volume(table, disks, mode="r", features=features)
