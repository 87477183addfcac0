"""What a journal's replay will write, foreseen without it: held against e2fsck, state by state."""

from __future__ import annotations

import lzma
import os
import random
import subprocess
from pathlib import Path

import pytest
from crash_programs import SEEDS

from dmcore.crash.epochs import timeline
from dmcore.crash.explore import first_sound
from dmcore.crash.ext import Ext
from dmcore.crash.families import states
from dmcore.crash.filesystems import device_size
from dmcore.crash.log import CrashLog
from dmcore.crash.materialise import Image, Scratch
from dmcore.crash.states import State
from dmcore.crash.tools import find_tool

DATA = Path(__file__).parents[1] / "data/crash"
STATES = 25 if SEEDS == 1 else 1000
ONCE_WRONG = {("sqlite-delete-off", "L3"): [State(8, 181432729740)]}
"""There the super block says that no replay is needed, and the journal has an open transaction."""
BLOCK = 4096
NEEDS_RECOVERY = 1024 + 0x60


def block_of(path, number):
    with path.open("rb") as file:
        file.seek(number * BLOCK)
        return bytearray(file.read(BLOCK))


def put(blocks, number, offset, data):
    """Write what of some data falls into a block."""
    start, end = max(offset, number * BLOCK), min(offset + len(data), (number + 1) * BLOCK)
    if start < end:
        blocks[number][start - number * BLOCK : end - number * BLOCK] = data[start - offset : end - offset]


def compare(image, scratch, writes, masked):
    """Return the numbers of the blocks in which e2fsck's outcome is not what was foreseen."""
    touched = {
        number
        for offset, data in writes
        for number in range(offset // BLOCK, (offset + len(data) - 1) // BLOCK + 1)
    }
    wrong = []
    for number in sorted(touched | set(scratch.changed())):
        both = [{number: block_of(image, number)}, {number: block_of(scratch.path, number)}]
        for offset, data in writes:
            put(both[0], number, offset, data)
        for blocks in both:
            for offset, length in masked:
                if offset < (number + 1) * BLOCK and offset + length > number * BLOCK:
                    put(blocks, number, offset, bytes(length))
            if number == 0:
                blocks[0][NEEDS_RECOVERY] &= ~4
        if both[0] != both[1]:
            wrong.append(number)
    return wrong


@pytest.mark.parametrize("name", ["rename", "sqlite-delete-off", "stress"])
@pytest.mark.parametrize("level", ["L1", "L3"])
def test_it_is_what_e2fsck_writes(name, level, tmp_path):
    """At L3 journals are broken in many ways; of those nothing may be foreseen that is not so."""
    (tmp_path / "log").write_bytes(lzma.decompress((DATA / f"ext4-{name}.log.xz").read_bytes()))
    ext = Ext()
    dirty = foreseen = 0
    with CrashLog(tmp_path / "log") as log:
        log.size = max(log.size, device_size(log))
        sound = first_sound(log, timeline(log), ext, tmp_path)
        line = timeline(log, level)
        first = sound if level == "L1" else 2 * len(line.epochs) // 3
        chosen = list(states(line, torn_size=512, first=first, max_states=4 * STATES, seed=1))
        chosen = sorted(random.Random(2).sample(chosen, min(STATES, len(chosen))), key=lambda one: one.epoch)
        chosen += ONCE_WRONG.get((name, level), [])
        with Image(log, line, tmp_path / "image", 512) as image:
            last = line.epochs[-1]
            image.show(State(last.index, (1 << len(last.pending)) - 1))
            scratch = Scratch(image, tmp_path / "scratch")
            assert ext.recover(scratch.path) is None
            masked = ext.masked(scratch.path)
            for state in chosen:
                image.show(state)
                scratch.restore()
                writes = ext.foresee(scratch.path)
                if writes is None:
                    continue
                done = subprocess.run(
                    [find_tool("e2fsck", "e2fsprogs"), "-E", "journal_only", "-y", scratch.path],
                    capture_output=True, check=False, env=os.environ | {"E2FSCK_CONFIG": os.devnull},
                )  # fmt: skip
                assert done.returncode in (0, 1), (state, done.stdout)
                if (
                    b"orphaned inode" in done.stdout
                ):  # what it does beyond the replay follows from its outcome
                    continue
                foreseen += 1
                dirty += bool(writes)
                assert compare(image.path, scratch, writes, masked) == [], (state, done.stdout)
            scratch.close()
    assert foreseen >= 3
    assert dirty > 0
