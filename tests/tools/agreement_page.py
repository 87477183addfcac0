"""Make docs/reference/agreement.md: how often each model and each kernel did the same, from runs of the differential tests.

`make agreement` runs them with `--junitxml` and gives the result to this program, which adds up the properties `dm_pair_*` of the
tests that passed and keeps the sums in tests/data/agreement.json: those of a run replace the ones of its kernels.

Usage: agreement_page.py [JUNIT.xml ...]     (without a file: make the page again from what is kept)

It fails if a cell is empty and `agreement_reasons.toml` does not say why.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from kernel_pages import Data, Lack, cases, first_reason

from dmcore.model.registry import modelled

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests/data/agreement.json"
PAGE = ROOT / "docs/reference/agreement.md"
REASONS = ROOT / "tests/tools/agreement_reasons.toml"
FINDINGS = ROOT / "docs/explanation/kernel-findings.md"
FINDINGS_TITLE = "## Where they did not"

COLUMNS = {
    "read": ("read",),
    "write": ("write", "zeroout", "discard", "flush"),
    "status": ("table", "status"),
    "messages": ("message",),
    "errors": ("errors", "refused"),
}
"""What is counted in which column, by the names that `pytest_dm.differential.session.Tally` has for it."""


def read(paths: Iterable[Path], data: Data) -> None:
    """Replace what is kept of the kernels that JUnit files tell about by the sum of what these say.

    Of each kernel it is `release`, `date` and `targets`: counts by target and name.
    """
    fresh: Data = {}
    for case in (case for path in paths for case in cases(path)):
        notes = dict(case.notes)
        if not case.passed or "dm_pair_targets" not in notes:
            continue
        kernel = fresh.setdefault(case.kernel, {"targets": {}})
        kernel.update(release=notes["dm_pair_kernel"], date=case.date)
        for target, counts in json.loads(notes["dm_pair_targets"]).items():
            kernel["targets"][target] = dict(Counter(kernel["targets"].get(target, {})) + Counter(counts))
    if not fresh:
        raise SystemExit(
            "no test in these files names its kernel: give pytest two --dm-kernel, or make agreement two KERNELS"
        )
    data.update(fresh)


def count(data: Data, kernel: str, target: str, what: str) -> int:
    """Return what a cell says."""
    counts = data[kernel]["targets"].get(target, {})
    return sum(counts.get(name, 0) for name in COLUMNS.get(what, (what,)))


def gaps(data: Data) -> Iterator[Lack]:
    """Yield the cells without a count."""
    for target in modelled():
        for kernel in data:
            yield from (
                Lack(target, what, kernel) for what in COLUMNS if not count(data, kernel, target, what)
            )


@cache
def reasons() -> list[dict[str, str]]:
    """Return the reasons as they stand in the file: target, what, kernel (by default every one), and why."""
    return tomllib.loads(REASONS.read_text(encoding="utf-8"))["reason"]


def why(gap: Lack) -> str | None:
    """Return the first reason that fits."""
    return first_reason(gap, reasons())


def findings() -> list[str]:
    """Return a line for each section of the findings, with a link."""
    lines: list[str] = []
    for section in FINDINGS.read_text(encoding="utf-8").split("\n## ")[1:]:
        title, _, text = section.partition("\n")
        entries = re.findall(r"^\* .*", text, re.MULTILINE)
        bugs = sum("**bug" in entry for entry in entries)
        anchor = re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")
        flagged = f", {bugs} of them {'a bug' if bugs == 1 else 'bugs'} of the kernel" if bugs else ""
        lines.append(f"* [{title}](../explanation/kernel-findings.md#{anchor}): {len(entries)}{flagged}")
    return lines


HEAD = """# How often kernels and models did the same

Made by `make agreement`; not edited by hand. The differential tests ran drawn stacks and scripts on a kernel and on the models at
once, and what is counted here is each comparison that found no difference: *read*, the bytes of a read; *write*, a write, zero-out,
discard or flush that both did (and all bytes of the disks below are compared at the end of each example); *status*, a table or status text;
*messages*, one that both took, with its reply; *errors*, a step or a table that failed on both sides with the same errno,
or that the model refuses with an error of its own before it knows an errno. In a stack a step counts for every target that the
device stands on. A test that failed counts for nothing: what differed stands [below](#where-they-did-not).
"""


def render(data: Data) -> str:
    """Return the page.

    Raises:
        SystemExit: A cell is empty without a reason.
    """
    if unexplained := [gap for gap in gaps(data) if why(gap) is None]:
        listed = "\n".join(f"  {gap.target}: no {gap.what} on {gap.kernel}" for gap in unexplained)
        raise SystemExit(f"{REASONS.name} does not say why there are no counts of\n{listed}")
    lines = [HEAD, "| kernel | release | run |", "|---|---|---|"]
    lines += [f"| {kernel} | {seen['release']} | {seen['date']} |" for kernel, seen in data.items()]
    lines += [
        "",
        f"| target | kernel | examples | {' | '.join(COLUMNS)} |",
        f"|---|---|{'---:|' * (1 + len(COLUMNS))}",
    ]
    for target in modelled():
        for kernel in data:
            cells = [count(data, kernel, target, "examples") or "none"]
            cells += [
                count(data, kernel, target, what) or why(Lack(target, what, kernel)) for what in COLUMNS
            ]
            lines.append(f"| {target} | {kernel} | {' | '.join(map(str, cells))} |")
    return "\n".join([
        *lines, "", FINDINGS_TITLE, "",
        "Each difference that was found was decided: our mistakes are mended, each with a test; what kernels do is in",
        "[kernel-findings.md](../explanation/kernel-findings.md), with version and reproducer. Entries there, by target:", "",
        *findings(),
    ]) + "\n"  # fmt: skip


def _order(kernel: str) -> tuple[bool, list[int]]:
    family, _, version = kernel.rpartition("-")
    return family != "uml", [int(part) for part in version.split(".")]


def main(arguments: list[str]) -> int:
    """Read the files, keep what they say, and write the page."""
    data: Data = json.loads(DATA.read_text(encoding="utf-8")) if DATA.exists() else {}
    if arguments:
        read(map(Path, arguments), data)
    data = {kernel: data[kernel] for kernel in sorted(data, key=_order)}
    DATA.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(render(data), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
