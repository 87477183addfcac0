"""Host side of a session in guests: every guest is a pytest-xdist worker.

xdist is the engine: it starts one worker process per guest (`dmvm.worker`, which boots the guest and carries execnet's
pipes into it), hands out tests, replaces workers that die. This plugin chooses the kernel, has it fetched, tells each
worker which kernel to boot, and turns a lost guest into a failed report that shows the end of its console.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, cast

import pytest

from dmcore.errors import DmError
from dmcore.owner import PREFIX, Owner
from dmvm.exchange import make
from pytest_dm.boot_ahead import BootAhead
from pytest_dm.differential.profiles import FOLDER, GUEST_FOLDER
from pytest_dm.kernel_scheduling import KernelScheduling, kernel_of, scheduling, worker_id

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from pathlib import Path

    import execnet
    from xdist.dsession import DSession
    from xdist.remote import Producer
    from xdist.scheduler import Scheduling
    from xdist.workermanage import WorkerController

    from pytest_dm.options import Options

__all__ = ["PLUGIN_NAME", "VmSession", "distribute"]

PLUGIN_NAME = "dm-vm-session"
_MAX_LOST_GUESTS = 64
_MAX_STILLBORN = 3
_CONSOLE_LINES = 60
_BOOTED = "dmvm-init: ready"
_COUNT = "_handlefailures"
"""Private to xdist, which forgets it for a lost worker: counts a failure for `-x` and `--maxfail`."""
_CLONE = "_clone_node"
"""Private to xdist, which has no hook for it: replaces a dead worker."""


class Loss(NamedTuple):
    """Why a guest is gone.

    Attributes:
        reason: One line.
        console: The last lines of its console.
        seconds: How long the test had run.
    """

    reason: str
    console: str
    seconds: float


def distribute(config: pytest.Config, options: Options) -> None:
    """Make xdist run this session in guests: as many workers as `-n` says, at least one per kernel.

    Raises:
        pytest.UsageError: With options that cannot work across machines.
    """
    option = config.option
    if getattr(option, "usepdb", False):
        command = shlex.join(["pytest-dm", "vm", "run", "pytest", *map(str, config.invocation_params.args)])
        message = f"--pdb needs a terminal in the guest, which workers lack; try: {command} (without --dm-vm)"
        raise pytest.UsageError(message)
    if not config.pluginmanager.hasplugin("xdist"):
        message = "--dm-vm runs tests as pytest-xdist workers, but xdist is disabled; drop '-p no:xdist'"
        raise pytest.UsageError(message)
    workers = max(option.numprocesses or 1, len(options.kernels) or 1)
    option.numprocesses = workers
    option.tx = ["popen"] * workers
    if option.dist == "no":
        option.dist = "load"
    if option.maxworkerrestart is None:
        option.maxworkerrestart = str(_MAX_LOST_GUESTS)


class VmSession:
    """xdist hooks of the controller; registered only when tests run in guests."""

    def __init__(self, config: pytest.Config, options: Options, *, tests_here: int = 0) -> None:
        """Prepare.

        Args:
            config: The controller's.
            options: What the user asked for.
            tests_here: If not 0, so many tests ran on the host: guests run those that need a device and no others.
        """
        self.config = config
        self.options = options
        self.tests_here = tests_here
        self.kernels: tuple[str, ...] = ()
        self.machines: dict[str, str] = {}
        self.folder = make(f"{PREFIX}-{Owner.current().tag}-")
        self._losses: dict[str, Loss] = {}
        self._began: dict[str, float] = {}
        self._stillborn = 0
        self._ahead: BootAhead | None = None

    def _say(self, line: str) -> None:
        reporter = cast("Any", self.config.pluginmanager.getplugin("terminalreporter"))
        if reporter is not None and self.config.option.verbose >= 0:
            reporter.write_line(f"dm: {line}")

    def _distributed(self) -> DSession | None:
        return cast("DSession | None", self.config.pluginmanager.getplugin("dsession"))

    def prepare(self) -> None:
        """Choose machine and kernels, and have the kernels ready on disk; slow only the first time.

        Raises:
            pytest.UsageError: No such kernel, or none that can be had here.
        """
        try:
            self._choose_kernels()
        except DmError as error:
            self.pytest_unconfigure()
            raise pytest.UsageError(str(error)) from error

    def _choose_kernels(self) -> None:
        from dmvm import machine, qemu, store  # noqa: PLC0415 - only a session in guests pays for it

        chosen: list[str] = []
        for asked in self.options.kernels or (None,):
            kind, name = machine.choose(self.options.vm or "auto", asked)
            if kind == "qemu":
                qemu.binary()
            store.ensure(name, progress=self._say)
            chosen.append(name)
            self.machines[name] = kind
        self.kernels = tuple(dict.fromkeys(chosen))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionstart(self) -> Generator[None]:
        """Have every kernel ready before xdist starts workers; say it plainly if a guest does not come up."""
        self.prepare()
        try:
            yield
        except (OSError, EOFError) as error:
            self.give_up(error)

    def give_up(self, error: Exception) -> NoReturn:
        """End the session because a worker did not start: with what its guest left, not with a traceback of xdist's."""
        told = [
            json.loads(path.read_text(encoding="utf-8")) for path in sorted(self.folder.glob("*/lost.json"))
        ]
        lines = [f"{lost['reason']}\n{lost['console_tail']}" for lost in told] or [
            f"a worker did not start: {error}"
        ]
        pytest.exit("\n".join(lines), returncode=int(pytest.ExitCode.INTERNAL_ERROR))

    @pytest.hookimpl
    def pytest_report_header(self) -> str:
        """Say what the tests run on."""
        return f"dm: {self._where()}"

    def announce(self) -> None:
        """Say the same to a session whose header is long past."""
        self._say(f"device-mapper tests: {self._where()}")

    def _where(self) -> str:
        where = ", ".join(f"{name} ({self.machines[name]})" for name in self.kernels)
        count = len(self.config.option.tx)
        return f"in {count} guest{'s' if count > 1 else ''}: {where}"

    @pytest.hookimpl(tryfirst=True)
    def pytest_xdist_setupnodes(self, specs: Sequence[execnet.XSpec]) -> None:
        """Give each worker its command: a guest of one of the kernels, in turn."""
        for number, spec in enumerate(specs):
            kernel = self.kernels[number % len(self.kernels)]
            spec.python = shlex.join(self._command(kernel))
            setattr(spec, "dm_kernel", kernel)  # noqa: B010 - XSpec is a bag of attributes
        self._ahead = BootAhead(specs)

    def _command(self, kernel: str) -> list[str]:
        worker = [
            sys.executable,
            "-m",
            "dmvm.worker",
            "--kernel",
            kernel,
            "--exchange-root",
            str(self.folder),
        ]
        shown = [f"--visible={path}" for path in self._needed_paths()]
        return [*worker, *shown, "--", sys.executable]

    def _needed_paths(self) -> list[Path]:
        """Return what the tests are made of; the guest has a /tmp of its own, and must be told what to show of ours."""
        invocation = self.config.invocation_params
        named = [invocation.dir / str(argument).partition("::")[0] for argument in self.config.args]
        return [self.config.rootpath, invocation.dir, *(path for path in named if path.exists())]

    @pytest.hookimpl
    def pytest_configure_node(self, node: WorkerController) -> None:
        """Tell the worker which tests are its, and which kernel it is on where there are several."""
        told = cast("dict[str, object]", cast("Any", node).workerinput)
        told["dm_only"] = self.tests_here > 0
        if len(self.kernels) > 1:
            told["dm_kernel"] = kernel_of(node)
            told["dm_kernels"] = list(self.kernels)

    @pytest.hookimpl(tryfirst=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Producer) -> Scheduling:
        """Hand tests out as `--dist` says; with several kernels every test runs once per kernel."""
        if len(self.kernels) < 2 and not self.tests_here:
            return scheduling(config, log)
        return KernelScheduling(config, log, self.kernels, self._set_total)

    def _set_total(self, tests: int) -> None:
        """Correct xdist's idea of how many tests there are, which is one worker's."""
        session: pytest.Session | None = getattr(self._distributed(), "_session", None)
        if session is not None:
            session.testscollected = tests + self.tests_here

    @pytest.hookimpl
    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Remember when the test began, for the duration of a lost one."""
        self._began[nodeid] = time.monotonic()

    @pytest.hookimpl(tryfirst=True)
    def pytest_testnodedown(self, node: WorkerController, error: object | None) -> None:
        """Find out why a guest is gone; stop if guests keep dying before they run anything."""
        if not error:
            return
        self._losses[worker_id(node)] = loss = self._loss(node)
        session = self._distributed()
        if session is None:
            return
        if session.sched is None or node not in session.sched.nodes or not session.sched.has_pending:
            self._stillborn += 1
            self._say(f"{worker_id(node)}: {loss.reason}")
        if self._stillborn >= _MAX_STILLBORN:
            setattr(session, "_max_worker_restart", 0)  # noqa: B010 - private: xdist has no other way to stop

    def _loss(self, node: WorkerController) -> Loss:
        process: Any = getattr(getattr(node.gateway, "_io", None), "popen", None)
        if process is None:
            return Loss(f"guest {worker_id(node)} is gone", "", 0.0)
        try:
            status = process.wait(timeout=20)
        except Exception:  # noqa: BLE001 - subprocess.TimeoutExpired of whatever execution model execnet uses
            process.kill()
            status = process.wait()
        record = self.folder / str(process.pid) / "lost.json"
        if not record.exists():
            return Loss(
                f"the guest's worker process ended with status {status}", self._console(process.pid), 0.0
            )
        lost = json.loads(record.read_text(encoding="utf-8"))
        return Loss(str(lost["reason"]), str(lost.get("console_tail") or self._console(process.pid)), 0.0)

    def _console(self, pid: int) -> str:
        log = self.folder / str(pid) / "console.log"
        if not log.exists():
            return ""
        return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_CONSOLE_LINES:])

    @pytest.hookimpl(tryfirst=True)
    def pytest_handlecrashitem(self, crashitem: str, report: pytest.TestReport) -> None:
        """Make the report of a lost guest say what happened; it counts as the test's own failure."""
        node: WorkerController = getattr(report, "node")  # noqa: B009 - xdist adds it to the report
        loss = self._losses.get(worker_id(node))
        self._stillborn = 0
        report.when = "call"
        path, _, name = crashitem.partition("::")
        report.location = (path, None, name.replace("::", "."))
        count: Callable[[pytest.TestReport], None] | None = getattr(self._distributed(), _COUNT, None)
        if count is not None:
            count(report)
        report.duration = time.monotonic() - self._began.get(crashitem, time.monotonic())
        if loss is None:
            return
        report.longrepr = (
            f"{loss.reason}\nThe guest ({kernel_of(node)}) was lost; the other tests go on in a fresh one."
        )
        if loss.console:
            since_boot = loss.console.rpartition(f"{_BOOTED}\n")[2]
            report.sections.append(("console of the lost guest", since_boot))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self) -> None:
        """Prepare xdist's loop, which follows."""
        self.all_started()
        self.spare_replacements()

    def all_started(self) -> None:
        """Leave the starting of further workers to execnet."""
        if self._ahead is not None:
            self._ahead.done()
            self._ahead = None

    def spare_replacements(self) -> None:
        """Keep xdist from booting a replacement that would have nothing to run."""
        session = self._distributed()
        if session is None:
            return
        clone: Callable[[WorkerController], WorkerController] = getattr(session, _CLONE)

        def clone_if_needed(node: WorkerController) -> WorkerController | None:
            schedule = session.sched
            if session.shouldstop or (
                schedule is not None and schedule.collection_is_completed and not schedule.has_pending
            ):
                return None
            return clone(node)

        setattr(session, _CLONE, clone_if_needed)

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        """Keep the artifacts, remove the rest."""
        if self._ahead is not None:
            self._ahead.cancel()
        try:
            self._keep_examples()
            if self.options.artifacts is not None:
                self._keep_artifacts(self.options.artifacts)
        except OSError as error:
            self._say(f"the artifacts could not be kept: {error}")
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _keep_examples(self) -> None:
        """Take over the failing examples that hypothesis found in guests."""
        for made in sorted(self.folder.glob(f"*/{GUEST_FOLDER}")):
            shutil.copytree(made, self.config.rootpath / FOLDER, dirs_exist_ok=True)

    def _keep_artifacts(self, target: Path) -> None:
        from dmcore.crash.sparse import copy_file  # noqa: PLC0415 - at the end, and only if there is something to keep

        for made in sorted(self.folder.glob("*/artifacts")):
            shutil.copytree(made, target, dirs_exist_ok=True, copy_function=copy_file)
        for log in sorted(self.folder.glob("*/console.log")):
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(log, target / f"console-{log.parent.name}.log")
