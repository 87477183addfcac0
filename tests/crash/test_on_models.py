"""Without a kernel, on this very machine: a bare disk is recorded by the model's log-writes, a planted bug is found."""

from __future__ import annotations

import pytest

from pytest_dm import backend

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.skipif(backend.in_guest(), reason="a guest has a kernel")

TESTS = """
    import pytest

    BLOCK = 4096
    pytestmark = pytest.mark.dm(size="1M")

    def write(disk, *, flushed):
        '''Two slots: a payload, and a header that says which payload is the valid one.'''
        for number in range(1, 5):
            disk.write((1 + number % 2) * BLOCK, bytes([number]) * BLOCK)
            if flushed:
                disk.flush()
            disk.write_fua(0, bytes([number]) * BLOCK)
            disk.mark(f"put-{number}")

    def read(state):
        data = state.image.read_bytes()
        number = data[0]
        if number:
            slot = data[(1 + number % 2) * BLOCK :][:BLOCK]
            if slot != bytes([number]) * BLOCK:
                return f"integrity: header {number} and a payload of {set(slot)}"
        last = max((int(mark[4:]) for mark in state.acknowledged), default=0)
        return None if number >= last else f"durability: header {number}, and {last} was acknowledged"

    @pytest.mark.parametrize("flushed", [True, False], ids=["sound", "planted"])
    @pytest.mark.parametrize("level", ["L1", "L2"])
    def test_slots(dm_crash, flushed, level):
        with dm_crash.record() as disk:
            write(disk, flushed=flushed)
        dm_crash.check(read, level=level, torn=0)

    def test_every_entry_has_its_times(dm_crash):
        with dm_crash.record() as disk:
            write(disk, flushed=False)
            disk.discard(0, BLOCK)
            disk.write(7 * BLOCK, b"late" * 128)
        made = dm_crash.recording
        assert made.unordered == "" and made.times is not None
        assert made.final.read_bytes()[7 * BLOCK :][:4] == b"late"
        assert len(made.times.read_text().splitlines()) == made.entries + 1

    @pytest.mark.dm(filesystem="ext4")
    def test_file_system(dm_crash):
        with dm_crash.record(): ...
"""


def test_a_planted_bug_is_found_and_its_correct_twin_is_silent(pytester):
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_subprocess("--dm-backend=model", "-rsf", "-W", "error")
    result.assert_outcomes(passed=3, failed=2, skipped=1)
    failed = {line.split()[1].rpartition("::")[2] for line in result.outlines if line.startswith("FAILED")}
    assert failed == {"test_slots[L1-planted]", "test_slots[L2-planted]"}
    assert "integrity: header" in result.stdout.str()
    assert "durability" not in "".join(line for line in result.outlines if line.startswith("E "))
