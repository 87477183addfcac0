"""Crash exploration as ratios in one run: `python benchmarks/crash.py [--json FILE]`.

The rival does what one does by hand, per state: copy the image, replay the log up to the state, have the file system recovered and
checked by the same e2fsck commands. Both run on one core, on the log of a load on ext4 that tests/data/crash holds.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import platform
import resource
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dmcore.crash.checkers import NoFileSystem, Pipeline
from dmcore.crash.epochs import timeline
from dmcore.crash.explore import explore, first_sound
from dmcore.crash.families import states
from dmcore.crash.filesystems import device_size, filesystem
from dmcore.crash.images import ImageIds
from dmcore.crash.log import CrashLog
from dmcore.crash.materialise import Image, write_image
from dmcore.crash.states import State, state_pieces
from dmcore.formats.log_index import LogIndex
from dmcore.kernel.log_replay import replay

DATA = Path(__file__).parents[1] / "tests/data/crash"
REPLAYER = Path(__file__).with_name("replay.c")


def cpu(who: int = resource.RUSAGE_SELF) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def spent() -> float:
    """CPU seconds of this process and of those it waited for: what other load on the machine changes least."""
    return cpu() + cpu(resource.RUSAGE_CHILDREN)


def by_hand(log: CrashLog, folder: Path, first: int, epoch: int, present: int) -> float:
    """CPU seconds for one state: from an image of the fresh file system, with what was logged since."""
    line = timeline(log)
    base, image = folder / "base", folder / "copy"
    ext = filesystem("ext4")
    began = spent()
    shutil.copyfile(base, image)
    fd = os.open(image, os.O_RDWR)
    for before in line.epochs[first + 1 : epoch + 1]:
        for write in before.durable:
            for offset, length, source in write.pieces:
                os.pwrite(fd, bytes(length) if source < 0 else log.index.read(source, length), offset)
    for _, pieces in state_pieces(line.epochs[epoch], State(epoch, present), 512):
        for offset, length, source in pieces:
            os.pwrite(fd, bytes(length) if source < 0 else log.index.read(source, length), offset)
    os.close(fd)
    assert ext.recover(image) is None
    assert ext.verify(image) is None
    return spent() - began


def checked_states(folder: Path, count: int) -> dict[str, float]:
    raw = lzma.decompress((DATA / "ext4-stress.log.xz").read_bytes())
    (folder / "log").write_bytes(raw)
    with CrashLog(folder / "log") as log:
        log.size = max(log.size, device_size(log))
        line = timeline(log)
        first = first_sound(log, line, filesystem("ext4"), folder)
        write_image(log, line, State(first, 0), folder / "base", 512)
        chosen = list(states(line, first=first, max_states=count, seed=1))
        few = chosen[:: max(1, len(chosen) // 24)]
        half = len(few) // 2
        costs = [by_hand(log, folder, first, state.epoch, state.present) for state in few[:half]]
        before, began = spent(), time.perf_counter()
        found = explore(
            log, filesystem=filesystem("ext4"), first=first, max_states=count, seed=1, torn=0, workers=0
        )
        seconds, cost = time.perf_counter() - began, (spent() - before) / found.checked
        costs += [by_hand(log, folder, first, state.epoch, state.present) for state in few[half:]]
        assert not found.findings
        naive = statistics.median(costs)
        return {
            "states per CPU second, by hand": 1 / naive,
            "states per CPU second": 1 / cost,
            "times by hand, one core": naive / cost,
            "states/s on one core, as loaded as it is": found.checked / seconds,
        }


def deduplicated(folder: Path) -> dict[str, float]:
    """An epoch of twelve writes to eight blocks of a file that is allocated: 4096 subsets, of which few are distinct."""
    raw = lzma.decompress((DATA / "ext4-stress.log.xz").read_bytes())
    (folder / "log2").write_bytes(raw)
    image = folder / "sound"
    with LogIndex(folder / "log2") as index:
        replay(index, image)
    subprocess.run(["truncate", "-s", "64M", image], check=True)
    free = 50 << 20
    entries = b"".join(
        struct.pack("<QQQQ", (free + number % 8 * 4096) // 512, 8, 0, 0).ljust(512, b"\0")
        + bytes([number]) * 4096
        for number in range(12)
    )
    log_path = folder / "many"
    log_path.write_bytes(struct.pack("<QQQI", 0x6A736677736872, 1, 12, 512).ljust(512, b"\0") + entries)
    with CrashLog(log_path, base=image) as log:
        before = spent()
        found = explore(log, filesystem=filesystem("ext4"), max_states=5000, torn=0, workers=0)
        cost = (spent() - before) / found.generated
        assert found.generated == 4096
        assert not found.findings
        (folder / "base").write_bytes(image.read_bytes())
        naive = statistics.median(by_hand(log, folder, 0, 0, mask) for mask in range(0, 4096, 300))
        return {
            "generated": found.generated,
            "distinct": found.distinct,
            "states per CPU second with deduplication": 1 / cost,
            "times by hand with deduplication": naive / cost,
        }


def steps(folder: Path) -> dict[str, float]:
    """States made and identified, with no checker."""
    with CrashLog(folder / "many", size=64 << 20) as log:
        line = timeline(log)
        chosen = list(states(line, max_states=5000))
        best = 0.0
        for attempt in range(3):
            ids = ImageIds(log, line, 512)
            with Image(log, line, folder / f"steps{attempt}", 512) as image:
                began = time.process_time()
                for state in chosen:
                    ids.goto(state.epoch)
                    ids.of(state)
                    image.show(state)
                best = max(best, len(chosen) / (time.process_time() - began))
        assert isinstance(Pipeline(NoFileSystem()), Pipeline)
        return {"steps/s, id and image, no checker": best}


def replays(folder: Path, entries: int = 50_000) -> dict[str, float]:
    """The whole process against one in C that reads each header and copies each write by pread and pwrite."""
    program = folder / "replay"
    subprocess.run(["cc", "-O2", "-o", program, REPLAYER], check=True, timeout=60)
    log = folder / "big"
    with log.open("wb") as file:
        file.write(struct.pack("<QQQI", 0x6A736677736872, 1, entries, 512).ljust(512, b"\0"))
        for number in range(entries):
            head = struct.pack("<QQQQ", number * 7919 % 16384 * 8, 8, 0, 0).ljust(512, b"\0")
            file.write(head + struct.pack("<I", number) * 1024)
    ours = [
        sys.executable,
        "-c",
        "import sys; from dmcore.cli import main; sys.exit(main())",
        "log",
        "replay",
        log,
    ]
    ratios, index = [], []
    for _ in range(7):
        for name in ("c", "py"):
            (folder / name).unlink(missing_ok=True)
        before = cpu(resource.RUSAGE_CHILDREN)
        subprocess.run([program, log, folder / "c"], check=True)
        between = cpu(resource.RUSAGE_CHILDREN)
        subprocess.run([*ours, folder / "py"], check=True, stdout=subprocess.DEVNULL)
        ratios.append((cpu(resource.RUSAGE_CHILDREN) - between) / (between - before))
        began = time.process_time()
        LogIndex(log).close()
        index.append(time.process_time() - began)
    assert (folder / "c").read_bytes() == (folder / "py").read_bytes()
    with LogIndex(log) as made:
        began = time.process_time()
        for number in range(10_000):
            made[number * 4]
        seek = (time.process_time() - began) / 10_000
    return {
        "replay, CPU of the process, times C": statistics.median(ratios),
        "index of 50000 entries, s": statistics.median(index),
        "seek after that, us": seek * 1e6,
    }


def memory(folder: Path, gigabytes: float = 2) -> dict[str, float]:
    """Peak of a process that explores a log of 2 GiB over a device of 64 MiB, 512 writes between flushes."""
    log = folder / "huge"
    count = int(gigabytes * (1 << 30)) // (1 << 20)
    with log.open("wb") as file:
        file.write(struct.pack("<QQQI", 0x6A736677736872, 1, count + count // 64, 512).ljust(512, b"\0"))
        for number in range(count):
            head = struct.pack("<QQQQ", number * 37 % 64 * 2048, 2048, 0, 0).ljust(512, b"\0")
            file.write(head + struct.pack("<I", number) * (1 << 18))
            if number % 64 == 63:
                file.write(struct.pack("<QQQQ", 0, 0, 1, 0).ljust(512, b"\0"))
    code = (
        "import sys, resource\nfrom dmcore.crash.log import CrashLog\nfrom dmcore.crash.explore import explore\n"
        "with CrashLog(sys.argv[1]) as log:\n    explore(log, max_states=200, torn=0, workers=0)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", code, log], check=True, capture_output=True, text=True)
    log.unlink()
    return {"peak MiB of exploring a log of 2 GiB over 64 MiB": int(done.stdout) / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--states", type=int, default=2000)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as work:
        folder = Path(work)
        figures |= checked_states(folder, arguments.states)
        figures |= deduplicated(folder)
        figures |= steps(folder)
        figures |= replays(folder)
        if not arguments.no_memory:
            figures |= memory(folder)
    print(
        f"{platform.machine()}, Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    for name, value in figures.items():
        print(f"  {name:<52} {value:>12.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
