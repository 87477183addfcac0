"""Cache: a slow disk with a fast one for its often used blocks."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dmcore import targets
from dmcore.errors import DmError, SpecError, Unsupported
from dmcore.table import Table
from dmcore.targets.cache import CacheMode, CacheStatus, Failed, InvalidateCblocks, Policy
from dmcore.units import SECTOR
from pytest_dm.devices.base import DmDevice
from pytest_dm.devices.waiting import PATIENCE, kernel_word, state_of, wait_until

if TYPE_CHECKING:
    from pytest_dm.devices.flakey import Flakey
    from pytest_dm.factory import Dm

__all__ = ["Cache"]

_ROUNDS = 20


class Cache(DmDevice):
    """A disk whose often used blocks are kept on a fast device; every device below has the verbs of `flakey`.

    Attributes:
        origin: The slow device, healthy at first. In writeback mode it lacks what is dirty.
        fast: The device with the cached blocks, healthy at first.
        metadata: The device that says which they are, healthy at first.
        cache_block_size: Bytes of a cached block.
    """

    def __init__(
        self,
        maker: Dm,
        origin: Flakey,
        fast: Flakey,
        metadata: Flakey,
        *,
        block_sectors: int,
        mode: CacheMode | str,
        words: dict[str, Any],
    ) -> None:
        self.origin = origin
        self.fast = fast
        self.metadata = metadata
        self.cache_block_size = block_sectors * SECTOR
        self._value = targets.Cache(
            metadata=metadata.ref, cache=fast.ref, origin=origin.ref, block_sectors=block_sectors,
            mode=kernel_word("mode", CacheMode, mode), **words,
        )  # fmt: skip
        super().__init__(maker, Table.of(self._value, origin.size // SECTOR), label="cache")

    @property
    def state(self) -> CacheStatus:
        """What the kernel says of it: use, hits and misses, dirty blocks, mode.

        Raises:
            DmError: The cache has `failed`.
        """
        return state_of(self, CacheStatus)

    @property
    def failed(self) -> bool:
        """Whether the cache gave up after an error of its metadata; it then serves what it knows, and the origin."""
        return self.status() == [Failed()]

    @property
    def dirty(self) -> int:
        """Blocks that are newer in the cache than on the origin."""
        return self.state.dirty

    def warm(self, offset: int = 0, length: int | None = None, timeout: float = PATIENCE) -> None:
        """Read blocks, and write back what they hold, until the cache takes one more for each of them.

        The policy decides which; those that are used all the time are what it wants. Nothing else may write meanwhile.

        Args:
            offset: First byte, a whole block.
            length: Bytes, whole blocks; None for one block.
            timeout: Seconds.

        Raises:
            SpecError: Not whole blocks of the device, or more than the cache has free.
            DmError: They are not in the cache after that time.
            Unsupported: On a model, which takes in nothing: what is worth it is the choice of a kernel's policy.
        """
        if self.runtime.kind != "kernel":
            have = "the model of cache takes none in"
            raise Unsupported("a policy that takes blocks into the cache", have, "pytest --dm-vm")
        size = self.cache_block_size
        count = size if length is None else length
        if offset % size or count % size or count < size or not 0 <= offset <= self.size - count:
            raise SpecError(
                "length", count, f"whole blocks of {size} bytes within {self.size}, not from {offset}"
            )
        before = self.state
        wanted = before.promotions + count // size
        if count // size > before.blocks.total - before.blocks.used:
            raise SpecError(
                "length", count, f"the cache has {before.blocks.total - before.blocks.used} free blocks"
            )
        deadline = time.monotonic() + timeout
        with self.open() as file:
            while self.state.promotions < wanted:
                if time.monotonic() > deadline:
                    message = (
                        f"{self.name} has not taken the blocks in after {timeout:g} s: {self.statuses()}"
                    )
                    raise DmError(message)
                for _ in range(_ROUNDS):
                    for block in range(offset, offset + count, size):
                        file.write(block, file.read(block, file.block_size))

    def write_back(self, timeout: float = PATIENCE) -> None:
        """Write every dirty block back to the origin: the cleaner policy does it, then the old one is back.

        Raises:
            DmError: Some are dirty after `timeout` seconds.
        """
        value = self._value
        self._load(replace(value, policy=Policy.CLEANER, tunables=()))
        try:
            wait_until(self, "clean", lambda: not self.dirty, timeout)
        finally:
            self._load(value)

    def set_mode(self, mode: CacheMode | str) -> None:
        """Change to writeback, writethrough or passthrough; blocks that are dirty are written back first if need be."""
        wanted = kernel_word("mode", CacheMode, mode)
        if wanted is not CacheMode.WRITEBACK and self.dirty:
            self.write_back()
        self._load(replace(self._value, mode=wanted))

    def invalidate(self, first: int = 0, count: int | None = None) -> None:
        """Forget cached blocks, by their places in the cache, all without arguments; in passthrough mode only.

        Raises:
            SpecError: Another mode, or no such blocks.
        """
        if self._value.mode is not CacheMode.PASSTHROUGH:
            raise SpecError("mode", self._value.mode, "set_mode('passthrough') first")
        total = self.state.blocks.total
        end = total if count is None else first + count
        if not 0 <= first < end <= total:
            raise SpecError("first", first, f"the cache has blocks 0..{total - 1}, this is {first}..{end}")
        self.device.send(InvalidateCblocks((range(first, end),)))

    def _load(self, value: targets.Cache) -> None:
        self._replace(Table.of(value, self.sectors), lockfs=False)
        self._value = value
