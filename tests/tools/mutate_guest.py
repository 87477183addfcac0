"""What mutate.py runs in a guest: differential tests on a copy of the tree, with one mutation after the other.

Reads the profiles to try and the names of mutations from stdin, as JSON, and writes a line for each beginning and each result; see mutate.py. It first
copies the tree and begins again from there (`--copied`). The tests run in forks of a process that has imported all that no
mutation is about: otherwise a guest would spend its time on imports.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from mutations import MARK, MODELS, ROOT, Mutation, green, mutations

TREE = ("pytest_dm", "src", "vm", "tests", "pyproject.toml")
EXAMPLES = {"dev": 20, "ci": 200}
SECONDS = {"dev": 120, "ci": 400}
"""What a run may take; the tests end an example that hangs after 30 seconds by themselves."""
SEED = 20
TESTS = "tests/differential"
MORE = {
    "crypt": ("test_crypt_kinds.py",),
    "flakey": ("test_flakey_faults.py",),
    "mirror": ("test_mirror_scripts.py",),
    "multipath": ("test_multipath_scripts.py",),
    "raid": ("test_raid_failures.py", "test_raid_kinds.py"),
}
"""Files of tests/differential that are about one target."""
IMPORTED = (
    "pytest", "hypothesis.stateful", "numpy", "cryptography.hazmat.primitives.ciphers", "xdist", "pytest_dm.plugin",
    "pytest_dm.factory", "pytest_dm.kernel_runtime", "pytest_dm.strategies", "pytest_dm.differential.machine",
)  # fmt: skip


# -- the tests, once ---------------------------------------------------------------------------------------------------


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it was made of: hypothesis wraps failures that are not the same each time."""
    yield error
    inner = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    for one in (*inner, error.__cause__, error.__context__):
        if one is not None:
            yield from _causes(one)


def _told(test: str, error: BaseException) -> tuple[str, str]:
    """Return `(outcome, what told)` for the failure of a test."""
    from pytest_dm.differential.divergence import Divergence
    from pytest_dm.differential.watch import Overdue

    for one in _causes(error):
        if isinstance(one, Divergence):
            step = type(one.script[-1]).__name__ if 0 < one.number <= len(one.script) else ""
            where = step or ("the end" if one.number else "the making")
            return "found", f"{test}: {where}: {one.what}"
        if isinstance(one, Overdue):
            return "time-out", f"{test}: an example takes too long"
    text = str(error).strip().partition("\n")[0][:80].replace("|", "/")
    return "found", f"{test}: {type(error).__name__}: {text}"


class _Recorder:
    """Notes how the tests ended, and the first failure."""

    def __init__(self) -> None:
        self.passed = 0
        self.failed: tuple[str, str] | None = None
        self.text = ""
        self.broken = ""

    def pytest_configure(self) -> None:
        """Keep no examples, and look for no smaller ones."""
        from pytest_dm.differential import profiles

        assert Path(profiles.__file__).is_relative_to(ROOT), "the copy is not what is imported"
        profiles.SHRINK_SECONDS = 0.0
        profiles.database = lambda root: None

    def pytest_runtest_makereport(self, item: Any, call: Any) -> None:
        error = None if call.excinfo is None else call.excinfo.value
        if error is None:
            self.passed += call.when == "call"
        elif call.when != "call":
            self.broken = f"{call.when} of {item.name}: {error}"
        elif self.failed is None:
            self.failed = _told(item.originalname, error)
            self.text = "\n".join(str(one) for one in _causes(error))

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.broken = f"collection of {report.nodeid}: {str(report.longrepr)[-200:]}"


def run_tests(profile: str, tests: list[str]) -> dict[str, str]:
    """Run them here, with a fixed seed."""
    import pytest

    seen = _Recorder()
    options = [
        "--dm-backend=kernel", "--dm-require", f"--dm-profile={EXAMPLES[profile]}", f"--hypothesis-seed={SEED}",
        "-x", "-q", "--tb=no", "-p", "no:cacheprovider", "--assert=plain",
    ]  # fmt: skip
    status = pytest.main([*options, *tests], plugins=[seen])
    if seen.broken or status not in {0, 1} or not (seen.passed or seen.failed):
        return {"outcome": "broken", "by": seen.broken or f"pytest ended with {status}"}
    outcome, by = seen.failed or ("survived", "")
    return {"outcome": outcome, "by": by, "text": seen.text}


def in_fork(profile: str, tests: list[str], log: Path) -> dict[str, str]:
    """Run them in a child, which is killed if it takes too long."""
    result = log.with_suffix(".json")
    result.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        try:
            os.setsid()
            output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            for stream in (1, 2):
                os.dup2(output, stream)
            result.write_text(json.dumps(run_tests(profile, tests)), encoding="utf-8")
        finally:
            os._exit(0)
    end = time.monotonic() + SECONDS[profile]
    while not os.waitpid(child, os.WNOHANG)[0]:
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)  # nobody waits for it: what hangs in the kernel does not end
            return {"outcome": "time-out", "by": f"more than {SECONDS[profile]} s"}
        time.sleep(0.02)
    if not result.exists():
        return {"outcome": "broken", "by": log.read_text(encoding="utf-8", errors="replace")[-400:]}
    return json.loads(result.read_text(encoding="utf-8"))


# -- one mutation after the other --------------------------------------------------------------------------------------


def write(file: str, text: str) -> None:
    """Write a model's file; what Python has compiled of it goes, since that is told by its time and size only."""
    path = ROOT / MODELS / file
    path.write_text(text, encoding="utf-8")
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
        compiled.unlink()


class Target:
    """The tests of one target."""

    def __init__(self, name: str, profiles: list[str]) -> None:
        from pytest_dm.strategies import layers

        self._profiles = profiles
        self._tests = [f"{TESTS}/test_models.py::test_alone[{name}]"]
        self._tests += [f"{TESTS}/{file}" for file in MORE.get(name, ())]
        self._tests += [f"{TESTS}/test_models.py::test_in_stacks[{name}]"] if name in layers() else []
        self._green: dict[str, dict[str, str]] = {}

    def _run(self, profile: str) -> dict[str, str]:
        return in_fork(profile, self._tests, ROOT / "output.log") | {"examples": profile}

    def unmutated(self, profile: str) -> dict[str, str]:
        """Run the tests as they are, once."""
        if profile not in self._green:
            self._green[profile] = self._run(profile)
        return self._green[profile]

    def mutated(self, mutation: Mutation) -> dict[str, str]:
        """Run the tests with a mutation, with more examples if it is not found."""
        whole = (ROOT / MODELS / mutation.file).read_text(encoding="utf-8")
        found: dict[str, str] = {}
        for profile in self._profiles:
            before = self.unmutated(profile)
            if before["outcome"] != "survived":
                return {"outcome": "broken", "by": f"red as it is: {before['by']}", "examples": profile}
            write(mutation.file, mutation.applied(whole))
            found = self._run(profile)
            write(mutation.file, whole)
            if found["outcome"] != "survived":
                break
        return found


def _say(name: str, **more: Any) -> None:
    print(MARK + json.dumps({"name": name, **more}), flush=True)


def work(profiles: list[str], names: list[str]) -> None:
    """Do what was asked for; end after a run that had to be killed, since what it left behind is in the way."""
    for module in IMPORTED:
        import_module(module)
    assert not any(name.startswith("dmcore.model.targets.") for name in sys.modules), (
        "models must come in later"
    )
    known = {mutation.name: mutation for mutation in mutations()}
    greens = {green(mutation.target): mutation.target for mutation in known.values()}
    targets: dict[str, Target] = {}
    for name in names:
        kind = greens.get(name) or known[name].target
        target = targets.setdefault(kind, Target(kind, profiles))
        _say(name)
        begun = time.monotonic()
        found = target.unmutated(profiles[0]) if name in greens else target.mutated(known[name])
        _say(name, **found, seconds=round(time.monotonic() - begun, 1))
        if found["outcome"] == "time-out":
            return


def copied() -> None:
    """Copy the tree, and begin again from the copy."""
    root = Path(tempfile.mkdtemp(prefix="mutate-"))  # goes with the guest
    for name in TREE:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, root / name)
    os.chdir(root)
    path = os.pathsep.join(str(root / name) for name in ("src", ".", "vm"))
    command = [sys.executable, "tests/tools/mutate_guest.py", "--copied"]
    os.execve(command[0], command, os.environ | {"PYTHONPATH": path})


if __name__ == "__main__":
    if sys.argv[1:] != ["--copied"]:
        copied()
    work(*json.load(sys.stdin))
