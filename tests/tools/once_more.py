"""Run pytest; if a few tests fail, run those once more, and say so loudly.

A test that passes only the second time depends on timing and wants work: its name stands in the output. Many failures are
no matter of timing and are not tried again; the JUnit file is of the first run. Usage: once_more.py PYTEST-ARGUMENTS...
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

MOST = 12
FAILED = Path(".pytest_cache/v/cache/lastfailed")


def main(arguments: list[str]) -> int:
    """Return the exit status of the run that counts."""
    pytest = [sys.executable, "-m", "pytest", *arguments]
    FAILED.unlink(missing_ok=True)
    status = subprocess.run(pytest, check=False).returncode
    if status != 1 or not FAILED.exists():
        return status
    failed = sorted(json.loads(FAILED.read_text(encoding="utf-8")))
    if not 1 <= len(failed) <= MOST:
        return status
    print(
        f"=== once more, what failed; what passes now depends on timing and wants work: {failed}", flush=True
    )
    files = sorted({test.partition("::")[0] for test in failed})
    kept = [
        argument
        for argument in arguments
        if argument not in {"tests", "examples"} and not argument.startswith("--junitxml=")
    ]
    return subprocess.run([*pytest[:3], *files, *kept, "--lf"], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
