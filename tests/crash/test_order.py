"""Where the kernel tells times, exactly what a power cut can leave is known (L2), and not only what the log proves (L1)."""

from __future__ import annotations

import pytest

from pytest_dm.crash.failure import CrashFailure

BLOCK = 4096
pytestmark = pytest.mark.dm(size="1M", filesystem=None)


def overwrite_before_the_record(disk):
    """The bug: a block is overwritten, then a record of that is written with FUA, which is to be there first."""
    disk.write_fua(0, b"nothing".ljust(BLOCK, b"\0"))
    disk.write(BLOCK, b"old".ljust(BLOCK, b"\0"))
    disk.flush()
    disk.mark("prepared")
    disk.write(BLOCK, b"new".ljust(BLOCK, b"\0"))
    disk.write_fua(0, b"will be new".ljust(BLOCK, b"\0"))
    disk.flush()


def record_first(disk):
    disk.write_fua(0, b"nothing".ljust(BLOCK, b"\0"))
    disk.write(BLOCK, b"old".ljust(BLOCK, b"\0"))
    disk.flush()
    disk.mark("prepared")
    disk.write_fua(0, b"will be new".ljust(BLOCK, b"\0"))
    disk.write(BLOCK, b"new".ljust(BLOCK, b"\0"))
    disk.flush()


def judge(state):
    if "prepared" in state.acknowledged:
        data = state.image.read_bytes()
        if data[BLOCK : BLOCK + 3] == b"new" and data[:7] == b"nothing":
            return "integrity: the block is new, and no record says so"
    return None


def has_times(dm_crash):
    return dm_crash.recording.times is not None


def test_what_the_log_hides(dm_crash, dm_backend):
    with dm_crash.record() as disk:
        overwrite_before_the_record(disk)
    assert dm_crash.explore(judge, level="L1").findings == []
    assert has_times(dm_crash) == (dm_backend.machine != "uml"), dm_crash.recording.unordered
    if has_times(dm_crash):
        with pytest.raises(CrashFailure, match="no record says so") as caught:
            dm_crash.check(judge, torn=0)
        assert "L2" in str(caught.value)
        (case,) = caught.value.cases
        assert [row.fate for row in case.rows] == ["present", "missing"]


def test_the_right_order_is_silent_at_every_level(dm_crash):
    with dm_crash.record() as disk:
        record_first(disk)
    for level in ("L0", "L1", *(["L2"] if has_times(dm_crash) else [])):
        assert dm_crash.check(judge, level=level).timeline.level == level


@pytest.mark.dm(size="16M")
def test_a_correct_program_is_silent_at_the_exact_level(dm_crash):
    from crash_programs import PROGRAMS

    for name in ("replace", "sqlite-wal-full"):
        with dm_crash.scope() as crash:
            oracle = PROGRAMS[name].record(crash)
            found = crash.check(oracle, max_states=60, torn=0)
            assert found.timeline.level == ("L2" if has_times(crash) else "L1")
