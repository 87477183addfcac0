"""dm_dust on a real kernel."""

from __future__ import annotations

import os

import pytest

from dmcore.errors import SpecError

BLOCK = 512
pytestmark = pytest.mark.dm(size="1M")


def fails(action, *args):
    try:
        action(*args)
    except OSError as error:
        assert error.errno == 5  # noqa: PT017 - the success is an outcome too
        return True
    return False


def test_bad_only_once_enabled(dm_dust):
    dm_dust.add_bad(3)
    assert dm_dust.bad_blocks() == (3,)
    assert not dm_dust.enabled
    assert dm_dust.read(0, 8 * BLOCK) == bytes(8 * BLOCK)
    dm_dust.enable()
    assert dm_dust.enabled
    assert fails(dm_dust.read, 3 * BLOCK, BLOCK)
    assert fails(dm_dust.read, 0, 8 * BLOCK)
    assert not fails(dm_dust.read, 4 * BLOCK, BLOCK)
    dm_dust.disable()
    assert not fails(dm_dust.read, 3 * BLOCK, BLOCK)
    assert dm_dust.bad_blocks() == (3,)


def test_enable_as_a_block(dm_dust):
    dm_dust.add_bad(0, count=2)
    with dm_dust.enable():
        assert fails(dm_dust.read, 0, BLOCK)
        with dm_dust.enable():
            pass
        assert dm_dust.enabled
    assert not dm_dust.enabled


def test_a_write_heals(dm_dust):
    dm_dust.add_bad(10, 4)
    dm_dust.enable()
    dm_dust.write(11 * BLOCK, b"x" * 2 * BLOCK)
    assert dm_dust.bad_blocks() == (10, 13)
    assert dm_dust.read(11 * BLOCK, 2 * BLOCK) == b"x" * 2 * BLOCK


def test_writes_may_fail_first(dm_dust):
    dm_dust.add_bad(5, write_failures=2)
    dm_dust.enable()
    assert [fails(dm_dust.write, 5 * BLOCK, b"x" * BLOCK) for _ in range(4)] == [True, True, False, False]
    assert dm_dust.bad_blocks() == ()
    assert dm_dust.lower.read(5 * BLOCK, BLOCK) == b"x" * BLOCK


def test_remove_and_clear(dm_dust):
    dm_dust.add_bad(1, 5)
    dm_dust.remove_bad(2, 2)
    assert dm_dust.bad_blocks() == (1, 4, 5)
    assert dm_dust.clear()
    assert dm_dust.bad_blocks() == ()
    assert not dm_dust.clear()


@pytest.mark.parametrize(("block", "count"), [(-1, 1), (2048, 1), (2047, 2), (0, 0)])
def test_blocks_that_there_are_not(dm_dust, block, count):
    for verb in (dm_dust.add_bad, dm_dust.remove_bad):
        with pytest.raises(SpecError):
            verb(block, count)
    assert dm_dust.bad_blocks() == ()


def test_the_last_block(dm_dust):
    dm_dust.add_bad(2047)
    dm_dust.enable()
    assert fails(dm_dust.read, 2047 * BLOCK, BLOCK)


def test_twice_bad_or_twice_good_is_refused_and_changes_nothing(dm_dust):
    dm_dust.add_bad(7)
    with pytest.raises(SpecError, match="bad already"):
        dm_dust.add_bad(5, 3)
    assert dm_dust.bad_blocks() == (7,)
    with pytest.raises(SpecError, match="not bad"):
        dm_dust.remove_bad(7, 2)
    assert dm_dust.bad_blocks() == (7,)
    with pytest.raises(SpecError, match="write_failures"):
        dm_dust.add_bad(20, 2, write_failures=256)
    assert dm_dust.bad_blocks() == (7,)


def test_a_program_that_read_before_meets_the_bad_block(dm_dust):
    fd = os.open(dm_dust.path, os.O_RDONLY)
    try:
        os.pread(fd, 4096, 0)
        dm_dust.add_bad(0)
        dm_dust.enable()
        with pytest.raises(OSError, match="Input/output error"):
            os.pread(fd, 4096, 0)
        os.pread(fd, 4096, 8192)
        dm_dust.add_bad(16)
        with pytest.raises(OSError, match="Input/output error"):
            os.pread(fd, 4096, 8192)
    finally:
        os.close(fd)


@pytest.mark.dm(size="1M", block_size=4096)
def test_larger_blocks(dm_dust):
    assert dm_dust.bad_block_size == 4096
    dm_dust.add_bad(255)
    dm_dust.enable()
    assert fails(dm_dust.read, 255 * 4096, 4096)


def test_a_block_size_of_its_own(dm):
    dust = dm.dust(block_size=8192, size="1M")
    dust.add_bad(1)
    dust.enable()
    assert fails(dust.read, 8192 + 7680, 512)
    assert not fails(dust.read, 0, 8192)


def test_bad_blocks_survive_a_power_cut(dm_dust):
    dm_dust.add_bad(4, 2, write_failures=1)
    dm_dust.enable()
    with dm_dust.power_cut():
        dm_dust.write(4 * BLOCK, b"x" * BLOCK)
    assert dm_dust.bad_blocks() == (4, 5)
    assert dm_dust.enabled
    assert fails(dm_dust.write, 4 * BLOCK, b"x" * BLOCK)
    assert not fails(dm_dust.write, 4 * BLOCK, b"x" * BLOCK)


def test_the_kernel_log_is_not_flooded(dm_dust, dm_backend):
    mark = dm_backend.runtime.log.mark()
    dm_dust.add_bad(0, 50)
    dm_dust.clear()
    assert [line for line in dm_backend.runtime.log.since(mark) if "dust" in line and "added" in line] == []
