"""Generated workloads on real file systems: what fsync keeps is kept, and its absence is noticed."""

from __future__ import annotations

import itertools
import os
import random

import pytest
from crash_programs import SEEDS, newest_only
from hypothesis import HealthCheck, Phase, given, settings

from pytest_dm.crash.failure import CrashFailure
from pytest_dm.workloads import Operation, Workload, fsstress, sequences, workloads

SIZES = {"ext4": "16M", "xfs": "320M", "btrfs": "128M"}
EXAMPLES = int(os.environ.get("PYTEST_DM_CRASH_EXAMPLES", "2"))
IN_A_CAMPAIGN = {"ext4": 120, "xfs": 30, "btrfs": 60}
"""States of each of ten loads."""


@pytest.mark.dm(timeout=100 + 30 * EXAMPLES)
@pytest.mark.parametrize("filesystem", ["ext4", "xfs", "btrfs"])
def test_random_workloads_keep_what_fsync_promises(dm_crash, dm_backend, filesystem):
    newest_only(dm_backend)

    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=SEEDS == 1,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(workloads(most=3))
    def hold(workload):
        with dm_crash.scope() as crash:
            with crash.record(size=SIZES[filesystem], filesystem=filesystem) as disk:
                workload.run(disk)
            crash.check(workload.check, torn=0, max_states=12 if SEEDS == 1 else 20)

    hold()


@pytest.mark.dm(timeout=100 + 30 * EXAMPLES)
def test_some_of_all_workloads_of_one_operation(dm_crash, dm_backend):
    newest_only(dm_backend)
    every = list(sequences(1))
    assert len(every) == 448 == len(set(map(repr, every)))
    for workload in random.Random(1).sample(every, EXAMPLES):
        with dm_crash.scope() as crash:
            with crash.record(size="16M", filesystem="ext4") as disk:
                workload.run(disk)
            crash.check(workload.check, torn=0, max_states=12 if SEEDS == 1 else 20)


def test_a_file_system_without_barriers_does_not_keep_it(dm_crash):
    steps = [Operation("create", "a"), Operation("write", "a", length=9000), Operation("fsync", "a")]
    workload = Workload(tuple(steps))
    with dm_crash.record(size="16M", filesystem="ext4", mount_options="barrier=0") as disk:
        workload.run(disk)
    with pytest.raises(CrashFailure, match=r"operation 2 .fsync a. keeps"):
        dm_crash.check(workload.check, torn=0, max_states=30)


def test_what_is_not_synced_is_not_asked_for(dm_crash):
    workload = Workload(
        (Operation("create", "a"), Operation("write", "a", length=9000), Operation("mkdir", "d"))
    )
    with dm_crash.record(size="16M", filesystem="ext4") as disk:
        workload.run(disk)
        disk.device.flush()
    dm_crash.check(workload.check, torn=0, max_states=30)


@pytest.mark.dm(timeout=100 + 30 * SEEDS)
@pytest.mark.parametrize("filesystem", ["ext4", "xfs", "btrfs"])
def test_a_stressed_file_system_recovers(dm_crash, dm_backend, filesystem):
    newest_only(dm_backend)
    checked = 0
    for seed in range(SEEDS):
        with dm_crash.scope() as crash:
            with crash.record(size=SIZES[filesystem], filesystem=filesystem) as disk:
                fsstress(disk, seed=seed, operations=100 if SEEDS == 1 else 500)
            states = 20 if SEEDS == 1 else IN_A_CAMPAIGN[filesystem]
            found = crash.check(max_states=states, max_seconds=60, seed=seed)
            assert found.checked > 5
            checked += found.checked
    print(f"campaign: fsstress on {filesystem}: {SEEDS} loads, {checked} distinct states judged, none fails")


def test_sequences_are_lazy():
    assert len(list(itertools.islice(sequences(3), 5))) == 5
