"""Speed of volumes as ratios in one run: crypt against `openssl speed`, plain ones against a pread/pwrite loop.

`python benchmarks/volumes.py [--rounds N] [--json FILE]`
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
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


def loop(request: int, do: Callable[[int], object]) -> float:
    """Return bytes per second of `do(offset)` over `SIZE` bytes."""
    begun = time.perf_counter()
    for offset in range(0, SIZE, request):
        do(offset)
    return SIZE / (time.perf_counter() - begun)


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
        return loop(4096, lambda _: file.readinto(buffer))


def _write_file(volume, data: bytes) -> float:
    with volume.buffered() as file:
        return loop(4096, lambda _: file.write(data))


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
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
            begun = time.process_time()
            pairs = [(ours(), rival()) for _ in range(arguments.rounds)]
            cpu = SIZE * arguments.rounds / (time.process_time() - begun)
            ratio = statistics.median(one / other for one, other in pairs)
            best = max(one for one, _ in pairs)
            figures[case] = {"ratio": ratio, "best_bytes_per_second": best}
            print(f"  {case:<55} {ratio:>6.2f}x   best {best / 1e6:>7.0f} MB/s")
            figures[case]["bytes_per_cpu_second_of_this_process"] = cpu
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
