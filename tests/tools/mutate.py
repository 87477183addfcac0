"""Break one formula of a model at a time, and see the differential tests go red: `make mutate`, or `make mutate TARGET=dust`.

The list is mutations.toml. A guest is booted, in which mutate_guest.py works on a copy of the tree: for each target it runs the
tests as they are, which must be green, and then with each mutation. What is not found by as many examples as
the profile "dev" tries, which is what every test run does, is given those of "ci". A run that takes too long, and a guest that is
lost, count as found, and are named so; a mutation that survives needs a reason in the list, and one that has a reason must survive.

What was found is kept in tests/data/mutations.json, and told by docs/reference/mutations.md.

Usage: mutate.py [--kernel NAME] [--left] [--dev] [TARGET ...]     (--page: only make the page again from what is kept)
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mutations import LIST, MARK, MODELS, ROOT, Mutation, Stale, green, mutations

DATA = ROOT / "tests/data/mutations.json"
PAGE = ROOT / "docs/reference/mutations.md"
GUEST = ROOT / "tests/tools/mutate_guest.py"

Result = dict[str, Any]
"""`outcome`: "found", "time-out", "guest lost", "survived" or "broken"; `by`: what told; `examples`: the profile; `seconds`."""


def _said(command: Sequence[str], job: str) -> Iterator[Result]:
    """Yield what a guest says; its last word is empty if it came to its end."""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as guest:
        assert guest.stdin is not None
        assert guest.stdout is not None
        guest.stdin.write(job)
        guest.stdin.close()
        for line in guest.stdout:
            if line.startswith(MARK):
                yield json.loads(line.removeprefix(MARK))
            else:
                sys.stderr.write(line)


def in_guests(names: list[str], kernel: str, profiles: list[str]) -> Iterator[tuple[str, Result]]:
    """Yield `(name, result)` of mutations and unmutated runs; another guest goes on where one was lost.

    Raises:
        SystemExit: A guest ended without having done anything.
    """
    pytest_dm = str(Path(sys.executable).with_name("pytest-dm"))
    command = [pytest_dm, "vm", "run", "--kernel", kernel, "--", sys.executable, str(GUEST)]
    left = list(names)
    while left:
        before, running = len(left), None
        for said in _said(command, json.dumps([profiles, left])):
            name = said.pop("name")
            if "outcome" not in said:
                running = name
                continue
            running = None
            left.remove(name)
            yield name, said
        if running is not None:
            left.remove(running)
            yield running, {"outcome": "guest lost", "by": "a hang, or a panic", "examples": "", "seconds": 0}
        if len(left) == before:
            raise SystemExit(f"the guest did nothing: {left[0]} is left")


def judge(mutation: Mutation, result: Result) -> str:
    """Return what is wrong with a result; "" if nothing is."""
    outcome = result["outcome"]
    if outcome == "broken":
        return f"does not run: {result['by']}"
    if outcome == "survived" and not mutation.reason:
        return "survives: mend the rule of the target, or give the entry a reason"
    if outcome != "survived" and mutation.reason:
        return f"has a reason to survive, but is found by {result['by']}"
    return ""


def run(every: list[Mutation], kernel: str, profiles: list[str], results: dict[str, Result]) -> list[str]:
    """Run mutations, telling how it goes; add the results by name, and return what is wrong."""
    wrong: list[str] = []
    known = {mutation.name: mutation for mutation in every}
    names = [name for one in every for name in (green(one.target), one.name)]
    for name, result in in_guests(list(dict.fromkeys(names)), kernel, profiles):
        by = f", by {result['by']} ({result['examples']})" if result["by"] else ""
        told = f"{name}: {result['outcome']} in {result['seconds']} s{by}"
        if name in known:
            results[name] = result
            if problem := judge(known[name], result):
                wrong.append(f"{name}: {problem}")
            print(f"{len(results):>3} of {len(every)}  {told}", flush=True)
        else:
            print(f"            {told}", flush=True)
            if result["outcome"] != "survived":
                wrong.append(f"{name}: red as it is: {result['by']}\n{result.get('text', '')}")
    return wrong


HEAD = """# Mutations: the differential tests notice

Made by `make mutate`; not edited by hand. Each formula below was broken on purpose in a copy of the tree, and the differential
tests of its target (`tests/differential`, with drawn stacks and scripts of a fixed seed) were run against {kernel} until one
of them failed. *dev*: with the number of examples that every test run tries (20 for each property, or a part of that);
*ci*: that was not enough, the profile's 200 were. What is found by a time-out, or by the end of the guest, hangs.
Beneath the tables stand those that no differential test can find, and why.
"""


def render(every: list[Mutation], kept: dict[str, Any]) -> str:
    """Return the page."""
    results = kept["results"]
    found = [mutation for mutation in every if mutation.name in results and not mutation.reason]
    lines = [HEAD.format(kernel=kept["kernel"])]
    lines.append(f"{len(found)} of {len(every)} are found.")
    lines += ["", "| model | broken | where | found by | examples |", "|---|---|---|---|---|"]
    for mutation in found:
        result = results[mutation.name]
        by = result["by"] if result["outcome"] == "found" else f"{result['outcome']}: {result['by']}"
        lines.append(f"{_row(mutation)} {by} | {result['examples']} |")
    if survivors := [mutation for mutation in every if mutation.name in results and mutation.reason]:
        lines += ["", "## Not found", "", "| model | broken | where | why |", "|---|---|---|---|"]
        lines += [f"{_row(mutation)} {mutation.reason} |" for mutation in survivors]
    if left := [mutation for mutation in every if mutation.name not in results]:
        lines += [
            "",
            "## Not found with the dev examples, or not tried since the rules changed",
            "",
            "| model | broken | where |",
            "|---|---|---|",
        ]
        lines += [_row(mutation) for mutation in left]
    return "\n".join(lines) + "\n"


def _row(mutation: Mutation) -> str:
    return f"| {mutation.target} | {mutation.breaks} | `{mutation.file}` |"


def keep(every: list[Mutation], results: dict[str, Result], kernel: str) -> None:
    """Add what was found to what is kept, without entries that are gone or wrong now, and make the page."""
    kept = json.loads(DATA.read_text(encoding="utf-8"))["results"] if DATA.exists() else {}
    good: dict[str, Result] = {}
    for mutation in every:
        result = results.get(mutation.name, kept.get(mutation.name))
        if result is not None and not judge(mutation, result):
            good[mutation.name] = {word: result[word] for word in ("outcome", "by", "examples")}
    data = {"kernel": kernel, "results": good}
    DATA.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    PAGE.write_text(render(every, data), encoding="utf-8")


def _left(chosen: list[Mutation]) -> list[Mutation]:
    """Return those of which no result is kept."""
    kept = json.loads(DATA.read_text(encoding="utf-8"))["results"] if DATA.exists() else {}
    return [mutation for mutation in chosen if mutation.name not in kept]


def main(arguments: Sequence[str]) -> int:
    """Return 1 if something survived without a reason, or the list is stale."""
    parser = argparse.ArgumentParser(
        description="Break models on purpose; expect the differential tests to notice."
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="by the kernel's name (default: all)")
    parser.add_argument("--kernel", default="uml-7.2", help="guest kernel (default: %(default)s)")
    parser.add_argument("--left", action="store_true", help="only those of which no result is kept")
    parser.add_argument("--dev", action="store_true", help="give what survives no more examples")
    parser.add_argument("--page", action="store_true", help="run nothing: make the page from what is kept")
    options = parser.parse_args(arguments)
    try:
        every, chosen = mutations(), mutations(*options.targets)
        for mutation in every:
            mutation.applied((ROOT / MODELS / mutation.file).read_text(encoding="utf-8"))
    except Stale as error:
        sys.stderr.write(f"{error}\n")
        return 1
    chosen = _left(chosen) if options.left else [] if options.page else chosen
    results: dict[str, Result] = {}
    wrong: list[str] = []
    try:
        wrong = run(chosen, options.kernel, ["dev"] if options.dev else ["dev", "ci"], results)
    finally:
        keep(every, results, options.kernel)
    for line in wrong:
        sys.stderr.write(f"{line}\n")
    if wrong:
        sys.stderr.write(f"{len(wrong)} of {len(chosen)} are wrong; see {LIST.relative_to(ROOT)}\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
