"""What the plugin adds to pytest's own output: sections of a failed test's report, and the header line."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_dm import backend
from pytest_dm.options import Options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_dm.factory import Dm
    from pytest_dm.runtime import Runtime

__all__ = ["add_sections", "artifacts", "begin", "explored", "failed", "header", "keeps", "summarize"]

_MARK = pytest.StashKey[int]()
_FAILED = pytest.StashKey[bool]()
_EXPLORED = pytest.StashKey[list[dict[str, Any]]]()
_LOG_LINES = 200
EXPLORED = "dm_crash"
"""Attribute of a report with the explorations of its test; xdist carries it, since it is plain."""
_UNSAFE = re.compile(r"[^A-Za-z0-9_.\[\]-]+")


def begin(item: pytest.Item) -> None:
    """Remember where the kernel log is when the test begins."""
    item.stash[_MARK] = backend.runtime(item.config).log.mark()


def explored(item: pytest.Item, results: list[dict[str, Any]]) -> None:
    """Remember where a test's crash explorations are told, for `--dm-report`."""
    item.stash[_EXPLORED] = results


def failed(item: pytest.Item) -> bool:
    """Whether the test failed, in setup or call."""
    return item.stash.get(_FAILED, False)


def _each(runtime: Runtime) -> Iterator[Dm]:
    waiting = list(runtime.roots)
    while waiting:
        dm = waiting.pop(0)
        yield dm
        waiting.extend(dm.scopes)


def _tables(runtime: Runtime) -> list[str]:
    lines: list[str] = []
    for dm in _each(runtime):
        if dm.post_mortem:
            lines += ["(of a scope that has ended)", *dm.post_mortem]
        lines += dm.described()
    return lines


def _statuses(runtime: Runtime) -> list[str]:
    return [line for dm in _each(runtime) for line in dm.statuses()]


def _kernel_log(item: pytest.Item, runtime: Runtime) -> list[str]:
    lines = [line for line in runtime.log.since(item.stash.get(_MARK, 0)) if not runtime.is_noise(line)]
    if len(lines) > _LOG_LINES:
        return [f"({len(lines) - _LOG_LINES} earlier lines left out)", *lines[-_LOG_LINES:]]
    return lines


def add_sections(item: pytest.Item, report: pytest.TestReport) -> None:
    """Add the loaded tables, their status and the kernel log since the test began to a failed test's report."""
    runtime = backend.open_runtime(item.config)
    if report.when != "teardown":
        item.stash[_FAILED] = True
    if runtime is None or _MARK not in item.stash:
        return
    made = (
        ("dm tables", _tables(runtime)),
        ("dm status", _statuses(runtime)),
        ("kernel log", _kernel_log(item, runtime)),
        ("--dm-keep", _kept(item)),
    )
    sections = [(title, "\n".join(lines)) for title, lines in made if lines]
    report.sections.extend(sections)
    folder = artifacts(item.config)
    if folder is not None and sections:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{_UNSAFE.sub('-', item.nodeid)}-{report.when}.txt"
        text = "".join(f"--- {title} ---\n{body}\n" for title, body in sections)
        (folder / name[-200:]).write_text(text, encoding="utf-8")


def add_explorations(item: pytest.Item, report: pytest.TestReport) -> None:
    """Let a report carry what the test's crash explorations found, to whoever writes `--dm-report`."""
    results = item.stash.get(_EXPLORED, None)
    if results and report.when == "call" and Options.of(item.config).report is not None:
        setattr(report, EXPLORED, list(results))


def artifacts(config: pytest.Config) -> Path | None:
    """Return the folder for what a failed test leaves; a guest's is the one that its host collects."""
    if Options.of(config).artifacts is None:
        return None
    exchange = os.environ.get("PYTEST_DM_EXCHANGE")
    if backend.in_guest() and exchange:
        return Path(exchange) / "artifacts"
    return Options.of(config).artifacts


def summarize(config: pytest.Config, reporter: pytest.TerminalReporter) -> None:
    """Print what an earlier session left that would not go."""
    runtime = backend.open_runtime(config)
    if runtime is not None and runtime.problems:
        reporter.section("leftovers of an earlier session")
        for line in runtime.problems:
            reporter.write_line(line)


def keeps(item: pytest.Item) -> bool:
    """Whether `--dm-keep` leaves this test's devices in place; in a guest, which ends anyway, it does not."""
    return Options.of(item.config).keep and failed(item) and not backend.in_guest()


def _kept(item: pytest.Item) -> list[str]:
    if keeps(item):
        return ["the test's devices and mounts stay as they are; remove them with: pytest-dm clean"]
    if Options.of(item.config).keep:
        return ["nothing is kept: the guest ends with the session"]
    return []


def header(config: pytest.Config) -> str | None:
    """Return the header line: where device-mapper tests run; only with -v, since finding out is not free."""
    options = Options.of(config)
    if config.option.verbose < 1 or (options.wants_guests and not backend.in_guest()):
        return None
    choice = backend.for_session(config)
    shown = {"kernel": f"kernel {os.uname().release}", "model": f"models, for what needs no kernel: {choice}"}
    return f"dm: {shown.get(choice.kind, choice)}"
