"""Runs in a guest (or on any kernel with dm, as root): our cycles, the bare system calls and the tools, in turn.

`python guest_cycles.py FLOOR ROUNDS` prints one JSON object; `benchmarks/run.py` starts it and makes the table.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from dmcore.abi.dm import TableLine
from dmcore.kernel.control import Control
from dmcore.kernel.loop import LoopDevice

if TYPE_CHECKING:
    from collections.abc import Callable

CYCLES = 20
TOOL_CYCLES = 3


def timed(cycle: Callable[[], None], count: int) -> float:
    """Return microseconds per cycle."""
    start = time.perf_counter()
    for _ in range(count):
        cycle()
    return (time.perf_counter() - start) / count * 1e6


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def floor(program: str, what: str, path: str) -> float:
    return float(run(program, what, path, str(CYCLES))) / 1e3


def dm_cases(program: str, loop: LoopDevice, control: Control) -> dict[str, Callable[[], float]]:
    lines = [TableLine(0, 2048, "linear", f"{loop.ref} 0")]

    def ours() -> None:
        control.create("bench-ours")
        control.load("bench-ours", lines)
        control.resume("bench-ours")
        control.remove("bench-ours")

    def two_processes() -> None:
        run("dmsetup", "create", "bench-tool", "--table", f"0 2048 linear {loop.path} 0")
        run("dmsetup", "remove", "bench-tool")

    return {
        "bare ioctls in C": lambda: floor(program, "dm", str(loop.path)),
        "dmcore.Control": lambda: timed(ours, CYCLES),
        "dmsetup (2 processes)": lambda: timed(two_processes, TOOL_CYCLES),
    }


def loop_cases(program: str, backing: Path) -> dict[str, Callable[[], float]]:
    def ours() -> None:
        LoopDevice.attach(backing).detach()

    def tool() -> None:
        path = run("losetup", "-f", "--show", str(backing)).strip()
        run("losetup", "-d", path)

    return {
        "bare ioctls in C": lambda: floor(program, "loop", str(backing)),
        "dmcore.LoopDevice": lambda: timed(ours, CYCLES),
        "losetup (2 processes)": lambda: timed(tool, TOOL_CYCLES),
    }


def rounds(cases: dict[str, Callable[[], float]], count: int) -> dict[str, float]:
    """Return the median of `count` rounds for each case, the cases taken in turn within a round."""
    seen: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(count):
        for name, case in cases.items():
            seen[name].append(case())
    return {name: statistics.median(values) for name, values in seen.items()}


def main(program: str, count: int) -> None:
    os.environ["DM_DISABLE_UDEV"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder) / "dm.img", Path(folder) / "loop.img"
        for path in (first, second):
            with path.open("wb") as file:
                file.truncate(4 << 20)
        with LoopDevice.attach(first) as loop, Control() as control:
            dm = rounds(dm_cases(program, loop, control), count)
        result = {
            "release": os.uname().release,
            "dmsetup": run("dmsetup", "--version").splitlines()[0].split(":")[-1].strip(),
            "losetup": run("losetup", "--version").split()[-1],
            "dm": dm,
            "loop": rounds(loop_cases(program, second), count),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
