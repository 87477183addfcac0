"""verity's repair from parity on a kernel, and here: needs one that is built with it, such as Debian's (`--dm-vm=qemu`)."""

from __future__ import annotations

import random
from contextlib import ExitStack

import pytest

from dmcore.kernel.block import BlockFile
from dmcore.kernel.device import Device
from dmcore.kernel.loop import LoopDevice
from dmcore.owner import Owner
from dmcore.verity import format_verity, open_verity

pytestmark = pytest.mark.dm
BLOCK = 4096
BLOCKS = 150
NOISE = random.Random(7).randbytes(BLOCK)


def _flip(data, *places):
    for block, byte in places:
        data[block * BLOCK + byte] ^= 0x40


def _lose(data, *blocks):
    for block in blocks:
        data[block * BLOCK : (block + 1) * BLOCK] = NOISE


DAMAGE = {
    "bytes": lambda data, _: _flip(data, (3, 5), (10, 700), (20, 701), (149, 4095)),
    "two lost blocks": lambda data, _: _lose(data, 7, 90),
    "three lost blocks": lambda data, _: _lose(data, 7, 90, 91),
    "two wrong bytes of a word": lambda data, _: _flip(data, (3, 5), (10, 5)),
    "the tree": lambda _, tree: _flip(tree, (2, 100)),
}


def _outcomes(disk):
    """Return what each block reads, or its errno."""
    found = []
    for block in range(BLOCKS):
        try:
            found.append(bytes(disk.read(block * BLOCK, BLOCK)))
        except OSError as error:
            found.append(error.errno)
    return found


def test_kernel_and_model_repair_the_same(lab, tmp_path):
    if "verity.fec" not in lab.features:
        pytest.skip("the kernel is built without CONFIG_DM_VERITY_FEC (run it with --dm-vm=qemu)")
    original = random.Random(5).randbytes(BLOCK * BLOCKS)
    data, tree, fec = (tmp_path / name for name in ("data", "tree", "fec"))
    data.write_bytes(original)
    root = format_verity(data, tree, fec=fec, salt=b"salt")
    hashes = tree.read_bytes()
    blocks = [original[at : at + BLOCK] for at in range(0, len(original), BLOCK)]
    for name, damage in DAMAGE.items():
        content, nodes = bytearray(original), bytearray(hashes)
        damage(content, nodes)
        data.write_bytes(content)
        tree.write_bytes(nodes)
        with open_verity(data, tree, root, fec=fec, features=lab.features) as volume:
            ours, table = _outcomes(volume), volume.device.table
            repaired = volume.device.targets[0].status().split()[1]
        assert table is not None
        with ExitStack() as stack:
            paths = {"data": data, "hashes": tree, "fec": fec}
            loops = {
                word: stack.enter_context(LoopDevice.attach(path, readonly=True)).ref.name
                for word, path in paths.items()
            }
            label, uuid = Owner.current().name("fec")
            device = stack.enter_context(
                Device.create(lab.control, label, table, uuid=uuid, readonly=True, devices=loops)
            )
            theirs = _outcomes(stack.enter_context(BlockFile(device.path, readonly=True)))
            said = device.status_text().split()
        assert [block if theirs[block] != ours[block] else None for block in range(BLOCKS)] == [
            None
        ] * BLOCKS, name
        lost = [block for block in range(BLOCKS) if ours[block] != blocks[block]]
        assert lost == {"three lost blocks": [7, 90, 91], "two wrong bytes of a word": []}.get(name, []), name
        if len(said) > 4:
            assert said[4] == repaired, name
