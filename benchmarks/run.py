"""`make bench`: speed as ratios, side by side in one run, with the rival's name and the machine.

`python benchmarks/run.py [--kernel NAME ...] [--rounds N] [--json FILE]`
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
FIRST_TEST = "import time\n\ndef test_first(dm_zero):\n    print('first test at', time.time())\n"


def compile_floor(folder: Path) -> Path:
    program = folder / "floor"
    subprocess.run(["cc", "-O2", "-static", "-o", program, HERE / "floor.c"], check=True, timeout=60)
    return program


def cycles(kernel: str, folder: Path, count: int) -> dict[str, object]:
    """Run the cycles in a guest of `kernel`."""
    inner = [sys.executable, str(HERE / "guest_cycles.py"), str(folder / "floor"), str(count)]
    done = subprocess.run(
        [Path(sys.executable).with_name("pytest-dm"), "vm", "run", "--kernel", kernel, "--", *inner],
        stdin=subprocess.DEVNULL,
        check=True, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    return json.loads(done.stdout.strip().splitlines()[-1])


def first_test(kernel: str, folder: Path, count: int) -> list[float]:
    """Return the seconds from starting `pytest --dm-vm` until its first test runs."""
    test = folder / "test_first.py"
    test.write_text(FIRST_TEST, encoding="utf-8")
    seconds: list[float] = []
    for _ in range(count):
        start = time.time()
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-rP", "-p", "no:cacheprovider", "--rootdir", str(folder), "-c", os.devnull,
             f"--dm-kernel={kernel}", "--dm-vm", str(test)],
            check=True, capture_output=True, text=True, timeout=300, cwd=folder,
        )  # fmt: skip
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("first test at")]
        seconds.append(float(line.split()[-1]) - start)
    return seconds


def show(title: str, values: dict[str, float], rival: str) -> None:
    print(f"\n{title}")
    base = values["bare ioctls in C"]
    for name, value in values.items():
        shown = rival if name.endswith("processes)") else ""
        print(f"  {name:<24} {value:>10.0f} us {value / base:>8.2f}x the bare ioctls  {shown}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel", action="append", help="guest kernel (repeatable)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--starts", type=int, default=3, help="runs of `pytest --dm-vm` per kernel")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    arguments = parser.parse_args()
    kernels = arguments.kernel or ["uml-6.1", "uml-7.2", "debian-6.1"]
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "?",
    )
    print(f"{platform.platform()}, {os.cpu_count()} cores, {model}, Python {platform.python_version()}")
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory(prefix="pytest-dm-bench-", dir=Path.cwd()) as name:
        folder = Path(name)
        compile_floor(folder)
        for kernel in kernels:
            result = cycles(kernel, folder, arguments.rounds)
            print(f"\n=== {kernel} ({result['release']}), medians of {arguments.rounds} rounds")
            show("create + load + resume + remove", result["dm"], f"dmsetup {result['dmsetup']}")
            show("loop device up and down", result["loop"], f"losetup {result['losetup']}")
            starts = first_test(kernel, folder, arguments.starts)
            print(
                f"\npytest --dm-vm until the first test runs: median {statistics.median(starts):.1f} s of {', '.join(f'{s:.1f}' for s in starts)}"
            )
            figures[kernel] = {**result, "first_test_seconds": starts}
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
