"""Copying a disk with bad blocks: the good ones arrive, the bad ones are named."""

import errno

import pytest

BLOCK = 4096
pytestmark = pytest.mark.dm(size="1M", block_size=BLOCK)


def rescue(disk):
    """Return the disk's content with zeros for what cannot be read, and the numbers of those blocks."""
    content, lost = bytearray(), []
    for number in range(disk.size // BLOCK):
        try:
            content += disk.read(number * BLOCK, BLOCK)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            content += bytes(BLOCK)
            lost.append(number)
    return bytes(content), lost


def test_good_blocks_are_rescued(dm_dust):
    original = bytes(number % 256 for number in range(dm_dust.size // BLOCK) for _ in range(BLOCK))
    dm_dust.write(0, original)
    dm_dust.add_bad(60)
    dm_dust.add_bad(100, count=3)

    with dm_dust.enable():
        content, lost = rescue(dm_dust)

    assert lost == [60, 100, 101, 102]
    assert content[: 60 * BLOCK] == original[: 60 * BLOCK]
    assert content[103 * BLOCK :] == original[103 * BLOCK :]


def test_writing_a_bad_block_heals_it(dm_dust):
    dm_dust.add_bad(7)
    dm_dust.enable()
    with pytest.raises(OSError):
        dm_dust.read(7 * BLOCK, BLOCK)

    dm_dust.write(7 * BLOCK, b"new" + bytes(BLOCK - 3))

    assert dm_dust.bad_blocks() == ()
    assert dm_dust.read(7 * BLOCK, BLOCK).startswith(b"new")
