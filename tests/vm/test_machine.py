"""Guests and the host's files, boots that fail, and commands on a terminal."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pexpect
import pytest

from dmcore.errors import SpecError, VmBootFailed
from dmvm import machine, store
from dmvm.relay import Job
from dmvm.session import Session, guest_environment

KERNEL = "uml-6.1"
PYTHON = os.path.realpath(sys.executable)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="starts guests as another user, which takes root")

ATTACK = r"""
import ctypes, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
victims, exchange = sys.argv[1:-1], sys.argv[-1]
done, refused = [], []

def attempt(what, action, *args):
    try:
        action(*args)
        done.append(what)
    except OSError as error:
        refused.append(f"{what}: {error}")

def mount(source, target, kind, flags, data):
    if libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()) < 0:
        raise OSError(ctypes.get_errno(), "mount")

def write(path, mode):
    with open(path, mode) as file:
        file.write("changed by the guest")

os.mkdir("/mnt/raw")
attempt("remount / rw", mount, "none", "/", "", 32, "")
attempt("remount modules rw", mount, "none", f"/lib/modules/{os.uname().release}", "", 32, "")
attempt("remount modules mount rw", mount, "none", f"/lib/modules/{os.uname().release}", "", 32 | 4096, "")
attempt("mount hostfs", mount, "none", "/mnt/raw", "hostfs", 0, "/")
roots = ["/mnt/raw", "", "/proc/1/root", exchange + "/../../../../../../../.."]
for root in roots:
    for folder in victims:
        f = root + folder + "/file"
        attempt(f"write {f}", write, f, "w")
        attempt(f"append {f}", write, f, "a")
        attempt(f"chmod {f}", os.chmod, f, 0o777)
        attempt(f"chown {f}", os.chown, f, 12345, 12345)
        attempt(f"utime {f}", os.utime, f, (1, 1))
        attempt(f"xattr {f}", os.setxattr, f, "user.x", b"1")
        attempt(f"truncate {f}", os.truncate, f, 0)
        attempt(f"link {f}", os.link, f, root + folder + "/link")
        attempt(f"symlink {f}", os.symlink, f, root + folder + "/symlink")
        attempt(f"mknod {f}", os.mknod, root + folder + "/node", 0o20600, os.makedev(1, 3))
        attempt(f"fifo {f}", os.mkfifo, root + folder + "/fifo")
        attempt(f"create {f}", write, root + folder + "/new", "w")
        attempt(f"mkdir {f}", os.mkdir, root + folder + "/newdir")
        attempt(f"rename {f}", os.rename, f, root + folder + "/renamed")
        attempt(f"steal {f}", os.rename, f, exchange + "/stolen")
        attempt(f"unlink {f}", os.unlink, f)
        attempt(f"rmdir {f}", os.rmdir, root + folder + "/sub")
        attempt(f"chmod dir {f}", os.chmod, root + folder, 0o777)
attempt("escape link", os.symlink, victims[0] + "/file", exchange + "/way-out")
attempt("write by link", write, exchange + "/way-out", "a")
attempt("host sysctl", write, "/mnt/raw/proc/sys/kernel/domainname", "w")
attempt("etc", write, "/mnt/raw/etc/dmvm-leak", "w")
print(json.dumps({"done": done, "refused": refused}))
"""

DRIVER = r"""
import json, os, sys
from dataclasses import fields
from pathlib import Path
from dmvm import machine
from dmvm.kernels import GuestKernel
from dmvm.relay import Job
from dmvm.session import Session, guest_environment
spec = json.loads(sys.argv[1])
kernel = GuestKernel(**{**spec["kernel"], **{k: Path(spec["kernel"][k]) for k in ("image", "modules", "busybox")},
                        "early": tuple(map(Path, spec["kernel"]["early"]))})
exchange = Path(spec["exchange"])
guest = machine.start(kernel, exchange=exchange, guard=spec["guard"], visible=spec["visible"])
try:
    print(guest.guard, file=sys.stderr)
    job = Job(tuple(spec["argv"]), guest_environment(kernel.name, exchange), "/")
    outcome = Session(guest, job, stdin=-1, stdout=1, stderr=2).run()
finally:
    guest.kill()
print(outcome, file=sys.stderr)
sys.exit(outcome.status)
"""


def state(folder: Path) -> dict[str, object]:
    """All that a guest might have changed below a folder."""
    seen: dict[str, object] = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        info = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        attributes = {
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in os.listxattr(path, follow_symlinks=False)
        }
        seen[str(path)] = (
            info.st_mode,
            info.st_uid,
            info.st_gid,
            info.st_mtime_ns,
            info.st_nlink,
            content,
            attributes,
        )
    return seen


def make_victim(folder: Path) -> Path:
    (folder / "sub").mkdir(parents=True)
    (folder / "file").write_text("the host's")
    return folder


@pytest.fixture(scope="module")
def kernel():
    return store.ensure(KERNEL)


@pytest.fixture(scope="module")
def public_kernel(kernel, tmp_path_factory):
    """The kernel in a folder that every user can read."""
    folder = Path("/var/tmp") / f"pytest-dm-test-{os.getpid()}"
    folder.mkdir(mode=0o755)
    (folder / "modules").mkdir()
    early = [shutil.copy(module, folder) for module in kernel.early]
    image, busybox = (shutil.copy(path, folder) for path in (kernel.image, kernel.busybox))
    for path in folder.iterdir():
        path.chmod(0o755)
    yield replace(
        kernel,
        image=Path(image),
        busybox=Path(busybox),
        modules=folder / "modules",
        early=tuple(map(Path, early)),
    )
    shutil.rmtree(folder)


def _reach(user: int, guard: str) -> None:
    """Skip where this checkout is hidden from that user, or this machine cannot have that guard."""
    needed = (sys.executable, machine.__file__, os.path.realpath(sys.executable))
    credentials = {"user": user, "group": user, "extra_groups": []} if user else {}
    script = 'for f; do test -r "$f" || exit 1; done'
    done = subprocess.run(
        ["/bin/sh", "-c", script, "sh", *needed], check=False, timeout=30, cwd="/", **credentials
    )
    if done.returncode:
        pytest.skip(f"user {user} cannot read {sys.executable} or {machine.__file__}")
    best = machine.probe_guard()
    if guard == "mounts" and not best.startswith("mounts"):
        pytest.skip(f"no private mounts here: {best}")


def attack(kernel, guard: str, user: int, victims: list[Path]) -> tuple[dict[str, list[str]], str]:
    """Let a guest of that user attack folders; returns what it says, and the guard."""
    base = Path("/var/tmp") / f"pytest-dm-attack-{os.getpid()}"
    base.mkdir()
    try:
        exchange = base / "exchange"
        exchange.mkdir()
        (base / "attack.py").write_text(ATTACK)
        if user:
            for path in (base, exchange):
                os.chown(path, user, user)
        fields = {
            name: getattr(kernel, name)
            for name in ("name", "machine", "release", "image", "modules", "busybox")
        }
        spec = {
            "kernel": {
                **{k: str(v) for k, v in fields.items()},
                "early": [str(m) for m in kernel.early],
                "initramfs": None,
            },
            "exchange": str(exchange),
            "guard": guard,
            "visible": [str(v) for v in victims],
            "argv": [PYTHON, str(base / "attack.py"), *map(str, victims), str(exchange)],
        }
        credentials = {"user": user, "group": user, "extra_groups": []} if user else {}
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, json.dumps(spec)],
            check=False, capture_output=True, text=True, timeout=120, cwd="/", **credentials,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), done.stderr.splitlines()[0]
    finally:
        shutil.rmtree(base)


@needs_root
@pytest.mark.parametrize("guard", ["auto", "mounts", "landlock"])
@pytest.mark.parametrize("user", [0, 12321], ids=["root", "user"])
def test_a_guest_cannot_change_the_host(public_kernel, guard: str, user: int) -> None:
    _reach(user, guard)
    victims = [
        make_victim(Path(folder, f"pytest-dm-victim-{os.getpid()}")) for folder in ("/var/tmp", "/tmp")
    ]
    try:
        for victim in victims:
            for path in (victim, victim / "file", victim / "sub"):
                os.chown(path, user, user)
        before = [state(victim) for victim in victims]
        domain = Path("/proc/sys/kernel/domainname").read_text()
        said, guarded = attack(public_kernel, guard, user, victims)
        assert guarded.split()[0] in ({"mounts", "landlock"} if guard == "auto" else {guard})
        assert "mount hostfs" in said["done"], "the attack is no attack any more"
        assert [state(victim) for victim in victims] == before
        assert Path("/proc/sys/kernel/domainname").read_text() == domain
        assert not Path("/etc/dmvm-leak").exists()
        assert not [what for what in said["done"] if "/mnt/raw" in what]
        assert [what for what in said["done"] if what.startswith("write /")], (
            "not even its own overlay was written"
        )
    finally:
        for victim in victims:
            shutil.rmtree(victim)


@needs_root
def test_the_attack_works_on_an_unguarded_host(public_kernel) -> None:
    """As an ordinary user, so that it reaches nothing but the victim."""
    _reach(12321, "none")
    outside = make_victim(Path("/var/tmp") / f"pytest-dm-victim-{os.getpid()}")
    try:
        for path in (outside, outside / "file", outside / "sub"):
            os.chown(path, 12321, 12321)
        before = state(outside)
        said, guarded = attack(public_kernel, "none", 12321, [outside])
        assert guarded == "none"
        assert state(outside) != before
        assert f"chmod /mnt/raw{outside}/file" in said["done"]
    finally:
        shutil.rmtree(outside)


def _script(folder: Path, text: str) -> Path:
    path = folder / "machine"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("script", "seconds", "reason"),
    [
        ("exit 3", 10, "ended with status 3"),
        ("echo Kernel panic - not syncing: no root; sleep 60", 10, "Kernel panic - not syncing: no root"),
        ("sleep 60", 3, "not up after 3 s; the guest kernel wrote nothing at all"),
        ("echo dmvm-init: started; sleep 60", 3, "got as far as: started"),
        ("kill -SEGV $$", 10, "was killed by signal 11"),
    ],
)
def test_a_boot_that_fails_says_why(kernel, tmp_path: Path, script: str, seconds: float, reason: str) -> None:
    exchange = tmp_path / "exchange"
    exchange.mkdir()
    broken = replace(kernel, image=_script(tmp_path, f"echo boot >> {exchange}/boots; {script}"))
    told: list[str] = []
    with pytest.raises(VmBootFailed, match="did not boot, twice") as caught:
        machine.start(broken, exchange=exchange, seconds=seconds, progress=told.append)
    assert reason in str(caught.value)
    assert "PYTEST_DM_SLOW" in caught.value.message
    assert (exchange / "boots").read_text() == "boot\nboot\n"
    assert len(told) == 3
    assert {path.name for path in exchange.iterdir()} == {"boots", "console.log"}


def test_bad_arguments_start_nothing(kernel, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="memory_mb=16"):
        machine.start(kernel, exchange=tmp_path, memory_mb=16)
    with pytest.raises(SpecError, match="exchange"):
        machine.start(kernel, exchange=tmp_path / "none")
    (tmp_path / "a b").mkdir()
    with pytest.raises(SpecError, match="without white space"):
        machine.start(kernel, exchange=tmp_path / "a b")
    with pytest.raises(SpecError, match="guard='lock'"):
        machine.start(kernel, exchange=tmp_path, guard="lock")
    assert [path.name for path in tmp_path.iterdir()] == ["a b"]


@pytest.mark.parametrize("text", ["0", "-1", "fast", "inf", "nan"])
def test_a_bad_slowness_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("PYTEST_DM_SLOW", text)
    with pytest.raises(SpecError, match="PYTEST_DM_SLOW"):
        machine.boot_seconds("uml")


def test_the_guard_is_known_without_a_guest() -> None:
    assert machine.probe_guard().split()[0] in {"mounts", "landlock"}


@pytest.mark.parametrize(
    ("asked", "kernel", "answer"),
    [
        ("uml", None, ("uml", "uml-6.1")),
        ("qemu", None, ("qemu", "debian-6.1")),
        ("auto", "uml-7.2", ("uml", "uml-7.2")),
        ("qemu", "debian-6.12", ("qemu", "debian-6.12")),
    ],
)
def test_the_choice_of_a_machine(asked: str, kernel: str | None, answer: tuple[str, str]) -> None:
    assert machine.choose(asked, kernel) == answer


@pytest.mark.parametrize(
    ("asked", "kernel", "message"),
    [
        ("vmware", None, "machine='vmware': one of auto, qemu, uml"),
        ("qemu", "uml-6.1", "runs on uml, not on qemu; there are: debian-6.1, debian-6.12"),
        ("uml", "debian-6.1", "runs on qemu, not on uml; there are: uml-6.1, uml-6.12, uml-7.2"),
        ("auto", "uml-2.4", "uml-2.4"),
    ],
)
def test_a_choice_that_cannot_be(asked: str, kernel: str | None, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        machine.choose(asked, kernel)


def test_kill_is_complete_and_can_be_repeated(kernel, tmp_path: Path) -> None:
    guest = machine.start(kernel, exchange=tmp_path)
    assert guest.release.startswith("6.1.")
    assert guest.ended() == ""
    began = time.monotonic()
    guest.kill()
    guest.kill()
    assert time.monotonic() - began < 3
    assert {path.name for path in tmp_path.iterdir()} == {"console.log"}


TERMINAL = """
import sys
from dmvm import store
from dmvm.session import run
outcome = run(sys.argv[1:], kernel=store.ensure("uml-6.1"), tty=True)
print("outcome", outcome.status)
"""


@pytest.fixture
def terminal(tmp_path: Path):
    children = []

    def spawn(*argv: str) -> pexpect.spawn:
        child = pexpect.spawn(
            sys.executable, ["-c", TERMINAL, *argv], timeout=40, dimensions=(31, 97), encoding="utf-8",
            env={**os.environ, "TMPDIR": str(tmp_path)}, cwd="/",
        )  # fmt: skip
        children.append(child)
        return child

    yield spawn
    for child in children:
        child.close(force=True)
    assert list(tmp_path.iterdir()) == []


def test_a_command_on_a_terminal(terminal) -> None:
    child = terminal("sh", "-c", "stty size; stty -echo; echo go; read x; echo got $x; exit 5")
    child.expect("31 97\r\n")
    child.expect("go\r\n")
    child.send("\u00e4bc\r")
    child.expect("got \u00e4bc\r\n")
    child.expect("outcome 5\r\n")
    child.expect(pexpect.EOF)


def test_control_c_reaches_the_guest_and_the_terminal_is_as_before(terminal) -> None:
    child = terminal("sh", "-c", "trap 'echo caught; exit 9' INT; echo go; while :; do sleep 0.1; done")
    child.expect("go\r\n")
    child.sendintr()
    child.expect("caught\r\n")
    child.expect("outcome 9\r\n")  # \r\n: output processing is on again


def test_the_window_size_follows(terminal) -> None:
    code = "import os, signal, time; f = lambda *_: print(os.get_terminal_size(0), flush=True)"
    code += "; signal.signal(signal.SIGWINCH, f); print('go', flush=True)\nfor _ in range(50): time.sleep(.2)"
    child = terminal(PYTHON, "-c", code)
    child.expect("go\r\n")
    child.setwinsize(40, 120)
    child.expect("columns=120, lines=40")
    child.sendintr()
    child.expect("outcome")


def test_a_job_is_refused_a_folder_that_is_not_there(kernel, tmp_path: Path) -> None:
    guest = machine.start(kernel, exchange=tmp_path)
    try:
        job = Job(("true",), guest_environment(KERNEL, tmp_path), "/no/such/folder")
        outcome = Session(guest, job, stdin=-1, stdout=1, stderr=2).run()
        assert outcome.status == 127
        assert "/no/such/folder" in outcome.error
    finally:
        guest.kill()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
