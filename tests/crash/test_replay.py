"""Replay leaves what writes in the order of the log leave, however they overlap."""

from __future__ import annotations

import errno
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_maker import LogMaker, apply

from dmcore.formats.log_index import LogIndex
from dmcore.kernel import log_replay
from dmcore.kernel.log_replay import replay

SIZE = 32 * 512
writes = st.tuples(st.integers(0, 31), st.integers(1, 9), st.sampled_from([0, 0, 0, 0, 4]))


@given(entries=st.lists(writes, max_size=40), most=st.sampled_from([1, 3, 1 << 16]), data=st.data())
@settings(max_examples=150, deadline=None)
def test_whatever_overlaps(tmp_path_factory, entries, most, data):
    folder = tmp_path_factory.mktemp("replay")
    maker = LogMaker()
    for number, (sector, most_sectors, flags) in enumerate(entries):
        count = min(most_sectors, 32 - sector)
        if flags:
            maker.discard(sector * 512, count * 512)
        else:
            maker.write(sector * 512, bytes([number + 1]) * count * 512)
        if number % 7 == 0:
            maker.flush()
    start = data.draw(st.integers(0, len(maker.entries)))
    stop = data.draw(st.integers(start, len(maker.entries)))
    wanted = bytearray(b"\xee" * SIZE)
    for entry in maker.entries[start:stop]:
        apply(wanted, entry)
    (folder / "target").write_bytes(b"\xee" * SIZE)
    with pytest.MonkeyPatch.context() as patch, LogIndex(maker.save(folder / "log")) as index:
        patch.setattr(log_replay, "_MOST", most)
        done = replay(index, folder / "target", start=start, stop=stop)
    assert (folder / "target").read_bytes() == wanted
    assert done.written == sum(one[1] for one in maker.entries[start:stop] if not one[2] & 4)


def test_more_neighbours_than_one_call_takes(tmp_path):
    maker = LogMaker()
    for number in range(2500):
        maker.write((2499 - number) * 512, number.to_bytes(2) * 256)
    with LogIndex(maker.save(tmp_path / "log")) as index:
        replay(index, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b"".join(n.to_bytes(2) * 256 for n in range(2499, -1, -1))


def test_a_target_that_cannot_be_written_is_named(tmp_path):
    maker = LogMaker()
    maker.write(0, b"x" * 512)
    with LogIndex(maker.save(tmp_path / "log")) as index, pytest.raises(OSError, match="full") as caught:
        replay(index, type(tmp_path)("/dev/full"))
    assert caught.value.errno in (errno.EINVAL, errno.ENOSPC)  # it has no size
    assert os.fspath(caught.value.filename) == "/dev/full"
