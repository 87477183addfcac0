"""QEMU's argument list, word by word, and what decides about KVM."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest

from dmcore.errors import SpecError, Unsupported
from dmvm import qemu
from dmvm.kernels import GuestKernel

KERNEL = GuestKernel(
    name="debian-6.1",
    machine="qemu",
    release="6.1.0-1-amd64",
    image=Path("/c/vmlinux"),
    modules=Path("/c/modules"),
    early=(),
    busybox=Path("/c/busybox"),
    initramfs=Path("/c/initramfs.cpio"),
)


def argv(**changes: object) -> list[str]:
    arguments: dict[str, object] = {
        "program": Path("/usr/bin/qemu-system-x86_64"),
        "memory_mb": 1024,
        "accel": "tcg",
        "exchange": Path("/x/y"),
        "line_fd": 7,
        "init": ["/x/y/.dm/python", "-I", "-S", "/x/y/.dm/init.py", "/x/y", "qemu"],
        **changes,
    }
    return qemu.command(KERNEL, **arguments)  # type: ignore[arg-type]


def test_every_word() -> None:
    assert argv() == [
        "/usr/bin/qemu-system-x86_64",
        *("-nodefaults", "-no-user-config", "-no-reboot"),
        *("-display", "none", "-vga", "none", "-nic", "none"),
        *("-name", "pytest-dm"),
        *("-machine", "q35,accel=tcg"),
        *("-cpu", "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+rdrand"),
        *("-smp", "1", "-m", "1024M"),
        *("-kernel", "/c/vmlinux", "-initrd", "/c/initramfs.cpio"),
        "-append",
        (
            "console=ttyS0 rdinit=/init panic=-1 oops=panic hung_task_panic=0 loglevel=5 mitigations=off audit=0 "
            "selinux=0 apparmor=0 no_timer_check tsc=reliable nowatchdog random.trust_cpu=on -- "
            "/x/y/.dm/python -I -S /x/y/.dm/init.py /x/y qemu"
        ),
        *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
        *("-device", "virtio-rng-pci"),
        *("-device", "virtio-serial-pci", "-chardev", "socket,id=line,fd=7"),
        *("-device", "virtserialport,chardev=line,name=dmvm.line"),
        *("-fsdev", "local,id=root,path=/,security_model=none,multidevs=remap,readonly=on"),
        *("-device", "virtio-9p-pci,fsdev=root,mount_tag=hostroot"),
        *("-fsdev", "local,id=exchange,path=/x/y,security_model=none,multidevs=remap"),
        *("-device", "virtio-9p-pci,fsdev=exchange,mount_tag=exchange"),
    ]


def test_kvm_uses_the_hosts_processor() -> None:
    words = argv(accel="kvm")
    assert words[words.index("-cpu") + 1] == "host"
    assert words[words.index("-machine") + 1] == "q35,accel=kvm"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accel": "xen"}, "accel='xen'"),
        ({"exchange": Path("/a,b")}, "without a comma"),
        ({"init": []}, "an absolute path"),
        ({"init": ["python"]}, "an absolute path"),
        ({"init": ["/python", "two words"]}, "no white space"),
        ({"init": ["/python", 'a"b']}, "no quotes"),
        ({"init": ["/python", ""]}, "not empty"),
        ({"init": ["/python", *["x"] * 30]}, "at most 29 arguments"),
        ({"init": ["/python", "x" * 2000]}, "too long"),
    ],
)
def test_bad_arguments(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        argv(**changes)


def test_a_uml_kernel_is_refused() -> None:
    with pytest.raises(SpecError, match="a kernel for QEMU"):
        qemu.command(
            replace(KERNEL, initramfs=None),
            program=Path("/q"),
            memory_mb=512,
            accel="tcg",
            exchange=Path("/x"),
            line_fd=3,
            init=["/p"],
        )


def test_the_boot_sector_is_one() -> None:
    sector = qemu.boot_sector()
    assert len(sector) == 512
    assert sector[-2:] == b"\x55\xaa"


def test_no_device_no_kvm(tmp_path: Path) -> None:
    assert qemu.kvm(tmp_path / "kvm") == (False, f"{tmp_path / 'kvm'}: No such file or directory", 0.0)
    (tmp_path / "file").touch()
    assert not qemu.kvm(tmp_path / "file").works


def test_no_qemu_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unsupported, match="apt-get install --no-install-recommends qemu-system-x86"):
        qemu.binary()
    assert not qemu.kvm(Path("/dev/null")).works
    own = tmp_path / "my-qemu"
    own.touch(mode=0o755)
    own.chmod(own.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PYTEST_DM_QEMU", str(own))
    assert qemu.binary() == own
    monkeypatch.setenv("PYTEST_DM_QEMU", str(tmp_path / "absent"))
    with pytest.raises(SpecError, match="PYTEST_DM_QEMU"):
        qemu.binary()


def _program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("script", "works", "reason"),
    [
        ("printf K; exit 33", True, "a tiny guest answered"),
        ("exit 33", False, "QEMU ended with status 33"),
        ("printf K; exit 0", False, "QEMU ended with status 0"),
        ("echo failed to initialize kvm >&2; exit 1", False, "failed to initialize kvm"),
        ("exec sleep 20", False, "did not answer within 0.5 s"),
    ],
)
def test_only_an_answer_in_time_counts(tmp_path: Path, script: str, works: bool, reason: str) -> None:
    verdict = qemu.probe(_program(tmp_path / "qemu", script), seconds=0.5)
    assert verdict.works is works
    assert reason in verdict.reason
    assert verdict.seconds < 5


def test_the_verdict_is_remembered_for_this_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = tmp_path / "asked"
    program = _program(tmp_path / "qemu", f"echo >> {asked}; printf K; exit 33")
    monkeypatch.setenv("PYTEST_DM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTEST_DM_QEMU", str(program))
    device = Path("/dev/null")
    assert qemu.kvm(device).works
    assert qemu.kvm(device).works
    assert asked.read_text().count("\n") == 1
    (tmp_path / "cache" / "kvm.json").write_text("{")
    assert qemu.kvm(device).works
    assert asked.read_text().count("\n") == 2
