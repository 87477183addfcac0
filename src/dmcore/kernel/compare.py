"""Compare two files where they are, in the page cache, without copying either."""

from __future__ import annotations

import ctypes
import mmap

from dmcore.kernel.libc import LIBC

__all__ = ["Pair"]

_MEMCMP = LIBC.memcmp
_MEMCMP.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_MEMCMP.restype = ctypes.c_int


class Pair:
    """Two open files of one size, mapped.

    Neither may be shorter than `size` when they are compared: reading a page behind a file's end kills the process (SIGBUS).

    Args:
        one: Descriptor, open for reading and writing.
        other: The same.
        size: Bytes of both.
    """

    def __init__(self, one: int, other: int, size: int) -> None:
        self._maps = [mmap.mmap(fd, size, mmap.MAP_SHARED) for fd in (one, other)]
        self._views = [ctypes.c_char.from_buffer(mapped) for mapped in self._maps]
        self._one, self._other = (ctypes.addressof(view) for view in self._views)

    def same(self, offset: int, length: int) -> bool:
        """Return whether a range is the same in both."""
        return bool(_MEMCMP(self._one + offset, self._other + offset, length) == 0)

    def close(self) -> None:
        """Unmap; a second call does nothing."""
        self._views = []
        for mapped in self._maps:
            mapped.close()
        self._maps = []
