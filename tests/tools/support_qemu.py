"""Fill the columns of the distribution's kernels in docs/reference/support.md: run each target's tests on them in QEMU.

What a target's run saw is kept when it ends, and takes the place of what was seen of the target before; a run that is cut off
loses one target at the most. Tests that fail are told, count as not seen, and make the exit status 1.

Usage: support_qemu.py [TARGET ...]     (without one: all of them)
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from dmcore.registry import targets

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests/targets"
KERNELS = ("debian-6.1", "debian-6.12")
_RAN = {0, 1}  # pytest's exit statuses of a run that came to its end


def _files(name: str) -> list[Path]:
    """Return the test files of a target: those that begin like it and no better like another target."""
    stems = {other: f"test_{other.replace('-', '_')}" for other in targets()}
    longer = [stem for other, stem in stems.items() if other.startswith(f"{name}-")]
    found = [TESTS / f"{stems[name]}.py", *sorted(TESTS.glob(f"{stems[name]}_*.py"))]
    pool = [TESTS / "test_thin_pool.py"] if name == "thin" else []  # a failed pool's devices are seen there
    return [path for path in found if not any(path.stem in {stem, f"{stem}_model"} for stem in longer)] + pool


def _selection(name: str, files: list[Path]) -> str:
    """Return pytest's expression for the tests of these files, and what the conformance suite has of the target."""
    like_it = [f"not {other}" for other in targets() if name in other and other != name]
    own = " or ".join(path.stem for path in files)
    return (
        f"which_targets_this_kernel_has or {own} or (test_conformance and {' and '.join([name, *like_it])})"
    )


def _run(name: str) -> int:
    junit = ROOT / f".support-qemu-{name}.xml"
    files = _files(name)
    command = [
        sys.executable, "-m", "pytest", *map(str, files), str(TESTS / "test_conformance.py"), "-m", "dm", "-q",
        "--dm-vm=qemu", *(f"--dm-kernel={kernel}" for kernel in KERNELS), "--dm-timeout=1200", f"--junitxml={junit}",
        "-o", "faulthandler_timeout=0", "-k", _selection(name, files),
    ]  # fmt: skip
    status = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTEST_DM_SUPPORT": "1"}, check=False
    ).returncode
    if status in _RAN:
        table = ROOT / "tests/tools/support_table.py"
        kept = subprocess.run(
            [sys.executable, str(table), "--target", name, str(junit)], cwd=ROOT, check=False
        )
        return status or kept.returncode
    return status


def main(arguments: list[str]) -> int:
    """Run the targets named, or all."""
    wrong = [name for name in arguments if name not in targets()]
    if wrong:
        raise SystemExit(f"no such target: {', '.join(wrong)}; there are {', '.join(targets())}")
    failed: list[str] = []
    names = arguments or list(targets())
    for number, name in enumerate(names, 1):
        print(f"=== {name} ({number} of {len(names)})", flush=True)
        if _run(name):
            failed.append(name)
    if failed:
        print(f"=== tests of these failed, or lack a reason: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
