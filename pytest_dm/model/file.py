"""ModelFile: a model's bytes, as an open node gives a device's."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, NoReturn

from dmcore.errors import SpecError, Unsupported
from dmcore.model.block import FUA, IDLE, SYNC, discard_requests, fault
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from pytest_dm.model.device import Devices

__all__ = ["ModelFile"]

_CHUNK = 1 << 20


class ModelFile:
    """What `dmcore.kernel.block.BlockFile` is on a kernel, with the same pieces and the same checks.

    There is no page cache: without `direct` any offset and length will do, and errors still come at once.

    Attributes:
        block_size: Unit of offsets and lengths in bytes.
    """

    def __init__(
        self,
        devices: Devices,
        word: str,
        name: str,
        *,
        direct: bool = True,
        readonly: bool = False,
        synchronous: bool = False,
    ) -> None:
        self._device = devices[word]
        self._devices = devices
        self._name = name
        self.block_size = self._device.block_size if direct else 1
        self._readonly = readonly
        self._synchronous = synchronous
        self._closed = False

    @property
    def size(self) -> int:
        """Bytes."""
        return self._device.sectors * SECTOR

    def fileno(self) -> NoReturn:
        """Raise Unsupported: there is no descriptor."""
        have = "the model backend has no file descriptors"
        raise Unsupported(f"{self._name} as an open file", have, "pytest --dm-vm")

    def _check(self, offset: int, length: int) -> None:
        if self._closed:
            message = f"{self._name} is closed"
            raise ValueError(message)
        for field, value in (("offset", offset), ("length", length)):
            if value < 0:
                raise SpecError(field, value, "cannot be negative")
            if value % self.block_size:
                unit = self.block_size
                raise SpecError(field, value, f"direct I/O needs multiples of the {unit}-byte logical block")
        if offset + length > self.size:
            raise SpecError("length", length, f"{offset} + {length} is past the device's end at {self.size}")

    def _writable(self) -> None:
        if self._readonly:
            raise self._named(fault(errno.EBADF))

    def _named(self, error: OSError) -> OSError:
        return OSError(error.errno, os.strerror(error.errno or 0), self._name)

    def _do(self, request: Callable[[], None]) -> None:
        with self._devices.lock:
            try:
                self._devices.submit(self._device.word, request)
            except OSError as error:
                raise self._named(error) from error

    def _around(self, offset: int, length: int) -> tuple[int, int]:
        """Return first byte and length of the whole blocks that a range touches."""
        unit = self._device.block_size
        first = offset // unit * unit
        return first, -(-(offset + length) // unit) * unit - first

    def _read(self, offset: int, length: int) -> bytearray:
        data = bytearray(length)
        self._do(lambda: self._device.readinto(offset // SECTOR, memoryview(data)))
        return data

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`."""
        self._check(offset, length)
        pieces: list[bytes] = []
        while length:
            want = min(length, _CHUNK)
            first, whole = self._around(offset, want)
            skip = offset - first
            pieces.append(bytes(self._read(first, whole)[skip : skip + want]))
            offset += want
            length -= want
        return b"".join(pieces)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data` at `offset`."""
        view = memoryview(data).cast("B")
        self._check(offset, len(view))
        self._writable()
        for done in range(0, len(view), _CHUNK):
            self._write(offset + done, view[done : done + _CHUNK])

    def _write(self, offset: int, piece: memoryview) -> None:
        first, whole = self._around(offset, len(piece))
        if whole != len(piece):
            around = self._read(first, whole)
            around[offset - first : offset - first + len(piece)] = piece
            piece = memoryview(around)
        flags = SYNC | IDLE | (FUA if self._synchronous else 0)
        self._do(lambda: self._device.write(first // SECTOR, piece, flags))
        if self._synchronous:
            self.flush()

    def flush(self) -> None:
        """Make completed writes durable."""
        self._check(0, 0)
        self._do(self._device.flush)

    def _range(self, request: Callable[[int, int], None], offset: int, length: int) -> None:
        self._check(offset, length)
        self._writable()
        if offset % SECTOR or length % SECTOR:
            raise self._named(fault(errno.EINVAL))
        if length:
            self._do(lambda: request(offset // SECTOR, length // SECTOR))

    def discard(self, offset: int, length: int) -> None:
        """Discard a range; EOPNOTSUPP where the device does not."""
        clock = self._devices.clock
        self._range(
            lambda sector, count: clock.together(discard_requests(self._device, sector, count)),
            offset,
            length,
        )

    def write_zeroes(self, offset: int, length: int) -> None:
        """Zero a range; devices without the operation get ordinary writes of zeros."""
        self._range(self._device.write_zeroes, offset, length)

    def drop_caches(self) -> None:
        """Do nothing: nothing is cached."""

    def forget_cached(self) -> None:
        """Do nothing: nothing is cached."""

    def close(self) -> None:
        """Close; a second call does nothing."""
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
