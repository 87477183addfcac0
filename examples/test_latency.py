"""A client with a deadline meets a slow disk."""

import concurrent.futures
import time

import pytest

BLOCK = 4096


def seconds(action, *args):
    began = time.monotonic()
    action(*args)
    return time.monotonic() - began


def test_reads_and_writes_have_their_own_delay(dm_delay):
    dm_delay.set(read_ms=0, write_ms=500)

    assert seconds(dm_delay.read, 0, BLOCK) < 0.45
    assert seconds(dm_delay.write, 0, bytes(BLOCK)) >= 0.45


def test_a_deadline_is_kept(dm_delay):
    with concurrent.futures.ThreadPoolExecutor() as pool, dm_delay.set(read_ms=1000):
        answer = pool.submit(dm_delay.read, 0, BLOCK)
        with pytest.raises(TimeoutError):
            answer.result(timeout=0.2)  # the client gives up: the disk is too slow for it

        dm_delay.set(read_ms=0)  # what waits is sent on at once
        assert answer.result(timeout=10) == bytes(BLOCK)
