"""QEMU: its argument list, where its program is, and whether KVM is worth using here."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from dmcore.errors import SpecError, Unsupported
from dmvm import cache, tools
from dmvm.initramfs import HOST_TAG

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dmvm.kernels import GuestKernel

__all__ = [
    "EXCHANGE_TAG",
    "PORT",
    "KvmVerdict",
    "accelerator",
    "binary",
    "boot_sector",
    "command",
    "kvm",
    "kvm_works",
    "probe",
]

EXCHANGE_TAG: Final = "exchange"
"""9p tag of the folder that the guest may write."""

PORT: Final = "dmvm.line"
"""Name of the virtio port that is the guest's byte line."""

_PROGRAM: Final = "qemu-system-x86_64"
_COMMAND_LINE_MAX: Final = 2047
_INIT_WORDS_MAX: Final = 30
_KVM_SECONDS: Final = 2.0
_EXIT_STATUS: Final = 33
_ISA_DEBUG_EXIT: Final = 0xF4

# Enough for wheels built for x86-64-v2; emulated, anything newer costs more than it gives.
_CPU: Final = {"kvm": "host", "tcg": "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+rdrand"}

_KERNEL_WORDS: Final = (
    "console=ttyS0",
    "rdinit=/init",
    "panic=-1",
    "oops=panic",
    "hung_task_panic=0",
    "loglevel=5",
    "mitigations=off",
    "audit=0",
    "selinux=0",
    "apparmor=0",
    "no_timer_check",
    "tsc=reliable",
    "nowatchdog",
    "random.trust_cpu=on",
)


def binary() -> Path:
    """Return the emulator's path: PYTEST_DM_QEMU, else the one on PATH.

    Raises:
        SpecError: PYTEST_DM_QEMU names no program.
        Unsupported: There is none.
    """
    wanted = os.environ.get("PYTEST_DM_QEMU", "")
    if wanted:
        if not os.access(wanted, os.X_OK):
            raise SpecError("PYTEST_DM_QEMU", wanted, f"the path of a {_PROGRAM}")
        return Path(wanted)
    found = tools.find(_PROGRAM)
    if found is None:
        raise Unsupported(
            _PROGRAM, "there is none on PATH", "apt-get install --no-install-recommends qemu-system-x86"
        )
    return Path(found)


def command(
    kernel: GuestKernel,
    *,
    program: Path,
    memory_mb: int,
    accel: str,
    exchange: Path,
    line_fd: int,
    init: Sequence[str],
) -> list[str]:
    """Return the argument list of a QEMU machine.

    Its console is its stdout, its byte line the inherited socket `line_fd` (the virtio port `PORT` in the guest). The
    host's root is 9p tag `hostroot`, read-only, the initramfs' to mount; `exchange` is tag `EXCHANGE_TAG`, writable.

    Args:
        kernel: A kernel whose machine is "qemu".
        program: QEMU, as from `binary`.
        memory_mb: The guest's memory in MiB.
        accel: "kvm" or "tcg", as from `accelerator`.
        exchange: The one host folder the guest may write; no comma in its path.
        line_fd: Inherited descriptor of the line, a connected socket.
        init: First program on the host's root and its arguments; no word may contain white space or quotes.

    Raises:
        SpecError: A bad argument.
    """
    if kernel.initramfs is None:
        raise SpecError("kernel", kernel.name, "a kernel for QEMU")
    if accel not in _CPU:
        raise SpecError("accel", accel, "kvm or tcg")
    if "," in str(exchange):
        raise SpecError("exchange", str(exchange), "a path without a comma")
    return [
        str(program),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-vga", "none", "-nic", "none"),
        *("-name", "pytest-dm", "-machine", f"q35,accel={accel}", "-cpu", _CPU[accel]),
        *("-smp", "1", "-m", f"{memory_mb}M"),
        *("-kernel", str(kernel.image), "-initrd", str(kernel.initramfs)),
        *("-append", _kernel_command_line(init)),
        *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
        *("-device", "virtio-rng-pci"),
        *("-device", "virtio-serial-pci", "-chardev", f"socket,id=line,fd={line_fd}"),
        *("-device", f"virtserialport,chardev=line,name={PORT}"),
        *_folder("root", Path("/"), HOST_TAG, writable=False),
        *_folder("exchange", exchange, EXCHANGE_TAG, writable=True),
    ]


def _folder(name: str, path: Path, tag: str, *, writable: bool) -> list[str]:
    access = "" if writable else ",readonly=on"
    backend = f"local,id={name},path={path},security_model=none,multidevs=remap{access}"
    return ["-fsdev", backend, "-device", f"virtio-9p-pci,fsdev={name},mount_tag={tag}"]


def _kernel_command_line(init: Sequence[str]) -> str:
    if not init or len(init) > _INIT_WORDS_MAX or not init[0].startswith("/"):
        raise SpecError("init", list(init), f"an absolute path and at most {_INIT_WORDS_MAX - 1} arguments")
    for word in init:
        if not word or any(c.isspace() or c in "\"'" for c in word):
            raise SpecError(
                "init", word, "a word of a kernel command line: no white space, no quotes, not empty"
            )
    line = " ".join([*_KERNEL_WORDS, "--", *init])
    if len(line.encode()) > _COMMAND_LINE_MAX:
        raise SpecError(
            "init", list(init), f"too long for a kernel command line of {_COMMAND_LINE_MAX} bytes"
        )
    return line


class KvmVerdict(NamedTuple):
    """Whether KVM is worth using here.

    Attributes:
        works: A guest under it answered in time.
        reason: Why not, or how fast it was.
        seconds: How long the probe took.
    """

    works: bool
    reason: str
    seconds: float


def boot_sector() -> bytes:
    """Return a 512-byte boot sector that writes "K" to the first serial port and ends QEMU with `_EXIT_STATUS`."""
    code = bytes(
        (
            *(0xBA, 0xF8, 0x03),  # mov dx, 0x3f8
            *(0xB0, 0x4B),  # mov al, 'K'
            0xEE,  # out dx, al
            *(0xBA, _ISA_DEBUG_EXIT, 0x00),  # mov dx, 0xf4
            *(0xB0, _EXIT_STATUS >> 1),  # mov al, status / 2
            0xEE,  # out dx, al
            0xF4,  # hlt
            *(0xEB, 0xFD),  # jmp to hlt
        )
    )
    return code.ljust(510, b"\0") + b"\x55\xaa"


def kvm_works() -> bool:
    """Whether a guest under KVM answers within 2 s; asked once per boot of this machine, then remembered."""
    return kvm().works


def accelerator() -> str:
    """Return "kvm" if it works here, else "tcg"."""
    return "kvm" if kvm_works() else "tcg"


def kvm(device: Path = Path("/dev/kvm")) -> KvmVerdict:
    """Return whether KVM is worth using, and why not; see `kvm_works`."""
    try:
        if not stat.S_ISCHR(device.stat().st_mode):
            return KvmVerdict(works=False, reason=f"{device} is no device", seconds=0.0)
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
        program = binary()
    except OSError as error:
        hint = ": add this user to the group kvm" if error.errno in {errno.EACCES, errno.EPERM} else ""
        return KvmVerdict(works=False, reason=f"{device}: {error.strerror}{hint}", seconds=0.0)
    except Unsupported as error:
        return KvmVerdict(works=False, reason=str(error), seconds=0.0)
    key = [_boot_id(), str(program), os.getuid(), program.stat().st_mtime_ns]
    path = cache.make_folder(cache.cache_dir()) / "kvm.json"
    remembered = _remembered(path, key)
    if remembered is None:
        remembered = probe(program)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps({"key": key, "verdict": remembered}), encoding="utf-8")
        partial.replace(path)
    return remembered


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _remembered(path: Path, key: Sequence[object]) -> KvmVerdict | None:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        works, reason, seconds = fields["verdict"]
        if fields["key"] != list(key):
            return None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return KvmVerdict(bool(works), str(reason), float(seconds))


def probe(program: Path, accel: str = "kvm", seconds: float = _KVM_SECONDS) -> KvmVerdict:
    """Boot the boot sector and return how that went; a KVM that answers late is as bad as none.

    Args:
        program: QEMU, as from `binary`.
        accel: "kvm" or "tcg".
        seconds: How long it may take; then QEMU is killed.
    """
    with tempfile.TemporaryDirectory(prefix="pytest-dm-") as folder:
        disk = Path(folder, "probe.img")
        disk.write_bytes(boot_sector())
        argv = [
            str(program),
            *(
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-no-reboot",
                "-nic",
                "none",
                "-vga",
                "none",
            ),
            *("-machine", f"pc,accel={accel}", "-cpu", _CPU[accel], "-m", "16M"),
            *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
            *("-drive", f"file={disk},format=raw,if=ide,readonly=off"),
            *("-device", f"isa-debug-exit,iobase={_ISA_DEBUG_EXIT:#x},iosize=4"),
        ]
        began = time.monotonic()
        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired:
            reason = f"a tiny guest did not answer within {seconds:g} s"
            return KvmVerdict(works=False, reason=reason, seconds=time.monotonic() - began)
        gone = time.monotonic() - began
        if done.returncode == _EXIT_STATUS and b"K" in done.stdout:
            return KvmVerdict(works=True, reason=f"a tiny guest answered after {gone:.2f} s", seconds=gone)
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        how = said[-1] if said else f"QEMU ended with status {done.returncode}"
        return KvmVerdict(works=False, reason=f"a tiny guest did not run: {how}", seconds=gone)
