"""Image ids: which crash states are the same bytes, known without making an image of either.

The id of an image is the exclusive or, over all blocks that differ from the device as it was before the log, of a
keyed hash of block number and content. So the id of the next state comes from the blocks that change, and states of
different epochs compare.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

from dmcore.crash.states import State, state_pieces

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from collections.abc import Set as AbstractSet

    from dmcore.crash.epochs import Piece, Timeline, Write
    from dmcore.crash.log import CrashLog

__all__ = ["ImageIds", "block_hash", "block_size"]

_LARGEST = 4096
_REMEMBERED = 1 << 16
_BASE, _ZEROS = -2, -1
_ZERO = {1 << shift: bytes(1 << shift) for shift in range(9, 13)}


def block_hash(block: int, data: bytes | bytearray) -> int:
    """Return the hash of a block and its number: 128 bits; 0 of zeros, so that what is discarded costs nothing."""
    if data == _ZERO.get(len(data)):
        return 0
    return int.from_bytes(blake2b(data, digest_size=16, salt=block.to_bytes(8, "little")).digest(), "little")


def block_size(log: CrashLog) -> int:
    """Return the largest power of two, at most 4096, at whose multiples all entries begin and end."""
    bits = log.sector_size | log.size
    for entry in range(len(log.index)):
        offset, length = log.index.extent_of(entry)
        bits |= offset | length
    return min(_LARGEST, bits & -bits)


class ImageIds:
    """Ids of the states of one log, an epoch after the other.

    Args:
        log: The log.
        timeline: Its epochs.
        torn_size: Bytes of a sector that torn states write whole or not.
    """

    def __init__(self, log: CrashLog, timeline: Timeline, torn_size: int) -> None:
        self._log = log
        self._epochs = timeline.epochs
        self._torn_size = torn_size
        self.block_size = block_size(log)
        self._known: dict[tuple[int, int], list[int]] = {}
        self._count = 0
        self._source: dict[int, int] = {}
        self._hashes: dict[int, int] = {}
        self._durable = 0
        self._epoch = -1
        self._deltas: list[int] = []
        self._shared: list[frozenset[int]] = []
        self._blocks: list[dict[int, int]] = []
        self._writers: dict[int, list[int]] = {}
        self._last = (0, 0)

    def goto(self, epoch: int) -> None:
        """Make `epoch` the one whose states are asked for; going back begins anew."""
        if epoch == self._epoch:
            return
        if epoch < self._epoch:
            self._source = {}
            self._hashes = {}
            self._durable, self._epoch = 0, -1
        while self._epoch < epoch:
            self._epoch += 1
            for write in self._epochs[self._epoch].durable:
                self._settle(write)
        self._prepare(self._epochs[epoch].pending)

    def of(self, state: State) -> int:
        """Return the id of a state of the epoch last gone to."""
        if state.torn:
            return self._composed(state)
        mask, value = self._last
        difference = mask ^ state.present
        shared: set[int] = set()
        while difference:
            bit = difference & -difference
            write = bit.bit_length() - 1
            value ^= self._deltas[write]
            shared |= self._shared[write]
            difference ^= bit
        for block in shared:
            value ^= self._top(block, mask) ^ self._top(block, state.present)
        self._last = (state.present, value)
        return self._durable ^ value

    def _top(self, block: int, mask: int) -> int:
        """Return the hash of a block that several pending writes write, less that of what is durable there."""
        for write in reversed(self._writers[block]):
            if mask >> write & 1:
                return self._blocks[write][block] ^ self._current(block)
        return 0

    def _settle(self, write: Write) -> None:
        for block, value, source in self._hashed(write.pieces):
            self._durable ^= value ^ self._current(block)
            self._hashes[block] = value
            self._source[block] = source

    def _prepare(self, pending: Sequence[Write]) -> None:
        written = {
            block
            for write in pending
            for piece in write.pieces
            if piece.source >= 0
            for block in range(
                piece.offset // self.block_size, (piece.offset + piece.length) // self.block_size
            )
        }
        self._blocks = [
            {block: value for block, value, _ in self._hashed(write.pieces, written)} for write in pending
        ]
        self._writers = {}
        for write, blocks in enumerate(self._blocks):
            for block in blocks:
                self._writers.setdefault(block, []).append(write)
        self._shared = [
            frozenset(block for block in blocks if len(self._writers[block]) > 1) for blocks in self._blocks
        ]
        self._deltas = []
        for blocks, shared in zip(self._blocks, self._shared, strict=True):
            delta = 0
            for block, value in blocks.items():
                if block not in shared:
                    delta ^= value ^ self._current(block)
            self._deltas.append(delta)
        self._last = (0, 0)

    def _hashed(
        self, pieces: Iterable[Piece], others: AbstractSet[int] = frozenset()
    ) -> Iterable[tuple[int, int, int]]:
        """Yield number, hash and source of each block of whole-block pieces; of zeros only where there may be something else.

        Args:
            pieces: The pieces.
            others: Blocks that others write.
        """
        size = self.block_size
        for offset, length, source in pieces:
            if source < 0:
                for block in self._zeroed(offset // size, (offset + length) // size, others):
                    yield block, 0, _ZEROS
                continue
            known = self._known.get((source, length))
            if known is None:
                data = self._log.index.read(source, length)
                known = [
                    block_hash((offset + at) // size, data[at : at + size]) for at in range(0, length, size)
                ]
                self._remember((source, length), known)
            for at, value in enumerate(known):
                yield offset // size + at, value, source + at * size

    def _remember(self, key: tuple[int, int], hashes: list[int]) -> None:
        """Keep the hashes of a piece for the next time that its epoch is gone to; so many that memory stays small."""
        self._count += len(hashes)
        if self._count > _REMEMBERED:
            self._known.clear()
            self._count = len(hashes)
        self._known[key] = hashes

    def _zeroed(self, first: int, last: int, others: AbstractSet[int]) -> Iterable[int]:
        """Return the blocks of a range that may not be zeros, or are written by others."""
        if last - first <= len(self._hashes) + len(others):
            return range(first, last)
        known = {block for block in self._hashes if first <= block < last}
        known |= {block for block in others if first <= block < last}
        for start, stop in self._log.base_extents(first * self.block_size, last * self.block_size):
            known.update(range(start // self.block_size, -(-stop // self.block_size)))
        return sorted(known)

    def _current(self, block: int) -> int:
        value = self._hashes.get(block)
        if value is None and self._log.base is None:
            return 0
        if value is None:
            value = block_hash(block, self._log.read_base(block * self.block_size, self.block_size))
            self._hashes[block] = value
        return value

    def _content(self, block: int) -> bytes:
        source = self._source.get(block, _BASE)
        if source == _ZEROS:
            return bytes(self.block_size)
        if source == _BASE:
            return self._log.read_base(block * self.block_size, self.block_size)
        return self._log.index.read(source, self.block_size)

    def _composed(self, state: State) -> int:
        """Return the id of a state with torn writes: by the content of its blocks."""
        size = self.block_size
        whole = State(state.epoch, state.present & ~sum(1 << tear.write for tear in state.torn))
        torn = {tear.write for tear in state.torn}
        touched: set[int] = set()
        for tear in state.torn:
            touched |= self._blocks[tear.write].keys()
        content = {block: bytearray(self._content(block)) for block in touched}
        rest = self.of(whole)
        for block in touched:
            rest ^= self._top(block, whole.present)
        for number, pieces in self._numbered(state):
            if number not in torn and not touched & self._blocks[number].keys():
                continue
            for offset, length, source in pieces:
                data = bytes(length) if source < 0 else self._log.index.read(source, length)
                for block in range(offset // size, (offset + length - 1) // size + 1):
                    if block in content:
                        start, stop = max(offset, block * size), min(offset + length, (block + 1) * size)
                        content[block][start - block * size : stop - block * size] = data[
                            start - offset : stop - offset
                        ]
        for block, mixed in content.items():
            rest ^= block_hash(block, mixed) ^ self._current(block)
        return rest

    def _numbered(self, state: State) -> Iterable[tuple[int, Sequence[Piece]]]:
        pending = self._epochs[state.epoch].pending
        numbers = (i for i in range(len(pending)) if state.present >> i & 1)
        return (
            (number, pieces)
            for number, (_, pieces) in zip(
                numbers, state_pieces(self._epochs[state.epoch], state, self._torn_size), strict=True
            )
        )
