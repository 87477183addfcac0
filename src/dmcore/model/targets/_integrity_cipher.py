"""The cipher of integrity's journal.

Source: drivers/md/dm-integrity.c (create_journal, xor_journal, crypt_journal).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import numpy as np

from dmcore.model.block import fault
from dmcore.model.targets._crypt_modes import make_mode
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from dmcore.formats.integrity import Layout
    from dmcore.model.targets._crypt_blocks import Octets
    from dmcore.targets.integrity import Algorithm

__all__ = ["JournalCipher"]

_PAGE = 4096
_CHACHA = 64


class JournalCipher:
    """Encrypts whole sections.

    A stream cipher goes over the journal as one message, up to a whole page, and over the marks of the commits behind it. A
    block cipher begins anew in each section, with the section's number, encrypted, as IV.

    Args:
        algorithm: What the table says.
        layout: Where the journal is.

    Raises:
        OSError: ENOKEY without a key.
        SpecError, Unsupported: As of any cipher.
    """

    def __init__(self, algorithm: Algorithm, layout: Layout) -> None:
        if algorithm.key is None and algorithm.name != "ecb(cipher_null)":
            raise fault(errno.ENOKEY)
        self._mode = make_mode(algorithm.name, b"" if algorithm.key is None else algorithm.key.reveal())
        self._bytes = layout.section_sectors * SECTOR
        self._stream = self._mode.block == 1
        self._step = _CHACHA if algorithm.name == "chacha20" else self._mode.words * 8
        self._little = algorithm.name == "chacha20"
        whole = -(-self._bytes * layout.head.journal_sections // _PAGE) * _PAGE
        self._marks = whole // self._step

    def marks(self, plain: list[int]) -> list[int]:
        """Return the numbers that mark commits: with a stream cipher they are encrypted, and told apart."""
        if not self._stream:
            return plain
        data = np.array(plain, np.uint64)
        made: list[int] = []
        for each in (
            self._run(data.view(np.uint8), self._counter(self._marks), encrypt=True).view("<u8").tolist()
        ):
            mark = int(each)
            while mark in made:
                mark = (mark + 1) % 2**64
            made.append(mark)
        return made

    def _counter(self, number: int) -> Octets:
        """Return the IV of the stream's block `number`."""
        size = max(self._mode.iv_size, 8)
        return np.frombuffer(number.to_bytes(size, "little" if self._little else "big"), np.uint8)

    def _iv(self, section: int) -> Octets:
        size = self._mode.iv_size
        if self._stream:
            return self._counter(section * self._bytes // self._step)
        block = self._mode.block
        data = np.zeros(-(-size // block) * block, np.uint8)
        data[:4] = np.frombuffer(section.to_bytes(4, "little"), np.uint8)[: len(data)]
        return self._run(data, np.zeros(size, np.uint8), encrypt=True)[:size] if size else data

    def _run(self, data: Octets, iv: Octets, *, encrypt: bool) -> Octets:
        """Convert one message."""
        words = self._mode.words
        source = np.ascontiguousarray(data).view(np.uint64).reshape(1, -1, words)
        start = np.ascontiguousarray(iv).view(np.uint64).reshape(1, -1)
        out = np.empty_like(source)
        (self._mode.encrypt if encrypt else self._mode.decrypt)(source, start, out)
        return out.reshape(-1).view(np.uint8)

    def encrypt(self, section: int, content: bytearray) -> bytearray:
        """Return a section as it stands on the disk."""
        return bytearray(self._run(np.frombuffer(content, np.uint8), self._iv(section), encrypt=True))

    def decrypt(self, section: int, content: bytearray) -> bytearray:
        """Return a section as it was."""
        return bytearray(self._run(np.frombuffer(content, np.uint8), self._iv(section), encrypt=False))
