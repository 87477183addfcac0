"""Runs a virtual machine's process so that it can change no host file outside given folders, and leaves nothing.

A self-contained program of the standard library, started as ``python -I -S launch.py SPEC`` in a session of its
own. It splits in two: the machine (guarded, then replaced by the machine's program) and its keeper, which waits
until the machine ends or the pipe ``life`` is closed by whoever started it (also by that process's death), then
kills whatever descends from it, waits for it, and removes the folders it was told to.

Guards, best first: ``mounts`` - a private mount namespace (with a user namespace for an ordinary user) in which
all but the writable folders is read-only; ``landlock`` - a Landlock domain plus a seccomp filter for what Landlock
does not cover (modes, owners, times, extended attributes). Both end with capabilities dropped and no way back.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import select
import signal
import struct
import sys
import time
from typing import Any

__all__ = ["GUARDS", "main", "remove", "remove_orphaned"]

GUARDS = ("mounts", "landlock", "none")

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_SET_CHILD_SUBREAPER = 1, 24, 38, 36
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_AT_FDCWD, _AT_RECURSIVE, _MOUNT_ATTR_RDONLY = -100, 0x8000, 1
_SYS_MOUNT_SETATTR, _SYS_LANDLOCK_CREATE, _SYS_LANDLOCK_ADD, _SYS_LANDLOCK_RESTRICT = 442, 444, 445, 446
_CAP_SYS_ADMIN = 21
_PF_EXITING = 4
_KEPT_CAPABILITIES = frozenset((0, 1, 2, 3, 4))
"""chown, dac_override, dac_read_search, fowner, fsetid: what reading the host and writing the exchange needs."""

_LANDLOCK_WRITE_FILE, _LANDLOCK_MAKE_AND_REMOVE, _LANDLOCK_REFER, _LANDLOCK_TRUNCATE = (
    0x2,
    0x1FF0,
    0x2000,
    0x4000,
)
_SHARED_MEMORY = "/dev/shm/pytest-dm-{}"  # noqa: S108 - named by the keeper's pid, removed by the keeper
_WRITABLE_NODES = ("/dev/null", "/dev/zero", "/dev/ptmx", "/dev/pts", "/dev/tty", "/dev/kvm")

_ATTRIBUTE_CALLS_X86_64 = (
    *(90, 91, 92, 93, 94, 132, 188, 189, 190, 197, 198, 199),
    *(235, 260, 261, 268, 280, 452, 463, 466),
)
"""chmod fchmod chown fchown lchown utime, *setxattr, *removexattr, utimes fchownat futimesat fchmodat utimensat
fchmodat2 setxattrat removexattrat (arch/x86/entry/syscalls/syscall_64.tbl)."""


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def _syscall(number: int, what: str, *args: object) -> int:
    return _check(_LIBC.syscall(ctypes.c_long(number), *args), what)


def _mount(source: str, target: str, kind: str, flags: int, data: str) -> None:
    arguments = (source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), data.encode())
    _check(_LIBC.mount(*arguments), f"mount {kind or 'bind'} on {target}")


def _set_readonly(path: str, *, readonly: bool, recursive: bool) -> None:
    change = (_MOUNT_ATTR_RDONLY, 0) if readonly else (0, _MOUNT_ATTR_RDONLY)
    attributes = ctypes.create_string_buffer(struct.pack("=QQQQ", *change, 0, 0), 32)
    flags = ctypes.c_uint(_AT_RECURSIVE if recursive else 0)
    at = ctypes.c_int(_AT_FDCWD)
    size = ctypes.c_size_t(32)
    _syscall(_SYS_MOUNT_SETATTR, f"mount_setattr {path}", at, os.fsencode(path), flags, attributes, size)


def _effective_capabilities() -> int:
    with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123 - start-up time of every guest
        return next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))


def _enter_namespaces() -> None:
    if _effective_capabilities() >> _CAP_SYS_ADMIN & 1:
        _check(_LIBC.unshare(_CLONE_NEWNS), "unshare mounts")
        return
    uid, gid = os.geteuid(), os.getegid()
    _check(_LIBC.unshare(_CLONE_NEWUSER | _CLONE_NEWNS), "unshare user and mounts")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        fd = os.open(f"/proc/self/{name}", os.O_WRONLY)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)


def _guard_by_mounts(writable: list[str], scratch: str, scratch_mb: int) -> None:
    _enter_namespaces()
    _mount("none", "/", "", _MS_REC | _MS_PRIVATE, "")
    for folder in writable:
        _check(
            _LIBC.mount(os.fsencode(folder), os.fsencode(folder), b"", ctypes.c_ulong(_MS_BIND), b""),
            f"bind {folder}",
        )
    _set_readonly("/", readonly=True, recursive=True)
    for folder in writable:
        _set_readonly(folder, readonly=False, recursive=False)
    if scratch:
        _mount("tmpfs", scratch, "tmpfs", 0, f"size={scratch_mb}m,mode=700")


def _guard_by_landlock(writable: list[str]) -> None:
    version = _syscall(_SYS_LANDLOCK_CREATE, "landlock", None, ctypes.c_size_t(0), ctypes.c_uint(1))
    handled = _LANDLOCK_WRITE_FILE | _LANDLOCK_MAKE_AND_REMOVE
    handled |= _LANDLOCK_REFER if version >= 2 else 0
    handled |= _LANDLOCK_TRUNCATE if version >= 3 else 0
    wanted = ctypes.create_string_buffer(struct.pack("=Q", handled), 8)
    domain = _syscall(_SYS_LANDLOCK_CREATE, "landlock", wanted, ctypes.c_size_t(8), ctypes.c_uint(0))
    file_rights = handled & (_LANDLOCK_WRITE_FILE | _LANDLOCK_TRUNCATE)
    rules = [(folder, handled) for folder in writable]
    rules += [(node, file_rights) for node in _WRITABLE_NODES if os.path.exists(node)]  # noqa: PTH110 - start-up
    for path, rights in rules:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, fd), 12)
        number = ctypes.c_int(domain)
        _syscall(_SYS_LANDLOCK_ADD, f"landlock {path}", number, ctypes.c_int(1), rule, ctypes.c_uint(0))
        os.close(fd)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _refuse_attribute_changes()
    _syscall(_SYS_LANDLOCK_RESTRICT, "landlock", ctypes.c_int(domain), ctypes.c_uint(0))
    os.close(domain)


def _refuse_attribute_changes() -> None:
    if os.uname().machine != "x86_64":
        raise OSError(errno.ENOSYS, "the seccomp filter is written for x86_64 only")
    calls = _ATTRIBUTE_CALLS_X86_64
    load_number, load_arch = (0x20, 0, 0, 0), (0x20, 0, 0, 4)
    allow, refuse = (0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x50000 | errno.EPERM)
    program = [load_arch, (0x15, 1, 0, 0xC000003E), refuse, load_number]
    program += [(0x15, len(calls) - index, 0, number) for index, number in enumerate(calls)]
    program += [allow, refuse]
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(buffer)))
    _check(_LIBC.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0), "seccomp")


def _prctl(option: int, value: int) -> None:
    _check(_LIBC.prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl {option}")


def _drop_capabilities() -> None:
    """Leave only file capabilities, so that a guest that breaks out cannot undo the guard."""
    for capability in range(64):
        if capability not in _KEPT_CAPABILITIES and _LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            if ctypes.get_errno() in {errno.EINVAL, errno.EPERM}:
                break
            _check(-1, "drop capability")
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _put_in_force(name: str, spec: dict[str, Any]) -> None:
    writable = [str(path) for path in spec["writable"]]
    scratch = str(spec["scratch"])
    if name == "mounts":
        _guard_by_mounts(writable, scratch, int(str(spec["scratch_mb"])))
    elif name == "landlock":
        _guard_by_landlock([*writable, *([scratch] if scratch else []), *_memory_folder(spec)])
    if name != "none":
        _drop_capabilities()


def _memory_folder(spec: dict[str, Any]) -> list[str]:
    """Make a folder in /dev/shm for the machine's memory, where no private tmpfs can be had; none if it is too small."""
    folder = _SHARED_MEMORY.format(spec["keeper"])
    try:
        free = os.statvfs("/dev/shm")  # noqa: S108 - its space, not a file
        if free.f_bavail * free.f_frsize < spec["scratch_mb"] << 20:
            return []
        os.mkdir(folder, 0o700)  # noqa: PTH102
    except FileExistsError:
        pass
    except OSError:
        return []
    spec["env"]["TMPDIR"] = folder
    return [folder]


def _trial(name: str, spec: dict[str, Any]) -> str:
    """Try a guard in a child, since half of one cannot be taken back; returns why not, "" if it works."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _put_in_force(name, spec)
        except OSError as error:
            os.write(send, str(error).encode()[:500])
        os._exit(0)
    os.close(send)
    reason = os.read(receive, 500).decode()
    os.close(receive)
    os.waitpid(child, 0)
    return reason


def _guard(spec: dict[str, Any]) -> str:
    """Put the first guard that works in force; returns its name, and why better ones were passed over."""
    refusals: list[str] = []
    for name in spec["guards"]:
        reason = _trial(name, spec)
        if not reason:
            _put_in_force(name, spec)
            return str(name) + (f" ({'; '.join(refusals)})" if refusals else "")
        refusals.append(f"{name}: {reason}")
    raise OSError(errno.EPERM, f"no guard for the host's files works here: {'; '.join(refusals)}")


def _become_machine(spec: dict[str, Any], keeper: int) -> None:
    os.setsid()
    print(f"dmvm-machine: {os.getpid()}", flush=True)
    print(f"dmvm-guard: {_guard(spec)}", flush=True)
    argv = [str(word) for word in spec["argv"]]
    environment = {str(k): str(v) for k, v in spec["env"].items()}
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != keeper:
        os._exit(1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    os.execve(argv[0], argv, environment)  # noqa: S606 - this is the machine


def _children() -> list[int]:
    found: list[int] = []
    me = os.getpid()
    for entry in os.listdir("/proc"):  # noqa: PTH208 - no pathlib in this process
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat", "rb") as stat:  # noqa: PTH123
                if int(stat.read().rpartition(b")")[2].split()[1]) == me:
                    found.append(int(entry))
    return found


def _end(machine: int, status: int | None) -> int:
    """Kill all that descends from the machine and wait for it; returns the machine's wait status."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(machine, signal.SIGKILL)
        for child in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        try:
            while True:
                pid, value = os.waitpid(-1, os.WNOHANG)
                if pid == machine:
                    status = value
                if pid == 0:
                    break
        except ChildProcessError:
            break
        time.sleep(0.005)
    return signal.SIGKILL if status is None else status


def remove(path: str) -> None:
    """Remove a folder and all in it, following no link; one that is not there is fine."""
    for folder, folders, files in os.walk(path, topdown=False):
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(folder, name))  # noqa: PTH108, PTH118
        for name in folders:
            full = os.path.join(folder, name)  # noqa: PTH118
            if os.path.islink(full):  # noqa: PTH114
                os.unlink(full)  # noqa: PTH108
            else:
                _remove_folder(full)
    _remove_folder(path)


def _remove_folder(path: str) -> None:
    try:
        os.rmdir(path)  # noqa: PTH106
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:  # another keeper's guest is just ending in it; it removes the rest
            raise


def remove_orphaned(path: str, owner: int) -> None:
    """Remove a folder if the process that owns it is gone or going; several may do so at once."""
    if not path or not os.path.isdir(path):  # noqa: PTH112
        return
    try:
        with open(f"/proc/{owner}/stat", "rb") as file:  # noqa: PTH123
            state, *_, flags = file.read().rpartition(b")")[2].split()[:7]
    except (FileNotFoundError, ProcessLookupError):
        state, flags = b"X", b"0"
    if state in b"XZ" or int(flags) & _PF_EXITING:
        remove(path)


def _keep(machine: int, life: int, wakeup: int) -> int:
    """Wait until the machine ends or `life` is closed; returns the machine's wait status, with nothing left of it."""
    poller = select.poll()
    poller.register(life, select.POLLIN)
    poller.register(wakeup, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poller.poll()}
        if life in ready:
            return _end(machine, None)
        os.read(wakeup, 512)
        with contextlib.suppress(ChildProcessError):
            while (reaped := os.waitpid(-1, os.WNOHANG))[0]:
                if reaped[0] == machine:
                    return _end(machine, reaped[1])


def _let_go_of_the_machines_ends(life: int) -> None:
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208
        if int(entry) > 2 and int(entry) != life:
            with contextlib.suppress(OSError):
                os.close(int(entry))


def main(argv: list[str]) -> int:
    """Run the machine of the JSON object `argv[1]`; returns its exit status (128 + signal if one ended it).

    Keys: argv, env; writable (folders), scratch (a folder, "" for none: a private tmpfs of scratch_mb MiB under the
    ``mounts`` guard), guards (of `GUARDS`: the first that works is taken), life (descriptor), remove (folders to delete at the end),
    orphan and orphan_owner (a folder to delete at the end if that process is gone by then).
    """
    spec: dict[str, Any] = json.loads(argv[1])
    life = int(str(spec["life"]))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    keeper = spec["keeper"] = os.getpid()
    machine = os.fork()
    if machine == 0:
        os.close(life)
        try:
            _become_machine(spec, keeper)
        except OSError as error:
            print(f"dmvm-guard: failed: {error}", flush=True)
        os._exit(127)
    _let_go_of_the_machines_ends(life)
    receive, send = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(send)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    os.write(send, b"\0")
    status = _keep(machine, life, receive)
    for path in (*spec["remove"], _SHARED_MEMORY.format(keeper)):
        remove(str(path))
    remove_orphaned(str(spec["orphan"]), int(str(spec["orphan_owner"])))
    return os.waitstatus_to_exitcode(status) % 256 if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv))
