"""verity format against veritysetup: CPU seconds of whole processes, interleaved, and equal bytes.

Python has its bytecode, as that of an installed package has: the first run, which makes it, does not count.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZE = 256 << 20
ROUNDS = 5
SALT = "5a" * 32
UUID = "11111111-2222-3333-4444-555555555555"
OURS = f"""
import sys
from uuid import UUID
from dmcore.verity import format_verity
format_verity(sys.argv[1], sys.argv[2], salt=bytes.fromhex({SALT!r}), uuid=UUID({UUID!r}), threads=int(sys.argv[3]))
"""


def cost(words: list[str], bytecode: str) -> tuple[float, float]:
    """Return CPU and wall seconds of a process."""
    environment = os.environ | {"PYTHONPYCACHEPREFIX": bytecode, "PYTHONDONTWRITEBYTECODE": ""}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, time.monotonic() - began


def main() -> None:
    tool = shutil.which("veritysetup") or shutil.which("veritysetup", path="/usr/sbin:/sbin")
    if tool is None:
        print("verity format: skipped, veritysetup is not installed (apt-get install cryptsetup-bin)")
        return
    version = subprocess.run([tool, "--version"], capture_output=True, text=True, check=True).stdout.split()[
        1
    ]
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if os.access(shm, os.W_OK) else None) as folder:
        data, theirs, ours, bytecode = (
            str(Path(folder, name)) for name in ("data", "theirs", "ours", "bytecode")
        )
        with Path(data).open("wb") as file:
            file.writelines(os.urandom(1 << 20) for _ in range(SIZE >> 20))
        rival = [tool, "format", data, theirs, "--salt", SALT, "--uuid", UUID]
        results: dict[str, list[tuple[float, float]]] = {}
        runs = {threads: [sys.executable, "-c", OURS, data, ours, str(threads)] for threads in (1, 2)}
        for words in runs.values():
            cost(words, bytecode)
        for _ in range(ROUNDS):
            results.setdefault("veritysetup", []).append(cost(rival, bytecode))
            for threads, words in runs.items():
                results.setdefault(f"{threads} thread{'s' * (threads > 1)}", []).append(cost(words, bytecode))
                assert Path(theirs).read_bytes() == Path(ours).read_bytes(), "not the same bytes"
    base = results.pop("veritysetup")
    print(f"verity format, {SIZE >> 20} MiB, byte-identical, medians of {ROUNDS} rounds, whole processes:")
    print(
        f"  veritysetup {version}: {statistics.median(c for c, _ in base):.2f} s CPU, "
        f"{statistics.median(w for _, w in base):.2f} s"
    )
    for name, pairs in results.items():
        cpu = statistics.median(a / b for (a, _), (b, _) in zip(pairs, base, strict=True))
        wall = statistics.median(a / b for (_, a), (_, b) in zip(pairs, base, strict=True))
        print(f"  format_verity, {name}: {cpu:.2f}x CPU (goal: at most 1.2x), {wall:.2f}x time")


if __name__ == "__main__":
    main()
