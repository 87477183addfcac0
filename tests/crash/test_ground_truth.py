"""Planted bugs are found and told apart; correct programs are silent."""

from __future__ import annotations

import pytest
from crash_programs import PROGRAMS, SEEDS, newest_only

EVERYWHERE = ("replace", "sqlite-delete-off", "wal-no-checksum")
"""What runs on every kernel; the rest where the guest is the newest, or in a campaign (`make crash-campaign`)."""
STATES = {"ext4": 40, "ext2": 30, "xfs": 20, "btrfs": 24}
IN_A_CAMPAIGN = 300
"""States of each recording; a campaign makes ten."""
ENOUGH = 3 if SEEDS == 1 else 20


@pytest.mark.dm(timeout=120 + 120 * SEEDS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_what_a_power_cut_does_to(dm_crash, dm_backend, name):
    if name not in EVERYWHERE:
        newest_only(dm_backend)
    program = PROGRAMS[name]
    budget = STATES[program.filesystem] if SEEDS == 1 else IN_A_CAMPAIGN
    enough = ENOUGH if len(program.must) == 1 and not program.may else None
    visited = checked = failing = 0
    for seed in range(SEEDS):
        with dm_crash.scope() as crash:
            oracle = program.record(crash)
            found = crash.explore(oracle, seed=seed, max_states=budget, max_seconds=60, max_findings=enough)
        kinds = {finding.problem.kind for finding in found.findings}
        reasons = {finding.problem for finding in found.findings}
        assert kinds <= program.must | program.may, reasons
        assert program.must <= kinds, reasons
        visited += found.generated
        checked += found.checked
        failing += found.violating
    print(
        f"campaign: {name}: {SEEDS} recordings, {visited} states, {checked} distinct judged, {failing} fail"
    )
