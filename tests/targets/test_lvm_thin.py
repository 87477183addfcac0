"""A thin pool made by LVM2's own tools, read without it."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import ExitStack

import pytest

from dmcore.errors import Unsupported
from dmcore.kernel.block import BlockFile
from dmcore.kernel.loop import LoopDevice
from dmcore.lvm import open_lvm

pytestmark = pytest.mark.dm
MIB = 1 << 20


class _Lvm:
    """LVM2 that sees nothing but the disks given to it, without udev."""

    def __init__(self, tool, disks):
        accept = "".join(f'"a|^{disk.path}$|",' for disk in disks)
        self.tool = tool
        self.config = (
            f'devices{{filter=[{accept}"r|.*|"] obtain_device_list_from_udev=0 external_device_info_source="none"'
            " use_devicesfile=0} activation{udev_sync=0 udev_rules=0 monitoring=0 verify_udev_operations=1}"
            " backup{backup=0 archive=0}"
        )

    def __call__(self, command, *words):
        argv = [self.tool, command, "--config", self.config, *map(str, words)]
        run = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        assert run.returncode == 0, f"{argv}: {run.stdout}{run.stderr}"


def test_a_thin_pool_made_by_lvm2_opens_with_its_snapshots(lab, tmp_path):
    tool = shutil.which("lvm") or shutil.which("lvm", path="/usr/sbin:/sbin")
    if tool is None:
        pytest.skip(str(Unsupported("lvm", "it is not installed", "apt-get install lvm2")))
    for target in ("thin-pool", "snapshot"):
        lab.control.target_version(target)
    paths = [tmp_path / "one", tmp_path / "two"]
    for path in paths:
        with path.open("wb") as file:
            file.truncate(48 * MIB)
    with ExitStack() as stack:
        disks = [stack.enter_context(LoopDevice.attach(path)) for path in paths]
        lvm = _Lvm(tool, disks)
        lvm("pvcreate", *(disk.path for disk in disks))
        lvm("vgcreate", "-s", "1m", "dmvg", *(disk.path for disk in disks))
        stack.callback(lvm, "vgchange", "-an", "dmvg")
        lvm("lvcreate", "-L", "8m", "-i", "2", "-n", "plain", "dmvg")
        lvm("lvcreate", "--type", "thin-pool", "-L", "32m", "--poolmetadatasize", "4m", "-n", "pool", "dmvg")
        lvm("lvcreate", "-V", "100m", "--thinpool", "pool", "-n", "thin", "dmvg")
        _write("plain", 5 * MIB, b"p")
        _write("thin", 70 * MIB, b"t")
        lvm("lvcreate", "-s", "-n", "shot", "dmvg/thin")
        _write("thin", 70 * MIB + 4096, b"u")
        lvm("vgchange", "-an", "dmvg")
        for disk in disks:
            with BlockFile(disk.path) as file:
                file.flush()
    before, after = b"t" * 8192, b"t" * 4096 + b"u" * 8192
    for name, at, expected in (
        ("plain", 5 * MIB, b"p" * 8192),
        ("dmvg/shot", 70 * MIB, before),
        ("thin", 70 * MIB, after),
    ):
        with open_lvm(paths, name) as volume:
            assert volume.read(at, len(expected)) == expected
            assert volume.read(0, 4096) == bytes(4096)


def _write(name, at, byte):
    with BlockFile(f"/dev/mapper/dmvg-{name}") as file:
        file.write(at, byte * 8192)
        file.flush()
