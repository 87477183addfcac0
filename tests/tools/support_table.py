"""Make docs/reference/support.md: what each target does on each kernel, from a run of the tests.

`make support-table` runs them with PYTEST_DM_SUPPORT=1 and `--junitxml`, and gives the result to this program, which keeps what
it finds in tests/data/support.json: a run of one kernel, of one target, or of one target's campaign, replaces its part only.

Usage: support_table.py [--target NAME] [JUNIT.xml ...]     (without a file: make the page again from what is kept)

With --target the run was of that target's tests only.

It fails if a cell says no and `support_reasons.toml` does not say why.
"""

from __future__ import annotations

import json
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from kernel_pages import Case, Data, Lack, cases, first_reason

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests/targets"))

import witness  # noqa: E402

from dmcore.registry import targets  # noqa: E402

DATA = ROOT / "tests/data/support.json"
AGREEMENT = ROOT / "tests/data/agreement.json"
PAGE = ROOT / "docs/reference/support.md"
REASONS = ROOT / "tests/tools/support_reasons.toml"
CAMPAIGN = 500
"""Generated tables of a target on one kernel that count as its campaign."""


def _blank() -> dict[str, Any]:
    return {
        "release": "", "date": "", "versions": {}, "ran": [], "loads": [], "read_back": {}, "status": {}, "messages": {},
        "models": [], "campaigns": {}, "lines": {},
    }  # fmt: skip


def read(path: Path, data: Data, target: str | None = None) -> None:
    """Add what the tests of one JUnit file saw, those of one target only if it is given; only those that passed count."""
    owners = {message: name for name, kind in targets().items() for message in witness.messages(kind)}
    seen = list(cases(path))
    for kernel in _told(seen):
        kept = data.get(kernel, _blank())
        if target is None:
            data[kernel] = (
                _blank() | {word: kept[word] for word in ("campaigns", "lines")} | {"ran": [*targets()]}
            )
        else:
            data[kernel] = _without(kept, target)
            _insert(data[kernel]["ran"], target)
    for case in seen:
        if case.passed:
            for name, value in case.notes:
                _add(data.setdefault(case.kernel, _blank()), name, value, owners, case.date)


def _without(kept: dict[str, Any], target: str) -> dict[str, Any]:
    """Return what was seen of a kernel without what was seen of one target, its campaign apart."""
    lists = {word: [name for name in kept[word] if name != target] for word in ("loads", "models")}
    tables = {
        word: {name: seen for name, seen in kept[word].items() if name != target}
        for word in ("read_back", "status", "messages")
    }
    return kept | lists | tables


def _told(seen: list[Case]) -> set[str]:
    """Return the kernels that said what they are: what was seen there before is out of date."""
    return {case.kernel for case in seen if any(name == "dm_kernel" for name, _ in case.notes)}


def _insert(words: list[str], word: str) -> None:
    if word not in words:
        words.append(word)
        words.sort()


def _add(kernel: dict[str, Any], name: str, value: str, owners: dict[str, str], date: str) -> None:
    if name == "dm_kernel":
        told = json.loads(value)
        kernel.update(release=told["release"], versions=told["targets"], date=date)
    elif name == "dm_read_back":
        target, count, *every = value.split()
        kernel["read_back"][target] = date
        if int(count) >= CAMPAIGN or every:
            kernel["campaigns"][target] = [int(count), date]
    elif name == "dm_lines":
        target, accepted, refused = value.split()
        if int(accepted) + int(refused) >= CAMPAIGN // 2:
            kernel["lines"][target] = [int(accepted), int(refused), date]
    elif name == witness.PROPERTY:
        words = value.split()
        for word in words:
            _add_seen(kernel, word, owners)
        for word in words:
            what, _, target = word.partition(":")
            if what == "models" and f"loads:{target}" in words:
                _insert(kernel["models"], target)


def _add_seen(kernel: dict[str, Any], word: str, owners: dict[str, str]) -> None:
    what, _, rest = word.partition(":")
    target, _, form = rest.partition(":")
    if what == "loads" and target in targets():
        _insert(kernel["loads"], target)
    elif what == "status" and target in targets():
        _insert(kernel["status"].setdefault(target, []), form)
    elif what == "message" and target in owners:
        _insert(kernel["messages"].setdefault(owners[target], []), target)


def _agreed(kernel: str) -> frozenset[str]:
    """Return the targets whose models were held against the kernel by the differential tests, as `make agreement` keeps it."""
    kept = json.loads(AGREEMENT.read_text(encoding="utf-8")).get(kernel, {"targets": {}})
    return frozenset(name for name, counts in kept["targets"].items() if counts.get("examples"))


def lacks(data: Data) -> list[Lack]:
    """Return everything that the table says no to."""
    found: list[Lack] = []
    for kernel, seen in data.items():
        models = _agreed(kernel).union(seen["models"])
        for name, kind in targets().items():
            if not seen["versions"].get(name):
                found.append(Lack(name, "target", kernel))
                continue
            if name not in seen["ran"]:
                found.append(Lack(name, "run", kernel))
                continue
            wanted = {
                "loads": (["loads"], seen["loads"] and ["loads"] * (name in seen["loads"])),
                "reads back": (["reads back"], ["reads back"] * (name in seen["read_back"])),
                "model": (["model"], ["model"] * (name in models)),
                "campaign": (["campaign"], ["campaign"] * (name in seen["campaigns"])),
                "status": (witness.forms(kind), seen["status"].get(name, [])),
                "message": (witness.messages(kind), seen["messages"].get(name, [])),
            }
            for column, (all_of, there) in wanted.items():
                for one in all_of:
                    if one not in there:
                        what = column if one == column else f"{column} {one}"
                        found.append(Lack(name, what, kernel))
    return found


@cache
def reasons() -> list[dict[str, str]]:
    """Return the reasons as they stand in the file: patterns of target, what and kernel, and why."""
    return tomllib.loads(REASONS.read_text(encoding="utf-8"))["reason"]


def why(lack: Lack) -> str | None:
    """Return the first reason that fits."""
    return first_reason(lack, reasons())


def _ran(data: Data, name: str) -> list[str]:
    """Return the kernels that have the target and ran its tests."""
    return [kernel for kernel, seen in data.items() if seen["versions"].get(name) and name in seen["ran"]]


def _cell(data: Data, name: str, column: str, missing: set[tuple[str, str]]) -> str:
    """Return a cell: yes, no, or the kernels that do."""
    there = _ran(data, name)
    good = [kernel for kernel in there if (column, kernel) not in missing]
    if not there or not good:
        return "no"
    return "yes" if len(good) == len(data) else ", ".join(short(kernel) for kernel in good)


def _counted(
    data: Data, name: str, column: str, every: tuple[str, ...], missing: set[tuple[str, str]]
) -> str:
    """Return a cell of forms or messages: how many of all were seen, on each kernel if they differ."""
    if not every:
        return "-"
    counts: dict[str, int] = {}
    for kernel in _ran(data, name):
        unseen = sum((f"{column} {one}", kernel) in missing for one in every)
        counts[short(kernel)] = len(every) - unseen
    if not counts:
        return "no"
    if len(set(counts.values())) == 1 and len(counts) == len(data):
        return f"{next(iter(counts.values()))} of {len(every)}"
    return ", ".join(f"{kernel}: {count} of {len(every)}" for kernel, count in counts.items())


def short(kernel: str) -> str:
    """Return a kernel's name as cells have it."""
    return kernel.removeprefix("uml-")


_HEAD = """# What works on which kernel

Made by `make support-table` from a run of the tests on each kernel; not edited by hand. A target, a form of its status, or a
message counts if a test that passed got it from that kernel: *loads* a table; *reads back* what is printed for generated tables as
the value that was loaded; *status*, how many of the forms that the typed status has (its classes, the members of its enumerations,
what may be true or absent); *messages*, how many of the typed messages the kernel took; *model*, a test held the userspace model
against that kernel ([how often](agreement.md)). A dash says that there is nothing of the kind. What is missing, and why, stands below. Kernels are those for
user-mode Linux; the names of others begin with the distribution's.
"""


def render(data: Data) -> str:
    """Return the page.

    Raises:
        SystemExit: Something is missing without a reason.
    """
    all_lacks = lacks(data)
    unexplained = [lack for lack in all_lacks if why(lack) is None]
    if unexplained:
        listed = "\n".join(f"  {lack.target}: {lack.what} on {lack.kernel}" for lack in unexplained)
        raise SystemExit(f"{REASONS.name} does not say why there is no\n{listed}")
    lines = [_HEAD, "| kernel | release | run |", "|---|---|---|"]
    lines += [f"| {short(kernel)} | {seen['release']} | {seen['date']} |" for kernel, seen in data.items()]
    lines += ["", "| target | loads | reads back | status | messages | model |", "|---|---|---|---|---|---|"]
    missing = {
        name: {(lack.what, lack.kernel) for lack in all_lacks if lack.target == name} for name in targets()
    }
    for name, kind in targets().items():
        cells = [_cell(data, name, column, missing[name]) for column in ("loads", "reads back")]
        cells.append(_counted(data, name, "status", witness.forms(kind), missing[name]))
        cells.append(_counted(data, name, "message", witness.messages(kind), missing[name]))
        cells.append(_cell(data, name, "model", missing[name]))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "## What is not there, and why",
        "",
        "| target | what | kernels | why |",
        "|---|---|---|---|",
    ]
    lines += _reason_rows([lack for lack in all_lacks if lack.what not in {"campaign", "run"}])
    lines += ["", *_listed([lack for lack in all_lacks if lack.what == "run"])]
    lines += ["", *_campaigns(data), *_listed([lack for lack in all_lacks if lack.what == "campaign"])]
    return "\n".join(lines) + "\n"


def _reason_rows(found: list[Lack]) -> list[str]:
    """Return a row for each target and reason."""
    kernels: dict[tuple[str, str, str], list[str]] = {}
    for lack in found:
        kernels.setdefault((lack.target, lack.what, f"{why(lack)}"), []).append(short(lack.kernel))
    rows: dict[tuple[str, tuple[str, ...], str], list[str]] = {}
    for (target, what, reason), where in kernels.items():
        rows.setdefault((target, tuple(where), reason), []).append(what)
    return [
        f"| {target} | {', '.join(what)} | {', '.join(where)} | {reason} |"
        for (target, where, reason), what in sorted(rows.items())
    ]


def _campaigns(data: Data) -> list[str]:
    """Return the table of generated tables, of the kernels that ever had a campaign."""
    data = {kernel: seen for kernel, seen in data.items() if seen["campaigns"] or seen["lines"]}
    head = [
        "## Campaigns of generated tables",
        "",
        "`make campaign`: how many generated tables each kernel took and printed as their readback, and, of lines with a few words",
        "changed, how many kernel and library both took + both refused. No difference was left unexplained. Below 500 there are no more.",
        "",
        f"| target | {' | '.join(short(kernel) for kernel in data)} | last run |",
        f"|---|{'---|' * len(data)}---|",
    ]
    rows: list[str] = []
    for name in targets():
        cells: list[str] = []
        dates: set[str] = set()
        for seen in data.values():
            tables = seen["campaigns"].get(name)
            changed = seen["lines"].get(name)
            cells.append(" ".join([
                str(tables[0]) if tables else "-", *([f"({changed[0]} + {changed[1]})"] if changed else [])
            ]))  # fmt: skip
            dates.update(entry[-1] for entry in (tables, changed) if entry)
        if any(cell != "-" for cell in cells):
            rows.append(f"| {name} | {' | '.join(cells)} | {max(dates)} |")
    return [*head, *rows, ""]


def _listed(found: list[Lack]) -> list[str]:
    """Return a line for each reason, with the targets and kernels that it is of."""
    names: dict[tuple[str, str], list[str]] = {}
    kernels: dict[str, list[str]] = {}
    for lack in found:
        kernels.setdefault(lack.target, []).append(short(lack.kernel))
    for lack in found:
        where = names.setdefault((f"{why(lack)}", ", ".join(kernels[lack.target])), [])
        if lack.target not in where:
            where.append(lack.target)
    return [
        f"Not there on {where}: {', '.join(listed)}: {reason}"
        for (reason, where), listed in sorted(names.items())
    ]


def main(arguments: list[str]) -> int:
    """Read the files, keep what they say, and write the page."""
    data: Data = json.loads(DATA.read_text(encoding="utf-8")) if DATA.exists() else {}
    target = None
    if arguments[:1] == ["--target"]:
        target, *arguments = arguments[1:]
        if target not in targets():
            raise SystemExit(f"--target {target}: no such target; there are {', '.join(targets())}")
    for argument in arguments:
        read(Path(argument), data, target)
    ordered = {kernel: data[kernel] for kernel in sorted(data, key=_order)}
    DATA.write_text(json.dumps(ordered, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    PAGE.write_text(render(ordered), encoding="utf-8")
    return 0


def _order(kernel: str) -> tuple[str, list[int]]:
    family, _, version = kernel.rpartition("-")
    return family, [int(part) for part in version.split(".")]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
