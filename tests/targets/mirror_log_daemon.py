"""A daemon for the userspace logs of mirrors, as lvm2's cmirrord is one, for one machine and in memory.

Sources: include/uapi/linux/dm-log-userspace.h, drivers/md/dm-log-userspace-transfer.c, Documentation/driver-api/connector.rst.
"""

from __future__ import annotations

import errno
import socket
import struct
import threading
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Self

NETLINK_CONNECTOR, SOL_NETLINK, ADD_MEMBERSHIP, DONE = 11, 270, 1, 3
CN_IDX_DM, CN_VAL_USERSPACE_LOG = 7, 1
HEADERS = struct.Struct("=IHHII IIIIHH")
REQUEST = struct.Struct("=Q129s3xIiIII")


class Kind(IntEnum):
    """What the kernel asks."""

    CTR = 1
    DTR = 2
    PRESUSPEND = 3
    POSTSUSPEND = 4
    RESUME = 5
    REGION_SIZE = 6
    IS_CLEAN = 7
    IN_SYNC = 8
    FLUSH = 9
    MARK = 10
    CLEAR = 11
    RESYNC_WORK = 12
    SET_SYNC = 13
    SYNC_COUNT = 14
    STATUS_INFO = 15
    STATUS_TABLE = 16
    REMOTE_RECOVERING = 17


@dataclass
class Log:
    """What the daemon knows of one mirror."""

    words: list[str]
    synced: set[int] = field(default_factory=set)
    recovering: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        length, self.kind, *words = self.words
        self.dev = words.pop(0) if self.kind == "clustered-disk" else ""
        self.region = int(words.pop(0))
        self.count = -(-int(length) // self.region)
        if words == ["nosync"]:
            self.synced.update(range(self.count))

    def work(self) -> bytes:
        """Return a region to copy, the first that nobody copies yet."""
        left = sorted(set(range(self.count)) - self.synced - self.recovering)
        self.recovering.update(left[:1])
        return struct.pack("=qQ", bool(left), left[0] if left else 0)

    def set(self, region: int, in_sync: int) -> None:
        self.recovering.discard(region)
        (self.synced.add if in_sync else self.synced.discard)(region)

    def status(self, *, fails: bool) -> bytes:
        if fails:
            raise OSError(errno.EIO, "as told")
        return (f"3 {self.kind} {self.dev} A\0" if self.dev else f"1 {self.kind}\0").encode()


class Daemon(threading.Thread):
    """Answers the kernel until it is stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.logs: dict[int, Log] = {}
        self.asked: list[Kind] = []
        self.status_fails = False
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_CONNECTOR)
        self.socket.bind((0, 0))
        self.socket.setsockopt(SOL_NETLINK, ADD_MEMBERSHIP, CN_IDX_DM)
        self.socket.settimeout(0.1)
        self.stopped = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.join(5)
        self.socket.close()

    def run(self) -> None:
        while not self.stopped.is_set():
            try:
                message = self.socket.recv(65536)
            except TimeoutError:
                continue
            self.answer(message)

    def answer(self, message: bytes) -> None:
        luid, uuid, version, _, seq, kind, size = REQUEST.unpack_from(message, HEADERS.size)
        start = HEADERS.size + REQUEST.size
        self.asked.append(Kind(kind))
        try:
            error, data = 0, self.reply(luid, kind, message[start : start + size])
        except OSError as refused:
            error, data = -(refused.errno or errno.EIO), b""
        body = REQUEST.pack(luid, uuid, version, error, seq, kind, len(data)) + data
        length = HEADERS.size + len(body)
        head = HEADERS.pack(
            *(length, DONE, 0, 0, 0), *(CN_IDX_DM, CN_VAL_USERSPACE_LOG, seq, 0, len(body), 0)
        )
        self.socket.sendto(head + body, (0, 0))

    def reply(self, luid: int, kind: int, data: bytes) -> bytes:
        if kind == Kind.CTR:
            log = self.logs[luid] = Log(data.rstrip(b"\0").decode().split())
            return f"{log.dev}\0".encode() if log.dev else b""
        log = self.logs[luid]
        answer = b""
        match kind:
            case Kind.REGION_SIZE:
                answer = struct.pack("=Q", log.region)
            case Kind.IS_CLEAN | Kind.IN_SYNC:
                answer = struct.pack("=q", struct.unpack("=Q", data)[0] in log.synced)
            case Kind.RESYNC_WORK:
                answer = log.work()
            case Kind.SET_SYNC:
                log.set(*struct.unpack("=Qq", data))
            case Kind.SYNC_COUNT:
                answer = struct.pack("=Q", len(log.synced))
            case Kind.STATUS_INFO:
                answer = log.status(fails=self.status_fails)
            case Kind.REMOTE_RECOVERING:
                answer = struct.pack("=qQ", 0, log.count)
        return answer
