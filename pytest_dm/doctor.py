"""`pytest-dm doctor`: what this machine can do, and for each lack the one command that fixes it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dmcore.errors import DmError
from pytest_dm import backend
from pytest_dm.backend import Choice, find_tool
from pytest_dm.options import Options
from pytest_dm.runtime import backing_roots, package_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Finding", "findings", "report"]

_TOOLS = ("mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "e2fsck", "dmsetup", "losetup")
_COLOURS = {"ok": "\x1b[32m", "no": "\x1b[31m", "--": "\x1b[33m"}
_PLAIN = "\x1b[0m"


class Finding(NamedTuple):
    """One thing looked at.

    Attributes:
        state: "ok", "no" (missing), or "--" (missing, but little depends on it).
        what: The thing.
        have: What is there.
        fix: The one command that would help, "" if none is needed or known.
    """

    state: str
    what: str
    have: str
    fix: str = ""


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _machine() -> Iterator[Finding]:
    packages = ", ".join(f"{name} {_version(name)}" for name in ("pytest-dm", "pytest", "pytest-xdist"))
    yield Finding("ok", "python", f"{platform.python_version()} with {packages}")
    yield Finding("ok", "kernel", f"{platform.system()} {platform.release()} on {platform.machine()}")
    roots = backing_roots()
    where = f"{roots[0]} for backing files" if roots else "no folder for backing files can be written"
    yield Finding("ok" if roots else "no", "scratch space", where)


def _this_kernel(choice: Choice) -> Iterator[Finding]:
    root = os.geteuid() == 0
    yield Finding("ok" if root else "--", "root", "yes" if root else "no; devices on this kernel need it",
                  "" if root else "pytest --dm-vm")  # fmt: skip
    loop = Path("/dev/loop-control").exists()
    yield Finding("ok" if loop else "--", "loop driver", "yes" if loop else "no /dev/loop-control",
                  "" if loop else "sudo modprobe loop")  # fmt: skip
    if choice.kind != "kernel":
        yield Finding("--", "device-mapper", choice.reason, choice.hint)
        return
    from dmcore.kernel import udev  # noqa: PLC0415 - only where there is a kernel to ask
    from dmcore.kernel.control import Control  # noqa: PLC0415 - the same

    with Control() as control:
        version = ".".join(map(str, control.version()))
        yield Finding("ok", "device-mapper", f"interface {version} at {control.path}")
        runs = udev.running()
        yield Finding("ok", "udev", "runs; nodes are its" if runs else "does not run; nodes are ours")
        yield from _targets(control.target_version)


def _targets(version_of: Callable[[str], tuple[int, int, int]]) -> Iterator[Finding]:
    from dmcore.registry import targets  # noqa: PLC0415 - loads every target

    there: list[str] = []
    missing: list[str] = []
    for name in targets():
        try:
            there.append(f"{name} {'.'.join(map(str, version_of(name)))}")
        except DmError:
            missing.append(name)
    yield Finding("ok" if there else "no", "targets", ", ".join(there) or "none")
    if missing:
        yield Finding("--", "missing targets", ", ".join(missing), "pytest --dm-vm")


def _models() -> Iterator[Finding]:
    from dmcore.model.registry import modelled  # noqa: PLC0415 - only the doctor and models look

    yield Finding("ok", "targets", ", ".join(modelled()))
    yield Finding(
        "ok",
        "can",
        "fixtures and verbs for these targets, messages, status, dm_crash of bare disks; time is virtual",
    )
    yield Finding("--", "cannot", "device nodes (path), mkfs and mounts", "pytest --dm-vm")


def _tools() -> Iterator[Finding]:
    for name in _TOOLS:
        path = find_tool(name)
        fix = "" if path else f"sudo apt-get install {package_of(name)}"
        yield Finding("ok" if path else "--", name, str(path or "not installed"), fix)


def _guests() -> Iterator[Finding]:
    from dmvm import machine, qemu, store  # noqa: PLC0415 - only the doctor looks at all of it

    try:
        program = qemu.binary()
    except DmError as error:
        yield Finding("--", "qemu", getattr(error, "have", str(error)), getattr(error, "hint", ""))
    else:
        yield Finding("ok", "qemu", str(program))
        verdict = qemu.kvm()
        yield Finding(
            "ok" if verdict.works else "--", "kvm", verdict.reason if not verdict.works else "works"
        )
    guard = machine.probe_guard()
    strong = not guard.startswith("none")
    yield Finding("ok" if strong else "--", "guard of host files", guard)
    for row in store.describe():
        have, _, hint = row.state.partition(" -- ")
        if not have.startswith("unsupported"):
            have += f"{f', Linux {row.release}' if row.release else ''} ({row.machine})"
        fix = f"pytest-dm vm build {row.name}" if row.state == "not fetched" else hint
        yield Finding("ok" if row.state == "ready" else "--", row.name, have, fix)


def _guest_verdict() -> tuple[str, str]:
    """Return "ready", "fetch" or "no" for guests here, and what `pytest --dm-vm` would do."""
    from dmvm import machine, qemu, store  # noqa: PLC0415 - only the doctor looks at all of it

    try:
        kind, name = machine.choose("auto", None)
        if kind == "qemu":
            qemu.binary()
    except DmError as error:
        return "no", f"fails: {error}"
    (state,) = (row.state for row in store.describe() if row.name == name)
    if state == "ready":
        return "ready", f"runs every test in a guest: {name} ({kind}), ready"
    if state == "not fetched":
        return "fetch", f"fetches {name} ({kind}) once, then runs every test in guests"
    return "no", f"fails: {name} is {state}"


def _verdicts(choice: Choice) -> Iterator[Finding]:
    guests, text = _guest_verdict()
    if choice.kind == "kernel":
        yield Finding("ok", "pytest", "runs device-mapper tests on this kernel")
    elif guests == "ready":
        yield Finding("ok", "pytest", "runs device-mapper tests in guests, all others here")
    else:
        fix = "pytest-dm vm build" if guests == "fetch" else ""
        yield Finding(
            "ok",
            "pytest",
            "runs device-mapper tests on models, skips what needs a device node or a mount",
            fix,
        )
    yield Finding("no" if guests == "no" else "ok", "pytest --dm-vm", text)


def findings() -> dict[str, list[Finding]]:
    """Look at everything; takes some seconds the first time after a boot, when KVM is tried out."""
    choice = backend.choose(Options())
    return {
        "Machine": list(_machine()),
        "This kernel": list(_this_kernel(choice)),
        "Programs": list(_tools()),
        "Guests": list(_guests()),
        "Models (--dm-backend=model)": list(_models()),
        "Verdict": list(_verdicts(choice)),
    }


def report(say: Callable[[str], None], *, colour: bool) -> int:
    """Print what was found; returns 0 if device-mapper tests can run here in some way, else 1."""
    found = findings()
    width = max(len(finding.what) for section in found.values() for finding in section)
    for title, section in found.items():
        say(f"{title}:")
        for finding in section:
            mark = f"{_COLOURS[finding.state]}{finding.state}{_PLAIN}" if colour else finding.state
            have, *more = finding.have.splitlines() or [""]
            say(f"  {mark}  {finding.what:<{width}}  {have}".rstrip())
            for line in more:
                say(f"      {'':<{width}}  {line}")
            if finding.fix:
                say(f"      {'':<{width}}  fix: {finding.fix}")
    return 0 if any(finding.state == "ok" for finding in found["Verdict"]) else 1
