"""Write what LOOP_GET_STATUS64 of this kernel returns for one known device: `python capture_loop.py FOLDER` as root."""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path

from dmcore.abi.loop import LoopCommand, LoopInfo
from dmcore.kernel.loop import LoopDevice


def main(folder: Path) -> None:
    backing = Path("/tmp/capture.img")
    backing.write_bytes(bytes(1 << 20))
    with LoopDevice.attach(backing, offset=4096, size_limit=65536, readonly=True, direct_io=False) as loop:
        raw = bytearray(LoopInfo.SIZE)
        fd = os.open(loop.path, os.O_RDONLY)
        fcntl.ioctl(fd, LoopCommand.GET_STATUS64, raw)
        os.close(fd)
    release = ".".join(os.uname().release.split(".")[:2])
    target = folder / release
    target.mkdir(parents=True, exist_ok=True)
    (target / "loop_status64.bin").write_bytes(raw)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
