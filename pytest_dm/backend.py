"""Which backend runs the tests of this process, and what would help where there is none."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

from pytest_dm.markers import Wants, asks_for_devices
from pytest_dm.options import Options

if TYPE_CHECKING:
    from dmcore.errors import Unsupported
    from pytest_dm.runtime import Runtime

__all__ = [
    "GUEST",
    "Backend",
    "Choice",
    "check",
    "choose",
    "find_tool",
    "for_session",
    "in_guest",
    "missing",
    "open_runtime",
    "runtime",
    "skip_unsupported",
]

GUEST = "PYTEST_DM_GUEST"
"""Environment variable that is set in a guest of ours, to the kernel's name."""

_CHOICE = pytest.StashKey["Choice"]()
_RUNTIME = pytest.StashKey["Runtime"]()
_SYSTEM_FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"


@dataclass(frozen=True, slots=True)
class Choice:
    """The backend for this process.

    Attributes:
        kind: "kernel", "model", or "none" if no test that needs a device can run here.
        reason: Why it is no kernel.
        hint: The one command that would help.
    """

    kind: str
    reason: str = ""
    hint: str = ""

    def __str__(self) -> str:
        return self.kind if self.kind == "kernel" else f"{self.reason} -- try: {self.hint}"


def in_guest() -> bool:
    """Whether this process runs in a guest of ours."""
    return GUEST in os.environ


def choose(options: Options) -> Choice:
    """Return the backend for the tests that this very process runs.

    Guests are chosen for a whole session before anything is collected (`Options.wants_guests`), or by `AutoVm` for the
    tests that need a device; in a guest, and without one, tests run on the kernel that is there, if it will have them, and
    else on models.
    """
    if options.backend == "model" and not in_guest():
        return Choice("model", "--dm-backend=model was given", "pytest --dm-vm")
    if options.wants_guests and not in_guest():
        return Choice(
            "none", "this session's device-mapper tests run in guests, and this is not one", "pytest --dm-vm"
        )
    if platform.system() != "Linux":
        return Choice(
            "none", f"device-mapper needs Linux, this is {platform.system()}", "run it on a Linux machine"
        )
    here = _this_kernel()
    return replace(here, kind="model") if here.kind == "none" and options.backend == "auto" else here


def _this_kernel() -> Choice:
    release = os.uname().release
    if os.geteuid() != 0:
        return Choice("none", "device-mapper on this kernel needs root", "pytest --dm-vm")
    from dmcore.errors import DmError, Unsupported  # noqa: PLC0415 - only where a test needs a device
    from dmcore.kernel.control import Control  # noqa: PLC0415 - the same

    try:
        with Control() as control:
            control.version()
    except Unsupported as error:
        return Choice("none", f"kernel {release}: {error.have}", "pytest --dm-vm")
    except (DmError, OSError) as error:
        return Choice("none", f"kernel {release}: device-mapper cannot be used ({error})", "pytest --dm-vm")
    if not Path("/dev/loop-control").exists():
        return Choice("none", f"kernel {release} has no loop driver", "modprobe loop")
    return Choice("kernel")


def for_session(config: pytest.Config) -> Choice:
    """Return `choose` for the session's options, asked once."""
    choice = config.stash.get(_CHOICE, None)
    if choice is None:
        choice = config.stash[_CHOICE] = choose(Options.of(config))
    return choice


def runtime(config: pytest.Config) -> Runtime:
    """Return what this process holds for its tests; made at first use, closed when the session ends.

    Raises:
        Unsupported: The kernel's device-mapper cannot be used.
    """
    held = config.stash.get(_RUNTIME, None)
    if held is None:
        held = config.stash[_RUNTIME] = _on_models() if for_session(config).kind == "model" else _on_kernel()
        config.add_cleanup(held.close)
    return held


def _on_models() -> Runtime:
    from pytest_dm.model.runtime import ModelRuntime  # noqa: PLC0415 - only where a test needs a device

    return ModelRuntime()


def _on_kernel() -> Runtime:
    from pytest_dm.clean import sweep  # noqa: PLC0415 - only where a test needs a device
    from pytest_dm.kernel_runtime import KernelRuntime  # noqa: PLC0415 - the same

    made = KernelRuntime()
    try:
        made.problems = sweep(made.control)
    except BaseException:
        made.close()
        raise
    return made


def open_runtime(config: pytest.Config) -> Runtime | None:
    """Return the runtime if it was made."""
    return config.stash.get(_RUNTIME, None)


def missing(options: Options, message: str) -> NoReturn:
    """Skip the running test, or fail it with `--dm-require`."""
    if options.require:
        pytest.fail(f"{message} (and --dm-require forbids to skip)", pytrace=False)
    pytest.skip(message)


def skip_unsupported(config: pytest.Config, call: pytest.CallInfo[None]) -> None:
    """Make `Unsupported`, wherever a test met it, a skip, or a failure with `--dm-require`."""
    errors = sys.modules.get("dmcore.errors")
    if call.excinfo is None or errors is None:
        return
    error = call.excinfo.value
    if isinstance(error, errors.Unsupported):
        outcome = pytest.CallInfo[None].from_call(lambda: missing(Options.of(config), str(error)), call.when)
        call.excinfo = outcome.excinfo


def check(item: pytest.Item) -> None:
    """Skip a test for which there is no backend, or that needs what this kernel or machine lacks.

    Raises:
        Unsupported: Something that its markers name in `needs` is missing.
    """
    choice = for_session(item.config)
    if choice.kind == "none":
        missing(Options.of(item.config), f"needs device-mapper: {choice}")
    if choice.kind == "model" and not asks_for_devices(item):
        missing(Options.of(item.config), f"needs a kernel, having no device of our fixtures: {choice}")
    for need in Wants.of(item).needs:
        lacking = runtime(item.config).lacks(need)
        if lacking is not None:
            raise lacking


def find_tool(name: str) -> Path | None:
    """Return the program's path, looking into the system folders that a user's PATH leaves out."""
    found = shutil.which(name) or shutil.which(name, path=_SYSTEM_FOLDERS)
    return Path(found) if found else None


def _is_uml() -> bool:
    return "User Mode Linux" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")


class Backend:
    """What runs where: the value of the fixture `dm_backend`.

    Attributes:
        kind: "kernel" or "model".
        guest: Name of the guest's kernel ("uml-6.12"), "" on the machine's own.
        machine: "uml" or "qemu" in a guest, "host" on the machine's own kernel, "model" without one.
        release: The kernel's release, as `uname -r` prints it; "model" without one.
        runtime: What this process holds for its tests.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.kind = runtime.kind
        self.runtime = runtime
        self.guest = os.environ.get(GUEST, "")
        self.machine = self.release = "model"
        if self.kind == "kernel":
            self.machine = ("uml" if _is_uml() else "qemu") if self.guest else "host"
            self.release = os.uname().release

    @cached_property
    def version(self) -> tuple[int, int, int]:
        """Version of the device-mapper interface; zeros for models."""
        return self.runtime.control.version() if self.kind == "kernel" else (0, 0, 0)

    @property
    def targets(self) -> dict[str, tuple[int, int, int]]:
        """Versions of the targets whose modules are loaded now; zeros for the targets that have models."""
        if self.kind == "kernel":
            return self.runtime.control.list_versions()
        from dmcore.model.registry import modelled  # noqa: PLC0415 - only for models

        return dict.fromkeys(modelled(), (0, 0, 0))

    def monotonic(self) -> float:
        """Return seconds of the clock that delays and schedules follow: the wall's on a kernel, a model's own else.

        Only differences mean something.
        """
        return self.runtime.monotonic()

    def sleep(self, seconds: float) -> None:
        """Let time pass on that clock; a model's passes at once."""
        self.runtime.sleep(seconds)

    def target_version(self, name: str) -> tuple[int, int, int]:
        """Return the version of a target, loading its module; zeros for models.

        Raises:
            Unsupported: The kernel has no such target.
        """
        return self.runtime.target_version(name)

    def has(self, need: str) -> bool:
        """Whether a target, feature ("flakey.error_reads") or program is there."""
        return self.runtime.lacks(need) is None

    def lacks(self, need: str) -> Unsupported | None:
        """Return what is missing for `need`, None if it is there."""
        return self.runtime.lacks(need)

    def __repr__(self) -> str:
        return f"<dm backend: {self.kind} {self.release} on {self.machine}>"
