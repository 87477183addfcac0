"""Kill processes at random moments of building, using and taking down a stack of 12 devices; then `pytest-dm clean`.

Run as root where there is device-mapper, for example in a guest:

    pytest-dm vm run -- .venv/bin/python tests/tools/kill_builds.py 200

Each victim is a fork of this process, killed by SIGKILL at a moment drawn evenly from what a whole life takes. After each
kill either `pytest-dm clean` or the sweep of a session's start runs, and then nothing of it may be left: no dm device, loop
device, node, mount, folder or semaphore. Exits with 1 at the first leftover, having said it.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import random
import signal
import sys
import time
from pathlib import Path

from dmcore.kernel.control import Control
from dmcore.kernel.mount import mounts
from dmcore.owner import PREFIX, UUID_PREFIX, Owner
from dmcore.targets import Zero
from pytest_dm import clean
from pytest_dm.factory import Dm
from pytest_dm.kernel_runtime import KernelRuntime
from pytest_dm.runtime import backing_roots

sys.path.append(str(Path(__file__).parents[1] / "kernel"))
from udevd import running as udevd

DEVICES = 12


def build(dm: Dm) -> None:
    """Make 12 dm devices (on 6.1 one more, below the broken range) on loops, use some, mount one."""
    first, second = dm.loop("24M"), dm.loop("24M")
    base = dm.linear(first)
    flakey = dm.flakey(base)
    dust = dm.dust(flakey)
    delay = dm.delay(dust)
    top = dm.error_range(delay, start=40000, length=8)
    logged = dm.log_writes(second)
    pair = dm.create("0 32768 striped 2 64 a 0 b 0", devices={"a": top, "b": logged}, label="pair")
    snapshot_cow = dm.linear(dm.loop("8M"))
    dm.create("0 32768 snapshot-origin o", devices={"o": pair}, label="origin")
    dm.create("0 32768 snapshot o c P 8", devices={"o": pair, "c": snapshot_cow}, label="snapshot")
    dm.create(Zero(), size="1T", label="zero")
    dm.error("1M")
    made = list(dm.runtime.control.list_devices(uuid_prefix=f"{UUID_PREFIX}{dm.runtime.owner.tag}-"))
    assert len(made) >= DEVICES, [entry.name for entry in made]
    with flakey.fail(writes=True):
        pass
    dust.add_bad(7)
    delay.set(read_ms=1)
    disk = dm.linear(dm.loop("16M"))
    dm.mkfs(disk, "ext4")
    with dm.mount(disk, fs="ext4") as mounted:
        (mounted.mountpoint / "file").write_bytes(bytes(65536))
        with pair.suspended():
            pass


def victim() -> None:
    """A whole life: build, and take down."""
    runtime = KernelRuntime()
    with Dm(runtime) as dm:
        build(dm)
    runtime.close()


def semaphores() -> set[int]:
    """Return the keys of udev cookies."""
    rows = Path("/proc/sysvipc/sem").read_text(encoding="ascii").splitlines()[1:]
    return {key for row in rows if (key := int(row.split()[0])) >> 16 == 0x0D4D}


def _of_this_boot(text: str) -> bool:
    """Whether a path is a process's of this kernel; the exchange folder of a guest is the host's."""
    owner = Owner.find(text)
    return owner is not None and owner.boot == Owner.current().boot


def left(control: Control) -> list[str]:
    """Return what there is of anybody's that looks like ours."""
    found = [f"device {entry.name}" for entry in control.list_devices() if entry.name.startswith(PREFIX)]
    found += [f"node {path}" for path in Path("/dev/mapper").glob(f"{PREFIX}-*")]
    found += [
        f"folder {path}"
        for root in backing_roots()
        for path in root.glob(f"{PREFIX}-*")
        if _of_this_boot(path.name)
    ]
    found += [f"mount {mounted.target}" for mounted in mounts() if _of_this_boot(str(mounted.target))]
    found += [f"semaphore {key:#x}" for key in semaphores()]
    for shown in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            backing = shown.read_text(encoding="utf-8").strip()
        except OSError:
            continue
        if PREFIX in backing:
            found.append(f"loop device {shown.parent.parent.name} on {backing}")
    return found


def left_in_the_end(control: Control, before: list[str]) -> list[str]:
    """Return what came to it, after udevd, where one runs, has had the time to take its links away."""
    deadline = time.monotonic() + 20
    while (
        (found := [what for what in left(control) if what not in before])
        and control.udev
        and time.monotonic() < deadline
    ):
        time.sleep(0.02)
    return found


def _fork(seconds: float) -> tuple[int, float]:
    """Run a victim for so long at most; return its wait status and how long it lived."""
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            victim()
            status = 0
        except BaseException as error:  # noqa: BLE001 - also Ctrl-C must not run on in the fork
            sys.stderr.write(f"victim: {error!r}\n")
        os._exit(status)
    while time.monotonic() - began < seconds:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status, time.monotonic() - began
        time.sleep(min(0.002, seconds / 100))
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return status, time.monotonic() - began


def campaign(control: Control, kills: int, seed: int) -> int:
    """Kill, clean and look, `kills` times; return the exit status."""
    chance = random.Random(seed)
    before = left(control)
    lives = []
    for _ in range(3 if kills > 50 else 1):
        status, seconds = _fork(300)
        if status or left_in_the_end(control, before):
            sys.stderr.write(f"a life without a kill: {status}, {left_in_the_end(control, before)}\n")
            return 1
        lives.append(seconds)
    life = min(lives)
    cleaned: collections.Counter[str] = collections.Counter()
    killed = 0
    while killed < kills:
        moment = chance.uniform(0, life)
        status, _ = _fork(moment)
        if not os.WIFSIGNALED(status):
            if status:
                sys.stderr.write(f"the victim failed with {status}\n")
                return 1
            continue
        killed += 1
        cleaned.update(leftover.what for leftover in clean.find(control))
        said: list[str] = []
        if killed % 2:
            failures = clean.clean(said.append)
        else:
            said = clean.sweep(control)
            failures = len(said)
        rest = left_in_the_end(control, before)
        if failures or rest:
            sys.stderr.write(f"kill {killed} (seed {seed}) after {moment:.4f} s of {life:.4f} s:\n")
            sys.stderr.write("\n".join([*said, "left:", *rest]) + "\n")
            return 1
    counts = ", ".join(f"{count} {what}s" for what, count in sorted(cleaned.items()))
    print(
        f"{killed} kills within {life:.2f} s of building and taking down; cleaned: {counts}; nothing is left"
    )
    return 0


def main() -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kills", type=int, nargs="?", default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--udevd", action="store_true", help="with a udevd, in a guest one of our own")
    given = parser.parse_args()
    with udevd() if given.udevd else contextlib.nullcontext(), Control() as control:
        return campaign(control, given.kills, given.seed)


if __name__ == "__main__":
    sys.exit(main())
