"""Command line and ini settings as one frozen value."""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

__all__ = ["BACKENDS", "MACHINES", "PROFILES", "CrashOptions", "Options", "add_options"]

BACKENDS = ("auto", "kernel", "vm", "model")
MACHINES = ("auto", "qemu", "uml")
_HERE = ("kernel", "model")
PROFILES = {"dev": 20, "ci": 200, "campaign": 20_000}
"""Examples of each property that compares kernel and models."""
_DEFAULT_TIMEOUT = 120.0
_KEY = pytest.StashKey["Options"]()


@dataclass(frozen=True, slots=True)
class CrashOptions:
    """What the command line says of crash exploration; it wins over what a test says.

    Attributes:
        seed: Of the random choices; None for the test's own.
        states: How many states to visit at most; None for the test's own.
        seconds: When to stop; None for the test's own.
        state: Id of the one state to visit; "" for all.
        recording: Folder with a kept recording to explore instead of the test's own; None for that.
    """

    seed: int | None = None
    states: int | None = None
    seconds: float | None = None
    state: str = ""
    recording: Path | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for; picklable, and the same in every worker.

    Attributes:
        backend: "auto", "kernel", "vm" or "model".
        vm: Machine for the guests ("auto", "qemu", "uml"), None if `--dm-vm` was not given.
        kernels: Guest kernels by name or path; the suite runs once on each. Empty: the default one.
        require: A test that would be skipped for want of a device, target or tool fails.
        keep: Leave the devices of failed tests in place.
        artifacts: Folder for what failed tests leave to look at; None to keep nothing.
        timeout: Seconds a test may run in a guest before the guest is taken for hung.
        report: HTML page for what crash exploration found in the session; None for none.
        examples: Stacks and scripts that each property about kernel and models tries.
        crash: What the session says of crash exploration.
    """

    backend: str = "auto"
    vm: str | None = None
    kernels: tuple[str, ...] = ()
    require: bool = False
    keep: bool = False
    artifacts: Path | None = None
    timeout: float = _DEFAULT_TIMEOUT
    report: Path | None = None
    examples: int = PROFILES["dev"]
    crash: CrashOptions = dataclasses.field(default_factory=CrashOptions)

    @property
    def wants_guests(self) -> bool:
        """Whether the session is to run in guests, by `--dm-vm`, `--dm-backend=vm` or `--dm-kernel`."""
        return self.vm is not None or self.backend == "vm" or bool(self.kernels)

    @classmethod
    def of(cls, config: pytest.Config) -> Options:
        """Return the session's options.

        Raises:
            pytest.UsageError: A value that means nothing, or two that contradict each other.
        """
        options = config.stash.get(_KEY, None)
        if options is None:
            options = config.stash[_KEY] = _read(config)
        return options


def add_options(parser: pytest.Parser) -> None:
    """Add the command line options and their ini twins."""
    group = parser.getgroup("dm", "device-mapper fault injection (pytest-dm)")
    group.addoption(
        "--dm-backend", choices=BACKENDS, dest="dm_backend",
        help="where device-mapper tests run: kernel = this one; vm = in guests; model = without a kernel, for what needs no "
        "path and no mounts; auto = the first of these that can be had",
    )  # fmt: skip
    group.addoption(
        "--dm-vm", action="store_const", const="auto", dest="dm_vm",
        help="run the session in throw-away VMs, one per xdist worker (-n N); no root needed",
    )  # fmt: skip
    # Spelled out so that the value is only taken after "=": "--dm-vm tests/" names a folder, not a machine.
    for machine in MACHINES:
        group.addoption(
            f"--dm-vm={machine}", action="store_const", const=machine, dest="dm_vm",
            help=f"the same; machine: {machine}" if machine != "auto" else "the same as --dm-vm",
        )  # fmt: skip
    group.addoption(
        "--dm-kernel", action="append", dest="dm_kernel", metavar="NAME|PATH",
        help="guest kernel (see 'pytest-dm vm list'); repeat it to run the suite once per kernel",
    )  # fmt: skip
    group.addoption(
        "--dm-require", action="store_true", default=None, dest="dm_require",
        help="fail instead of skipping where a device, target or tool is missing",
    )  # fmt: skip
    group.addoption(
        "--dm-keep", action="store_true", default=None, dest="dm_keep",
        help="leave the devices of failed tests in place and say how to remove them",
    )  # fmt: skip
    group.addoption(
        "--dm-artifacts", dest="dm_artifacts", metavar="DIR",
        help="copy what failed tests leave (tables, logs, consoles) into DIR",
    )  # fmt: skip
    group.addoption(
        "--dm-timeout", type=float, dest="dm_timeout", metavar="SECONDS",
        help=f"seconds a test may run in a guest (default {_DEFAULT_TIMEOUT:g})",
    )  # fmt: skip
    group.addoption(
        "--dm-profile", dest="dm_profile", metavar="dev|ci|campaign|N",
        help="examples of each property that compares kernel and models: 20, 200, 20000, or so many",
    )  # fmt: skip
    _add_crash_options(group)
    parser.addini("dm_backend", "default for --dm-backend", default="auto")
    parser.addini("dm_vm", "default for --dm-vm: auto, qemu or uml", default="")
    parser.addini("dm_kernel", "defaults for --dm-kernel, in guests", type="args", default=[])
    parser.addini("dm_require", "default for --dm-require", type="bool", default=False)
    parser.addini("dm_keep", "default for --dm-keep", type="bool", default=False)
    parser.addini("dm_artifacts", "default for --dm-artifacts, from the project's root", default="")
    parser.addini("dm_profile", "default for --dm-profile", default="dev")
    parser.addini("dm_timeout", "default for --dm-timeout", default=str(_DEFAULT_TIMEOUT))


def _add_crash_options(group: pytest.OptionGroup) -> None:
    group.addoption(
        "--dm-report", dest="dm_report", metavar="FILE.html",
        help="write one self-contained page with what crash exploration found, pictures included",
    )  # fmt: skip
    group.addoption(
        "--dm-crash-budget", dest="dm_crash_budget", metavar="N|SECONDSs",
        help="crash states to visit at most per check (2000), or for how long (60s), whatever the tests say",
    )  # fmt: skip
    group.addoption(
        "--dm-crash-seed", type=int, dest="dm_crash_seed", metavar="N", help="seed for sampling crash states"
    )
    group.addoption(
        "--dm-crash-state", dest="dm_crash_state", metavar="ID", default="",
        help="visit this one crash state, with the check in the test's own process (a failing check says its id)",
    )  # fmt: skip
    group.addoption(
        "--dm-crash-recording", dest="dm_crash_recording", metavar="DIR",
        help="explore this kept recording instead of what the test records (--dm-artifacts keeps failing ones)",
    )  # fmt: skip


def _budget(text: str | None) -> tuple[int | None, float | None]:
    """Return states and seconds of a budget."""
    if text is None:
        return None, None
    match = re.fullmatch(r"([0-9]+)|([0-9]+(?:\.[0-9]+)?)s", text)
    if match is None or not float(match[1] or match[2]):
        message = f"dm_crash_budget={text!r}: give a number of states, or seconds like 60s"
        raise pytest.UsageError(message)
    return (int(match[1]), None) if match[1] else (None, float(match[2]))


def _crash(config: pytest.Config) -> CrashOptions:
    states, seconds = _budget(config.getoption("dm_crash_budget", default=None))
    recording = config.getoption("dm_crash_recording", default=None)
    return CrashOptions(
        seed=config.getoption("dm_crash_seed", default=None),
        states=states,
        seconds=seconds,
        state=config.getoption("dm_crash_state", default="") or "",
        recording=_path(config, str(recording)) if recording else None,
    )


def _examples(text: str) -> int:
    """Return the examples of a profile, or the number itself."""
    count = PROFILES.get(text, int(text) if re.fullmatch("[0-9]{1,9}", text) else 0)
    if not count:
        message = f"dm_profile={text!r}: choose from {', '.join(PROFILES)}, or give a number of examples"
        raise pytest.UsageError(message)
    return count


def _choice(field: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        message = f"{field}={value!r}: choose from {', '.join(choices)}"
        raise pytest.UsageError(message)
    return value


def _seconds(field: str, value: float | str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        message = f"{field}={value!r}: give a positive number of seconds"
        raise pytest.UsageError(message)
    return seconds


def _read(config: pytest.Config) -> Options:
    def given(name: str) -> object:
        value: object = config.getoption(name, default=None)
        return config.getini(name) if value is None else value

    backend = _choice("dm_backend", str(given("dm_backend")), BACKENDS)
    machine = str(given("dm_vm"))
    kernels = cast("list[str]", config.getoption("dm_kernel", default=None) or [])
    if backend in _HERE and (config.getoption("dm_vm", default=None) or kernels):
        what = "runs on this kernel" if backend == "kernel" else "needs no kernel"
        message = f"--dm-backend={backend} {what}; it cannot be combined with --dm-vm or --dm-kernel"
        raise pytest.UsageError(message)
    vm = _choice("dm_vm", machine, MACHINES) if machine and backend not in _HERE else None
    if not kernels and (vm is not None or backend == "vm"):
        kernels = cast("list[str]", config.getini("dm_kernel"))
    artifacts = str(given("dm_artifacts"))
    report = config.getoption("dm_report", default=None)
    return Options(
        backend=backend,
        vm=vm,
        kernels=tuple(kernels),
        require=bool(given("dm_require")),
        keep=bool(given("dm_keep")),
        artifacts=_folder(config, artifacts) if artifacts else None,
        timeout=_seconds("dm_timeout", str(given("dm_timeout"))),
        report=_path(config, str(report)) if report else None,
        examples=_examples(str(given("dm_profile"))),
        crash=_crash(config),
    )


def _path(config: pytest.Config, text: str) -> Path:
    """Return an absolute path: relative to where pytest was called."""
    return Path(os.path.normpath(config.invocation_params.dir / Path(text).expanduser()))


def _folder(config: pytest.Config, text: str) -> Path:
    """Return an absolute path: relative to where pytest was called, or to the root for an ini setting.

    Raises:
        pytest.UsageError: There is something that is no folder.
    """
    from_command_line = config.getoption("dm_artifacts", default=None) is not None
    base = config.invocation_params.dir if from_command_line else config.rootpath
    folder = Path(os.path.normpath(base / Path(text).expanduser()))
    if folder.exists() and not folder.is_dir():
        message = f"dm_artifacts={text!r}: {folder} is no folder"
        raise pytest.UsageError(message)
    return folder
