"""Planted bugs are found and told apart; correct programs are silent."""

from __future__ import annotations

from itertools import islice

import pytest
from crash_programs import PROGRAMS, SEEDS, newest_only

from dmcore.crash.families import Families

EVERYWHERE = ("replace", "sqlite-delete-off", "wal-no-checksum")
"""What runs on every kernel; the rest where the guest is the newest, or in a campaign (`make crash-campaign`)."""
ONLY_IN_A_CAMPAIGN = ("replace-no-alloc", "sqlite-truncate-full", "sqlite-persist-full", "sqlite-memory-full")
STATES = {"ext4": 40, "ext2": 30, "xfs": 20, "btrfs": 24}
IN_A_CAMPAIGN = {"ext4": 300, "ext2": 300, "xfs": 30, "btrfs": 110}
"""States of each of ten seeds; of a planted bug at most so many:"""
OF_A_BUG = 100
ENOUGH = 3 if SEEDS == 1 else 20


def fits(found, states):
    """Whether there are no more states than that, torn ones included: then a seed changes nothing."""
    families = Families(found.timeline, found.torn_size)
    return len(list(islice(families, states + 1))) <= states and families.exhaustive


@pytest.mark.dm(timeout=120 + 120 * SEEDS)
@pytest.mark.parametrize("name", [name for name in PROGRAMS if SEEDS > 1 or name not in ONLY_IN_A_CAMPAIGN])
def test_what_a_power_cut_does_to(dm_crash, dm_backend, name):
    """Seeds share a recording, and what was found sound with one is not judged again with the next."""
    if name not in EVERYWHERE:
        newest_only(dm_backend)
    program = PROGRAMS[name]
    budget, seconds = (STATES if SEEDS == 1 else IN_A_CAMPAIGN)[program.filesystem], 60
    if program.must:
        budget = min(budget, OF_A_BUG)
    oracle = program.record(dm_crash)
    found, seeds = None, SEEDS
    visited = checked = failing = seed = 0
    while seed < seeds:
        enough = ENOUGH if len(program.must) == 1 and not program.may else None
        found = dm_crash.explore(
            oracle, seed=seed, max_states=budget, max_seconds=seconds, max_findings=enough, known=found
        )
        kinds = {finding.problem.kind for finding in found.findings}
        reasons = {finding.problem for finding in found.findings}
        assert kinds <= program.must | program.may, reasons
        assert program.must <= kinds, reasons
        visited += found.generated
        checked += found.checked
        failing += found.violating
        seed += 1
        if seed == 1 < SEEDS and not program.must and fits(found, SEEDS * budget):
            seeds, budget, seconds = 2, SEEDS * budget, SEEDS * seconds
    whole = found.exhaustive and not found.truncated
    print(
        f"campaign: {name}: {seed} seeds, {visited} states, {checked} distinct judged, {failing} fail"
        + whole * "; that is every state"
    )
