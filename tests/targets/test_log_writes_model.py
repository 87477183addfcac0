"""The model's log is the kernel's, byte for byte, for the same requests; so is what a full log or a failing disk leaves."""

from __future__ import annotations

import time
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dmcore.formats.log_writes import LogReader
from dmcore.kernel.block import BlockFile
from dmcore.kernel.loop import LoopDevice
from dmcore.model.stores import MemoryStore
from dmcore.table import Table
from dmcore.volume import open_volume

pytestmark = pytest.mark.dm(needs="log-writes")
BLOCKS = 24
_SETTINGS = settings(
    max_examples=8,
    print_blob=False,
    report_multiple_bugs=False,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

requests = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "fua", "flush", "discard", "write_zeroes", "read", "mark"]),
        st.integers(0, BLOCKS - 1),
        st.integers(1, BLOCKS),
        st.integers(1, 255),
    ),
    min_size=1,
    max_size=12,
)


def outcome(request, *args):
    try:
        return request(*args)
    except OSError as error:
        return error.errno


class OnKernel:
    """Requests to the kernel's device."""

    def __init__(self, device):
        self._device = device
        self._file = BlockFile(device.path)
        self._fua = BlockFile(device.path, synchronous=True)
        for name in ("read", "write", "flush", "discard", "write_zeroes"):
            setattr(self, name, getattr(self._file, name))

    def fua(self, offset, data):
        self._fua.write(offset, data)

    def mark(self, text):
        self._device.message(f"mark {text}")

    def close(self):
        self._file.close()
        self._fua.close()


class OnModel:
    """The same to the model's."""

    def __init__(self, volume):
        self._volume = volume
        for name in ("read", "write", "flush", "discard", "write_zeroes"):
            setattr(self, name, getattr(volume, name))

    def fua(self, offset, data):
        self._volume.write(offset, data, fua=True)
        self._volume.flush()

    def mark(self, text):
        self._volume.message(f"mark {text}")

    def close(self):
        self._volume.device.suspend()


def run(disk, script, block):
    """Do a script of requests, in units of `block` bytes; return what came of each."""
    found = []
    for what, at, count, byte in script:
        offset, length = at * block, min(count, BLOCKS - at) * block
        if what in ("write", "fua"):
            found.append(outcome(getattr(disk, what), offset, bytes([byte]) * length))
        elif what == "flush":
            found.append(outcome(disk.flush))
        elif what == "mark":
            found.append(outcome(disk.mark, f"{byte}-{'m' * at * count}"))
        else:
            found.append(outcome(getattr(disk, what), offset, length))
    return found


def await_entries(device, count):
    """Wait for the kernel's thread: with work left when the target ends, the log gets another order (kernel-findings.md)."""
    deadline = time.monotonic() + 5
    while device.status()[0].entries < count and time.monotonic() < deadline:
        time.sleep(0.001)


@contextmanager
def disks(lab, block):
    """Give data and log disks for logical blocks of `block` bytes, wiped, and their images."""
    if block == 512:
        yield lab.disks
        return
    paths = [disk.backing for disk in lab.disks]
    with (
        LoopDevice.attach(paths[0], block_size=block, direct_io=False) as data,
        LoopDevice.attach(paths[1], block_size=block, direct_io=False) as log,
    ):
        yield [data, log]


def images(paths):
    found = []
    for path in paths:
        with BlockFile(path) as file:
            found.append(file.read(0, file.size))
    return found


def entries(log):
    """Return the log's entries, short, for a difference that can be read."""
    if not any(log[:8]):
        return []
    reader = LogReader(bytes(log))
    found = [(e.sector, e.nr_sectors, e.flags, e.mark or reader.read(e)[:1]) for e in reader]
    return found + [(e.sector, e.nr_sectors, e.flags, "beyond") for e in reader.beyond()]


@pytest.mark.parametrize("block", [512, 4096])
@pytest.mark.parametrize("below", ["disk", "failing", "full"])
def test_the_logs_are_equal(lab, block, below):
    with disks(lab, block) as (data, log):
        sectors = block // 512

        @_SETTINGS
        @given(requests)
        def check(script):
            lab.wipe()
            stores = [
                MemoryStore(disk.size, word=str(disk.ref), block_size=block, granularity=4096)
                for disk in (data, log)
            ]
            known = {store.word: store for store in stores}
            length = BLOCKS * sectors
            lower = (
                f"0 {length} flakey {data.ref} 0 0 1 1 error_writes"
                if below == "failing"
                else f"0 {length} linear {data.ref} 0"
            )
            end = 40 * sectors if below == "full" else 2048
            room = f"0 {end} linear {log.ref} 0"
            with lab.device(Table.parse(lower)) as low, lab.device(Table.parse(room)) as logged:
                table = f"0 {length} log-writes {low.ref} {logged.ref}"
                with lab.device(Table.parse(table)) as device:
                    kernel = OnKernel(device)
                    stack = f"low: {lower}\nlog: {room}\ntop: 0 {length} log-writes low log"
                    with open_volume(stack, known, features=lab.features) as volume:
                        model = OnModel(volume)
                        assert run(model, script, block) == run(kernel, script, block)
                        await_entries(device, volume.status()[0].entries)
                        kernel.close()
                        assert volume.status()[0].disabled == device.status()[0].disabled
                        model.close()
            kernel_data, kernel_log = images([data.path, log.path])
            assert entries(stores[1].read(0, stores[1].sectors)) == entries(kernel_log)
            assert stores[1].read(0, stores[1].sectors) == kernel_log
            assert stores[0].read(0, stores[0].sectors) == kernel_data

        check()
