"""Crash states that a guest's kernel mounts, per second of CPU: `python benchmarks/crash_mounts.py [--kernel NAME]`.

What a state costs is the difference between two runs, of few states and of many, of the same load (`fsstress`): so booting,
mkfs and recording do not count. CPU time is the whole guest's, as the host sees it. Each state is recovered by a mount,
checked by the file system's own tool, mounted again for a check that lists its files, and unmounted.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

SIZES = {"ext4": "16M", "xfs": "320M", "btrfs": "128M"}
FEW, MANY = 5, {"ext4": 300, "xfs": 60, "btrfs": 120}


@pytest.mark.dm(timeout=550)
@pytest.mark.parametrize("filesystem", SIZES)
def test_states(dm_crash, filesystem):
    from pytest_dm.workloads import fsstress  # noqa: PLC0415 - only in the guest

    with dm_crash.record(size=SIZES[filesystem], filesystem=filesystem) as disk:
        fsstress(disk, seed=1, operations=300)
    states = int(os.environ["PYTEST_DM_STATES"])
    found = dm_crash.explore(
        lambda state: bool(list(state.mountpoint.rglob("*")) or True), max_states=states, max_seconds=None
    )
    assert not found.findings
    print(f"judged {found.checked} states")


def cost(kernel: str, filesystem: str, states: int) -> tuple[float, int]:
    """CPU seconds of a run, and how many states were judged."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", __file__, "-k", f"states and {filesystem}", "--dm-vm=uml",
             f"--dm-kernel={kernel}", "-o", "junit_logging=all", "-p", "no:cacheprovider", "--junitxml", report],
            check=True, stdout=subprocess.DEVNULL, env={**os.environ, "PYTEST_DM_STATES": str(states)},
        )  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        said = report.read_text()
    checked = int(said.partition("judged ")[2].split()[0])
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, checked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel", default="uml-7.2")
    kernel = parser.parse_args().kernel
    print(f"states that {kernel} mounts, per CPU second; load {os.getloadavg()[0]:.1f}")
    for filesystem, many in MANY.items():
        (less, few), (more, all_) = cost(kernel, filesystem, FEW), cost(kernel, filesystem, many)
        print(f"  {filesystem:<6} {(all_ - few) / (more - less):8.1f}   ({all_} states)")


if __name__ == "__main__":
    main()
