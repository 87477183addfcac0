"""What the pages about targets on kernels have in common: JUnit files of tests on kernels, and reasons for cells that say no."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

_KERNEL = re.compile(r"(?<=[\[-])(?P<kernel>(?:uml|debian)-[0-9.]+)(?=[\]-])")
Data = dict[str, dict[str, Any]]
"""What was seen of each kernel, by its name."""


@dataclass(frozen=True, slots=True)
class Lack:
    """Something that is not there on a kernel."""

    target: str
    what: str
    kernel: str


@dataclass(frozen=True, slots=True)
class Case:
    """A test on a kernel: the date of its run, whether it passed, and the properties that it has, in order."""

    kernel: str
    date: str
    passed: bool
    notes: tuple[tuple[str, str], ...]


def cases(path: Path) -> Iterator[Case]:
    """Yield the tests of a JUnit file that ran on a kernel."""
    for suite in ET.parse(path).getroot().iter("testsuite"):
        date = suite.get("timestamp", "")[:10]
        for case in suite.iter("testcase"):
            if found := _KERNEL.search(case.get("name", "")):
                passed = all(case.find(word) is None for word in ("failure", "error", "skipped"))
                notes = ((str(note.get("name")), str(note.get("value"))) for note in case.iter("property"))
                yield Case(found["kernel"], date, passed, tuple(notes))


def first_reason(lack: Lack, reasons: Iterable[dict[str, str]]) -> str | None:
    """Return why of the first reason whose patterns of target, what and kernel (by default any), apart by commas, fit."""
    for reason in reasons:
        patterns = (reason["target"], reason["what"], reason.get("kernel", "*"))
        values = (lack.target, lack.what, lack.kernel)
        if all(
            any(fnmatchcase(value, one) for one in pattern.split(", "))
            for value, pattern in zip(values, patterns, strict=True)
        ):
            return reason["why"]
    return None
