"""Write replies of this kernel's dm control node to FOLDER/<release>: `python capture_abi.py FOLDER`, root, no dm devices.

The devices are the same everywhere, so that tests know what each reply must say; see tests/unit/test_abi_dm.py.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from dmcore.abi.dm import HEADER_SIZE, Command, DmFlag, DmIoctl, TableLine
from dmcore.abi.dm_records import pack_message
from dmcore.kernel.control import Control
from dmcore.kernel.loop import LoopDevice
from dmcore.kernel.syscalls import ioctl

ODD = "c\u00e4p \udcff"
LONG = "n" * 127


def replies(control: Control) -> dict[str, bytes]:
    found: dict[str, bytes] = {}

    def keep(label: str, command: Command, header: DmIoctl, **how: object) -> None:
        reply, buffer = control.request(command, header, **how)  # type: ignore[arg-type]
        found[label] = bytes(buffer[: max(HEADER_SIZE, reply.data_size)])

    room = {"room": 4096}
    keep("version", Command.DM_VERSION, DmIoctl())
    keep("list_empty", Command.DM_LIST_DEVICES, DmIoctl(DmFlag.UUID), **room)
    keep("create", Command.DM_DEV_CREATE, DmIoctl(name="cap", uuid="CAP-1"))
    control.create(ODD)
    control.create(LONG, "u" * 128, minor=70000)
    keep("status_no_table", Command.DM_DEV_STATUS, DmIoctl(name=ODD))
    keep("table_no_table", Command.DM_TABLE_STATUS, DmIoctl(name=ODD), **room)
    keep("list", Command.DM_LIST_DEVICES, DmIoctl(DmFlag.UUID), **room)
    keep("list_filtered", Command.DM_LIST_DEVICES, DmIoctl(DmFlag.UUID, "c", "CAP"), **room)
    with tempfile.TemporaryFile() as file:
        file.truncate(1 << 20)
        path = f"/proc/self/fd/{file.fileno()}"
        with LoopDevice.attach(path, direct_io=False) as loop:
            lines = [
                TableLine(0, 8, "zero"),
                TableLine(8, 16, "error"),
                TableLine(24, 1000, "dust", f"{loop.ref} 0 512"),
                TableLine(1024, 512, "striped", f"2 8 {loop.ref} 1024 {loop.ref} 1536"),
            ]
            control.load("cap", lines)
            keep(
                "table_inactive",
                Command.DM_TABLE_STATUS,
                DmIoctl(DmFlag.STATUS_TABLE | DmFlag.QUERY_INACTIVE_TABLE, "cap"),
                **room,
            )
            keep("resume", Command.DM_DEV_SUSPEND, DmIoctl(name="cap", event_nr=77))
            keep("table", Command.DM_TABLE_STATUS, DmIoctl(DmFlag.STATUS_TABLE, "cap"), **room)
            keep("status", Command.DM_TABLE_STATUS, DmIoctl(uuid="CAP-1"), **room)
            keep("deps", Command.DM_TABLE_DEPS, DmIoctl(name="cap"), **room)
            control.message("cap", "addbadblock 60", 24)
            keep(
                "message_silent",
                Command.DM_TARGET_MSG,
                DmIoctl(name="cap"),
                payload=pack_message(24, "removebadblock 60"),
                **room,
            )
            control.message("cap", "addbadblock 61", 24)
            keep(
                "message_reply",
                Command.DM_TARGET_MSG,
                DmIoctl(name="cap"),
                payload=pack_message(24, "listbadblocks"),
                **room,
            )
            for block in range(100, 120):
                control.message("cap", f"addbadblock {block}", 24)
            keep(
                "message_full",
                Command.DM_TARGET_MSG,
                DmIoctl(name="cap"),
                payload=pack_message(24, "listbadblocks"),
            )
            keep("suspend", Command.DM_DEV_SUSPEND, DmIoctl(DmFlag.SUSPEND, "cap"))
            control.remove("cap")
    keep("target_version", Command.DM_GET_TARGET_VERSION, DmIoctl(name="linear"), **room)
    keep("remove", Command.DM_DEV_REMOVE, DmIoctl(name=ODD))
    control.remove(LONG)
    keep("versions", Command.DM_LIST_VERSIONS, DmIoctl(), **room)
    return found


def main(folder: Path) -> None:
    target = folder / ".".join(os.uname().release.split(".")[:2])
    target.mkdir(parents=True, exist_ok=True)
    with Control() as control:
        for label, raw in replies(control).items():
            (target / f"dm_{label}.bin").write_bytes(raw)
        refused = bytearray(DmIoctl(name="nobody").pack())
        try:
            ioctl(control.fileno(), Command.DM_DEV_STATUS.request, refused)
        except OSError:
            (target / "dm_refused.bin").write_bytes(refused)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
