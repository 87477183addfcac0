"""verity on disk: veritysetup's superblock, and the tree of hashes.

Sources: drivers/md/dm-verity-target.c (verity_ctr, verity_hash_at_level, verity_hash_init, verity_hash_final);
cryptsetup's docs/verity and lib/verity (the superblock, and where the tree begins).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from dmcore.errors import FormatError
from dmcore.formats.hashes import Hash, hash_named

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["SUPERBLOCK_SIZE", "Level", "Superblock", "Tree"]

SUPERBLOCK_SIZE = 512
_MAGIC = b"verity\0\0"
_FIELDS = struct.Struct("<8sII16s32sIIQH6x256s")
_BLOCK_SIZES = [1 << power for power in range(9, 17)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Superblock:
    """What veritysetup writes in front of the tree; 512 bytes.

    Attributes:
        version: Hash type, 0 or 1.
        uuid: Any.
        algorithm: Hash, by its kernel name.
        data_block_size: Bytes: a power of two, 512..65536 here and below.
        hash_block_size: Bytes.
        data_blocks: Number of blocks that the tree covers.
        salt: At most 256 bytes.
    """

    version: int
    uuid: UUID
    algorithm: str
    data_block_size: int
    hash_block_size: int
    data_blocks: int
    salt: bytes

    def encode(self) -> bytes:
        """Return its 512 bytes."""
        fields = _FIELDS.pack(
            _MAGIC, 1, self.version, self.uuid.bytes, self.algorithm.encode("ascii"), self.data_block_size,
            self.hash_block_size, self.data_blocks, len(self.salt), self.salt,
        )  # fmt: skip
        return fields.ljust(SUPERBLOCK_SIZE, b"\0")

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview, offset: int = 0) -> Superblock:
        """Read one, which stands at byte `offset` of its disk.

        Raises:
            FormatError: It is none, or says what cannot be.
        """
        if len(data) < SUPERBLOCK_SIZE:
            raise FormatError("the disk ends before the verity superblock", offset)
        magic, layout, version, uuid, name, data_size, hash_size, blocks, salt_size, salt = (
            _FIELDS.unpack_from(data)
        )
        if magic != _MAGIC:
            raise FormatError("no verity superblock", offset)
        if layout != 1:
            raise FormatError(f"verity superblock of version {layout}, not 1", offset + 8)
        if version > 1:
            raise FormatError(f"verity hash type {version}, not 0 or 1", offset + 12)
        algorithm = name.split(b"\0")[0].decode("latin-1")
        if not algorithm or not (algorithm.isascii() and algorithm.isprintable()) or " " in algorithm:
            raise FormatError(f"verity hash {algorithm!r}", offset + 32)
        for at, size, what in ((64, data_size, "data"), (68, hash_size, "hash")):
            if size not in _BLOCK_SIZES:
                raise FormatError(f"verity {what} blocks of {size} bytes", offset + at)
        if blocks > (2**63 - 1) // data_size:
            raise FormatError(f"verity with {blocks} data blocks", offset + 72)
        if salt_size > 256:
            raise FormatError(f"verity salt of {salt_size} bytes, at most 256 are possible", offset + 80)
        return cls(
            version=version,
            uuid=UUID(bytes=uuid),
            algorithm=algorithm,
            data_block_size=data_size,
            hash_block_size=hash_size,
            data_blocks=blocks,
            salt=salt[:salt_size],
        )


@dataclass(frozen=True, slots=True)
class Level:
    """A level of the tree: `blocks` hash blocks, of which the first is block `start` of the hash device."""

    start: int
    blocks: int


class Tree:
    """Where the hashes are, and how they are made.

    Args:
        version: Hash type, 0 (salt behind the data, digests packed) or 1 (salt before, digests padded).
        algorithm: Hash, by its kernel name.
        hash_block_size: Bytes; at least two digests.
        data_blocks: Number of data blocks, 0..2^64-1.
        hash_start: First hash block of the tree on its device.
        salt: Any number of bytes.

    Attributes:
        levels: From the leaves to the top; none for a tree of at most one data block.
        blocks: Hash blocks of all levels.
        fanout: Digests in a hash block.
        slot: Bytes from one digest to the next.
        digest_size: Bytes of a digest.

    Raises:
        Unsupported: Python does not have the hash.
    """

    def __init__(
        self,
        *,
        version: int = 1,
        algorithm: str = "sha256",
        hash_block_size: int = 4096,
        data_blocks: int,
        hash_start: int = 0,
        salt: bytes = b"",
    ) -> None:
        self._salt = salt
        self._before = version == 1
        self._begun = hash_named(algorithm)()
        if self._before and salt:
            self._begun.update(salt)
        self.hash_block_size = hash_block_size
        self.digest_size = self._begun.digest_size
        self._bits = (hash_block_size // self.digest_size).bit_length() - 1
        self.fanout = 1 << self._bits
        self.slot = hash_block_size // self.fanout if version else self.digest_size
        counts: list[int] = []
        count = data_blocks
        while count > 1:
            count = -(-count // self.fanout)
            counts.append(count)
        self.blocks = sum(counts)
        end = hash_start + self.blocks
        levels: list[Level] = []
        for count in counts:
            end -= count
            levels.append(Level(end, count))
        self.levels = tuple(levels)

    def digest(self, block: bytes | bytearray | memoryview) -> bytes:
        """Return the digest of a data or hash block."""
        hasher: Hash = self._begun.copy()
        hasher.update(block)
        if not self._before:
            hasher.update(self._salt)
        return hasher.digest()

    def digests(self, blocks: Iterable[memoryview]) -> list[bytes]:
        """Return the digests of blocks; what is left out here is paid for a million times."""
        copy, salt = self._begun.copy, b"" if self._before else self._salt
        found: list[bytes] = []
        for block in blocks:
            hasher = copy()
            hasher.update(block)
            if salt:
                hasher.update(salt)
            found.append(hasher.digest())
        return found

    def place(self, block: int, level: int) -> tuple[int, int]:
        """Return where the digest stands that `level` has above data block `block`: hash block of the device, and byte."""
        index = block >> (self._bits * level)
        return self.levels[level].start + (index >> self._bits), (index & (self.fanout - 1)) * self.slot

    def pack(self, digests: Iterable[bytes]) -> bytes:
        """Return the hash block of up to `fanout` digests."""
        padding = bytes(self.slot - self.digest_size)
        return padding.join([*digests, b""])[: self.hash_block_size].ljust(self.hash_block_size, b"\0")
