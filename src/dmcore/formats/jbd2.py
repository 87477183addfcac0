"""The journal of ext3 and ext4: which blocks of the file system replaying it writes, and what.

Only what a healthy journal holds is read: where a checksum, a feature or the order of records is out of the ordinary, `replay`
says `None`, and what the kernel or e2fsck make of it is theirs to say.

Sources: Documentation/filesystems/ext4/journal.rst; fs/jbd2/recovery.c (do_one_pass), include/linux/jbd2.h.
"""

from __future__ import annotations

import struct
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from dmcore.formats.crc32c import crc32c, crc32c_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["JournalSuper", "Replay"]

_MAGIC = 0xC03B3998
_MAGIC_BYTES = _MAGIC.to_bytes(4, "big")
_DESCRIPTOR, _COMMIT, _SUPER_V2, _REVOKE = 1, 2, 4, 5
_REVOKES, _64BIT, _CSUM_V3 = 1, 2, 0x10
_KNOWN = _REVOKES | _64BIT | _CSUM_V3
_ESCAPED, _SAME_UUID, _DELETED, _LAST = 1, 2, 4, 8
_CRC32C = 4
_HEADER = struct.Struct(">III")
_SUPER = struct.Struct(">12x6I3I16s")
_SUPER_BYTES, _SUPER_CHECKSUM = 1024, 0xFC
_COMMIT_CHECKSUM = 16
_MANY = 1 << 14
_PLAIN = 2 << 20

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class JournalSuper(NamedTuple):
    """The journal's super block.

    Attributes:
        block_size: Bytes of a block.
        blocks: Blocks of the journal.
        first: Number of the first block behind the super block.
        sequence: Number of the oldest transaction that is not checkpointed.
        start: Number of its first block; 0: there is nothing to replay.
        error: What the file system was aborted with, an errno; 0 for nothing.
        wide: Whether block numbers have 64 bits.
        checksums: Whether there are checksums, of the third kind.
        seed: What they begin with.
    """

    block_size: int
    blocks: int
    first: int
    sequence: int
    start: int
    error: int
    wide: bool
    checksums: bool
    seed: int

    @classmethod
    def parse(cls, data: bytes) -> JournalSuper | None:
        """Return what the first block of a journal says; None if it is out of the ordinary."""
        if len(data) < _SUPER_BYTES or data[:4] != _MAGIC_BYTES or data[4:8] != struct.pack(">I", _SUPER_V2):
            return None
        block_size, blocks, first, sequence, start, error, compat, incompat, read_only, uuid = (
            _SUPER.unpack_from(data)
        )
        if compat or incompat & ~_KNOWN or read_only or block_size & (block_size - 1):
            return None
        if (
            not 1024 <= block_size <= 65536
            or not 1 <= first < blocks
            or (start and not first <= start < blocks)
        ):
            return None
        checksums = bool(incompat & _CSUM_V3)
        if checksums:
            plain = bytearray(data[:_SUPER_BYTES])
            plain[_SUPER_CHECKSUM : _SUPER_CHECKSUM + 4] = bytes(4)
            if data[0x50] != _CRC32C or crc32c(plain) != int.from_bytes(
                data[_SUPER_CHECKSUM : _SUPER_CHECKSUM + 4], "big"
            ):
                return None
        return cls(
            block_size, blocks, first, sequence, start, error, bool(incompat & _64BIT), checksums, crc32c(uuid)
        )  # fmt: skip


class _Tag(NamedTuple):
    target: int
    flags: int
    checksum: int


class _Done(NamedTuple):
    """How far a walk has come: behind a commit record.

    Attributes:
        at: Number of the block behind it.
        sequence: Number of the next transaction.
        left: Blocks of the journal that the walk has not been at.
        writes: Target and data of the blocks of the last transaction.
        revoked: Blocks that it revokes.
        before: How far it had come before that one.
    """

    at: int
    sequence: int
    left: int
    writes: tuple[tuple[int, bytes], ...]
    revoked: tuple[int, ...]
    before: _Done | None

    def outcome(self) -> dict[int, bytes]:
        """Return what all the transactions write, but what a later or the same one revokes."""
        found: dict[int, bytes] = {}
        revoked: set[int] = set()
        done: _Done | None = self
        while done is not None:
            revoked.update(done.revoked)
            for target, data in reversed(done.writes):
                if target not in revoked:
                    found.setdefault(target, data)
            done = done.before
        return found


class _Odd(Exception):
    """The journal is out of the ordinary."""


class Replay:
    """Replays journals of one file system, and remembers which records it has seen.

    Args:
        read: Returns blocks of the journal: number of the first, and how many.
    """

    def __init__(self, read: Callable[[int, int], bytes]) -> None:
        self.read = read
        self._sound: dict[tuple[bytes, bytes], bool] = {}
        self._known: dict[bytes, list[_Tag]] = {}
        self._super = b""
        self._summed = 0
        self._journal: JournalSuper | None = None
        self._done: _Done | None = None
        self._live = b"", b""
        self._result: dict[int, bytes] = {}

    def blocks(self) -> dict[int, bytes] | None:
        """Return what replaying writes: block of the file system to its content; None if the journal is out of the ordinary.

        The same object as the last time if nothing has changed in what it is about.
        """
        data = self.read(0, 1)[:_SUPER_BYTES]
        if data != self._super:
            self._super, self._journal = data, JournalSuper.parse(data)
        journal = self._journal
        if journal is None or journal.error:
            return None
        if not journal.start:
            return {}
        try:
            return self._walk(journal)
        except _Odd:
            return None

    def _walk(self, journal: JournalSuper) -> dict[int, bytes]:
        """Follow the transactions up to the first without a commit record."""
        done = self._again(journal)
        while (more := self._transaction(journal, done)) is not None:
            done = more
        if done.left <= 0 or done.sequence < journal.sequence:
            raise _Odd  # all of it is live, or the numbers begin anew: rare enough to leave to the kernel
        if done is not self._done:
            live = self._blocks(journal, journal.start, journal.blocks - done.left)
            self._done, self._live, self._result = done, (self._super, self._digest(live)), done.outcome()
        return self._result

    def _again(self, journal: JournalSuper) -> _Done:
        """Return where the last walk has come to, if all that it went through is as it was; else the begin."""
        if self._done is not None and self._live[0] == self._super:
            live = self._blocks(journal, journal.start, journal.blocks - self._done.left)
            if self._digest(live) == self._live[1]:
                return self._done
        return _Done(journal.start, journal.sequence, journal.blocks, (), (), None)

    def _transaction(self, journal: JournalSuper, done: _Done) -> _Done | None:
        """Go through the next transaction; return None if there is none, or none that was committed."""
        at, left = done.at, done.left
        writes: list[tuple[int, bytes]] = []
        revoked: list[int] = []
        sound = True
        while left > 0:
            block = self.read(at, 1)
            magic, kind, number = _HEADER.unpack_from(block)
            if magic != _MAGIC or number != done.sequence:
                return None
            at, left = self._next(journal, at, 1), left - 1
            if kind == _DESCRIPTOR:
                tags = self._tags(journal, block)
                data = self._blocks(journal, at, len(tags))
                at, left = self._next(journal, at, len(tags)), left - len(tags)
                sound = sound and self._is_sound(journal, block, tags, data)
                writes += [
                    (tag.target, one) for tag, one in zip(tags, self._cut(journal, tags, data), strict=True)
                ]
            elif kind == _REVOKE:
                revoked += self._revocations(journal, block)
            elif kind == _COMMIT:
                self._check(journal, block, _COMMIT_CHECKSUM)
                if not sound:
                    raise _Odd
                return _Done(at, done.sequence + 1 & 0xFFFFFFFF, left, tuple(writes), tuple(revoked), done)
            else:
                raise _Odd
        raise _Odd

    def _blocks(self, journal: JournalSuper, at: int, count: int) -> bytes:
        """Return the data of `count` blocks from `at` on, around the end."""
        if count >= journal.blocks - journal.first:
            raise _Odd
        before = min(count, journal.blocks - at)
        data = self.read(at, before)
        return data + self.read(journal.first, count - before) if before < count else data

    @staticmethod
    def _cut(journal: JournalSuper, tags: list[_Tag], data: bytes) -> Iterator[bytes]:
        size = journal.block_size
        for at, tag in enumerate(tags):
            one = data[at * size : (at + 1) * size]
            yield _MAGIC_BYTES + one[4:] if tag.flags & _ESCAPED else one

    def _is_sound(self, journal: JournalSuper, block: bytes, tags: list[_Tag], data: bytes) -> bool:
        """Return whether the blocks behind a descriptor are those that it describes; unknown of a journal without checksums."""
        if any(tag.flags & _DELETED for tag in tags):
            return False
        if not journal.checksums:
            return True
        key = self._digest(block), self._digest(data)
        known = self._sound.get(key)
        if known is None:
            begin = crc32c(block[8:12], journal.seed)
            found = self._checksums(data, journal.block_size, begin)
            known = found == [tag.checksum for tag in tags]
            self._remember(self._sound, key, known)
        return known

    def _checksums(self, data: bytes, size: int, begin: int) -> list[int]:
        """Return the checksum of each block of some data."""
        self._summed += len(data)
        if self._summed < _PLAIN:
            return [crc32c(data[at : at + size], begin) for at in range(0, len(data), size)]
        import numpy as np

        found: list[int] = crc32c_rows(np.frombuffer(data, np.uint8).reshape(-1, size), begin).tolist()
        return found

    @staticmethod
    def _digest(data: bytes) -> bytes:
        return blake2b(data, digest_size=16).digest()

    @staticmethod
    def _remember(memory: dict[_Key, _Value], key: _Key, value: _Value) -> None:
        if len(memory) >= _MANY:
            memory.clear()
        memory[key] = value

    @property
    def live(self) -> bool:
        """Whether the journal last gone through is one to be replayed, even if it holds no whole transaction."""
        return self._journal is not None and self._journal.start != 0

    @staticmethod
    def _next(journal: JournalSuper, at: int, count: int) -> int:
        at += count
        return at if at < journal.blocks else at - journal.blocks + journal.first

    def _check(self, journal: JournalSuper, block: bytes, place: int) -> None:
        """See that a record's checksum, at byte `place` of it, is right."""
        if not journal.checksums:
            return
        key = self._digest(block), b""
        known = self._sound.get(key)
        if known is None:
            plain = block[:place] + bytes(4) + block[place + 4 :]
            known = crc32c(plain, journal.seed) == int.from_bytes(block[place : place + 4], "big")
            self._remember(self._sound, key, known)
        if not known:
            raise _Odd

    def _tags(self, journal: JournalSuper, block: bytes) -> list[_Tag]:
        """Return what a descriptor block describes."""
        size = 16 if journal.checksums else 12 if journal.wide else 8
        end = journal.block_size - 4 * journal.checksums
        self._check(journal, block, end)
        digest = self._digest(block)
        if digest in self._known:
            return self._known[digest]
        tags: list[_Tag] = []
        at = 12
        while at + size <= end:
            low, second = struct.unpack_from(">II", block, at)
            high = checksum = 0
            if journal.checksums:
                high, checksum = struct.unpack_from(">II", block, at + 8)
                flags = second
            else:
                flags = second & 0xFFFF
                if journal.wide:
                    (high,) = struct.unpack_from(">I", block, at + 8)
            tags.append(_Tag(low | (high << 32 if journal.wide else 0), flags, checksum))
            at += size + (0 if flags & _SAME_UUID else 16)
            if flags & _LAST:
                break
        self._remember(self._known, digest, tags)
        return tags

    def _revocations(self, journal: JournalSuper, block: bytes) -> list[int]:
        """Return the blocks that a revocation record names."""
        end = journal.block_size - 4 * journal.checksums
        self._check(journal, block, end)
        used = int.from_bytes(block[12:16], "big")
        size = 8 if journal.wide else 4
        if not 16 <= used <= end or (used - 16) % size:
            raise _Odd
        return [int.from_bytes(block[at : at + size], "big") for at in range(16, used, size)]
