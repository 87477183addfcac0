"""LUKS images in turn: what cryptsetup's device wrote the volume reads, and what the volume writes that device reads."""

from __future__ import annotations

import hashlib
import os
import subprocess

import pytest

from dmcore import open_luks
from dmcore.kernel.block import BlockFile
from dmcore.kernel.loop import LoopDevice
from dmcore.owner import Owner

pytestmark = pytest.mark.dm
FAST = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")
SMALL = ("--type", "luks2", "--luks2-metadata-size", "16k", "--luks2-keyslots-size", "512k")
DATA = hashlib.shake_256(b"luks").digest(64 << 10)


def _cryptsetup(*words: object) -> None:
    environment = {**os.environ, "DM_DISABLE_UDEV": "1"}
    subprocess.run(
        ["cryptsetup", "-q", *map(str, words)], input=b"pass", env=environment, timeout=60, check=True
    )


@pytest.mark.parametrize(
    "kind",
    [
        ("--type", "luks1", *FAST),
        (*SMALL, *FAST, "--sector-size", "4096", "--cipher", "aes-xts-plain64"),
        (*SMALL, *FAST, "--integrity", "hmac-sha256", "--integrity-no-wipe", "--sector-size", "4096"),
        (*SMALL, *FAST, "--integrity", "aead", "--integrity-no-wipe", "--cipher", "aes-gcm-random"),
    ],
)
def test_images_in_turn(tmp_path, kind):
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(4 << 20)
    name, _ = Owner.current().name("luks")
    with LoopDevice.attach(path) as loop:
        _cryptsetup("luksFormat", *kind, "--key-file", "-", loop.path)
        _cryptsetup("open", "--disable-keyring", "--key-file", "-", loop.path, name)
        try:
            with BlockFile(f"/dev/mapper/{name}") as device:
                size = device.size
                device.write(0, DATA)
                device.write(size - 4096, DATA[:4096])
        finally:
            _cryptsetup("close", name)
    with open_luks(path, b"pass") as volume:
        assert volume.size == size
        assert volume.read(0, len(DATA)) == DATA
        assert volume.read(size - 4096, 4096) == DATA[:4096]
        volume.write(8192, DATA[::-1])
    with LoopDevice.attach(path) as loop:
        _cryptsetup("open", "--disable-keyring", "--key-file", "-", loop.path, name)
        try:
            with BlockFile(f"/dev/mapper/{name}") as device:
                assert device.read(8192, len(DATA)) == DATA[::-1]
        finally:
            _cryptsetup("close", name)
