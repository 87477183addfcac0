"""Speed of volumes as ratios of CPU time in one run: crypt against `openssl speed`, plain ones against a pread/pwrite loop.

CPU time, and the fastest MiB of 32, because machines are shared: wall time says who else was there, and so do caches. Each case is
measured in rounds, the two sides in turn; printed are the ratio of the best, the median of the rounds' ratios, and the best rate.

`python benchmarks/volumes.py [--rounds N] [--json FILE]`
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import resource
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from dmcore import open_volume

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20
SIZE = 32 * MIB
KEY = bytes(range(64))


def openssl(cipher: str, size: int, *, decrypt: bool = False) -> float:
    """Return bytes per second of `openssl speed`, one thread's CPU time."""
    words = [
        "openssl",
        "speed",
        "-seconds",
        "1",
        "-bytes",
        str(size),
        *(["-decrypt"] if decrypt else []),
        "-evp",
        cipher,
    ]
    done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=60)
    return float(re.findall(r"([0-9.]+)k\s*$", done.stdout)[-1]) * 1000


def loop(request: int, do: Callable[[int], object], piece: int = MIB) -> float:
    """Return bytes per CPU second, system time included, of `do(offset)`: of the fastest `piece` of `SIZE` bytes."""
    best = math.inf
    for first in range(0, SIZE, piece):
        begun = time.process_time()
        for offset in range(first, first + piece, request):
            do(offset)
        best = min(best, time.process_time() - begun)
    return piece / best


def crypt_cases(path: Path) -> dict[str, tuple[Callable[[], float], Callable[[], float]]]:
    """Return for each case what measures the volume, and what measures its limit."""
    cases: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {}
    data, buffer = os.urandom(MIB), bytearray(MIB)
    for sector in (512, 4096):
        option = "" if sector == 512 else f" 1 sector_size:{sector}"
        for cipher, key, rival in (
            ("aes-xts-plain64", KEY, "aes-256-xts"),
            ("aes-cbc-essiv:sha256", KEY[:32], "aes-256-cbc"),
        ):
            table = f"0 {SIZE // 512} crypt {cipher} {key.hex()} 0 disk 0{option}"
            volume = open_volume(table, {"disk": path})
            cbc = rival.endswith("cbc")
            name = f"{cipher} {sector} B sectors"
            decrypt = lambda rival=rival, sector=sector, cbc=cbc: openssl(rival, sector, decrypt=cbc)  # noqa: E731
            encrypt = lambda rival=rival, sector=sector: openssl(rival, sector)  # noqa: E731
            cases[f"{name}, read 1 MiB"] = (
                lambda v=volume: loop(MIB, lambda at: v.readinto(at, buffer)),
                decrypt,
            )
            cases[f"{name}, write 1 MiB"] = (
                lambda v=volume: loop(MIB, lambda at: v.write(at, data)),
                encrypt,
            )
            if not cbc:
                cases[f"{name}, read 4 KiB in a row"] = (lambda v=volume: _read_file(v), decrypt)
                cases[f"{name}, write 4 KiB in a row"] = (
                    lambda v=volume: _write_file(v, data[:4096]),
                    encrypt,
                )
    return cases


def _read_file(volume) -> float:
    with volume.buffered() as file:
        buffer = bytearray(4096)
        return loop(4096, lambda _: file.readinto(buffer), 8 * MIB)


def _write_file(volume, data: bytes) -> float:
    with volume.buffered() as file:
        return loop(4096, lambda _: file.write(data), 8 * MIB)


def plain_cases(path: Path) -> dict[str, tuple[Callable[[], float], Callable[[], float]]]:
    cases: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {}
    data, buffer = os.urandom(MIB), bytearray(MIB)
    fd = os.open(path, os.O_RDWR)
    sectors = SIZE // 512
    tables = {
        "linear": f"0 {sectors} linear disk 0",
        "striped": f"0 {sectors} striped 2 2048 disk 0 disk {sectors // 2}",
        "zero": f"0 {sectors} zero",
    }
    read = lambda: loop(MIB, lambda at: os.preadv(fd, [buffer], at))  # noqa: E731
    write = lambda: loop(MIB, lambda at: os.pwrite(fd, data, at))  # noqa: E731
    for name, table in tables.items():
        volume = open_volume(table, {"disk": path})
        cases[f"{name}, read 1 MiB"] = (lambda v=volume: loop(MIB, lambda at: v.readinto(at, buffer)), read)
        cases[f"{name}, write 1 MiB"] = (lambda v=volume: loop(MIB, lambda at: v.write(at, data)), write)
    return cases


def memory(path: Path) -> dict[str, float]:
    """Return how much memory reading and writing a crypt volume of 10 GiB takes, in MiB, and the CPU seconds."""
    size = 10 << 30
    with path.open("wb") as file:
        file.truncate(size)
    table = f"0 {size // 512} crypt aes-xts-plain64 {KEY.hex()} 0 disk 0"
    buffer = bytearray(MIB)
    begun, before = time.process_time(), 0
    with open_volume(table, {"disk": path}) as volume:
        for offset in range(0, size, MIB):
            volume.readinto(offset, buffer)
            if offset == 8 * MIB:
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path.unlink()
    return {"grown_mib": (after - before) / 1024, "seconds": time.process_time() - begun}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="cases whose name begins so; no memory test then")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    arguments = parser.parse_args()
    version = subprocess.run(
        ["openssl", "version"], check=True, capture_output=True, text=True
    ).stdout.strip()
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, {version}")
    figures: dict[str, dict[str, float]] = {}
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="pytest-dm-bench-", dir=shm if shm.is_dir() else None) as name:
        path = Path(name) / "image"
        path.write_bytes(os.urandom(MIB) * (SIZE // MIB))
        for case, (ours, rival) in {**crypt_cases(path), **plain_cases(path)}.items():
            if not case.startswith(arguments.only):
                continue
            pairs = [(ours(), rival()) for _ in range(arguments.rounds)]
            best = max(one for one, _ in pairs)
            ratio = best / max(other for _, other in pairs)
            median = statistics.median(one / other for one, other in pairs)
            figures[case] = {"ratio": ratio, "median_ratio": median, "best_bytes_per_cpu_second": best}
            print(
                f"  {case:<48} {ratio:>6.2f}x   median {median:>5.2f}x   {best / 1e6:>6.0f} MB/s", flush=True
            )
        if not arguments.only:
            figures["memory"] = memory(path.with_name("large"))
            print(
                "  reading 10 GiB that are holes: {grown_mib:.1f} MiB more memory, {seconds:.1f} s CPU".format(
                    **figures["memory"]
                )
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
