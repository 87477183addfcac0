"""`--dm-report`: one self-contained HTML page with what crash exploration found in a session."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = ["ReportPage", "page"]

_EXPLORED = "dm_crash"

_STYLE = """
:root { --back:#fff; --ink:#1d2330; --soft:#667085; --line:#d9dee7; --panel:#f6f7f9;
  --durable:#8fa3bf; --present:#2e9e5b; --missing:#d92d20; --torn:#f79009; --after:#d0d5dd; --mark:#6941c6; --flush:#98a2b3; }
@media (prefers-color-scheme: dark) { :root { --back:#12151c; --ink:#e6e9ef; --soft:#9aa4b5; --line:#2c3340; --panel:#1a1f29;
  --durable:#5d7391; --present:#3fbf77; --missing:#ff6257; --torn:#fdb022; --after:#3b4351; --mark:#b692f6; --flush:#5b6575; } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1200px; padding: 24px; background: var(--back); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, sans-serif }
h1 { font-size: 22px; margin: 0 0 4px } h2 { font-size: 17px; margin: 32px 0 4px; overflow-wrap: anywhere }
h3 { font-size: 16px; margin: 20px 0 8px; overflow-wrap: anywhere }
p { margin: 4px 0 } .soft { color: var(--soft) } code, pre, td.number { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: 13px }
.tag { display: inline-block; padding: 1px 9px; border-radius: 10px; font-size: 13px; color: #fff; background: var(--missing); margin-right: 8px }
.tag.good { background: var(--present) }
section { border: 1px solid var(--line); border-radius: 8px; padding: 4px 18px 16px; margin: 14px 0 }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 16px; margin: 8px 0 } dt { color: var(--soft) } dd { margin: 0; overflow-wrap: anywhere }
.picture { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; background: var(--panel); margin: 12px 0 6px }
.legend span { margin-right: 16px; white-space: nowrap; font-size: 13px; color: var(--soft) }
.legend i { display: inline-block; width: 11px; height: 11px; margin-right: 5px; border-radius: 2px; vertical-align: -1px }
table { border-collapse: collapse; margin: 8px 0; width: 100% } th { text-align: left; font-weight: 600; color: var(--soft); font-size: 13px }
th, td { padding: 3px 12px 3px 0; border-bottom: 1px solid var(--line); vertical-align: top }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: 6px; padding: 10px; overflow-x: auto;
  white-space: pre-wrap; overflow-wrap: anywhere }
.strip { height: 8px; border-radius: 4px; background: var(--after); margin: 10px 0 2px; overflow: hidden }
.strip div { height: 100%; background: var(--durable); border-right: 3px solid var(--missing) }
svg text { fill: var(--soft); font: 10px ui-monospace, Menlo, Consolas, monospace } svg .axis { text-anchor: end }
svg .place { fill: var(--line); opacity: .35 } svg .bar.durable { fill: var(--durable) } svg .bar.present { fill: var(--present) }
svg .bar.missing { fill: none; stroke: var(--missing); stroke-width: 1.6 } svg .bar.torn { fill: url(#hatch); stroke: var(--torn); stroke-width: 1.4 }
svg .bar.after { fill: var(--after) } svg .bar.fua { stroke: var(--ink); stroke-width: 1.2 } svg .bar.missing.fua { stroke: var(--missing) }
svg .bar.discard { stroke-dasharray: 2 2; stroke: var(--soft) }
svg .hatch-back { fill: var(--panel) } svg .hatch-line { fill: var(--torn) }
svg .flush { stroke: var(--flush); stroke-width: 1.4; stroke-dasharray: 4 3 } svg .mark { stroke: var(--mark); stroke-width: 1.2 }
svg .mark-label { fill: var(--mark) } svg .crash { stroke: var(--missing); stroke-width: 2.4 }
svg .crash-label { fill: var(--missing); text-anchor: middle; font-weight: 700; font-size: 11px }
"""

_LEGEND = (
    ("durable", "durable"), ("present", "pending, and there"), ("missing", "pending, and lost"),
    ("torn", "pending, there in part"), ("after", "later"), ("flush", "flush"), ("mark", "mark"),
)  # fmt: skip


class ReportPage:
    """Collects what the tests' explorations found, from every process that runs tests, and writes the page at the end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tests: dict[str, tuple[str, list[dict[str, Any]]]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take a test's explorations from its report."""
        results = getattr(report, _EXPLORED, None)
        if results:
            self._tests[report.nodeid] = (report.outcome, results)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """Write the page."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(page(self._tests), encoding="utf-8")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say where it is."""
        terminalreporter.write_line(f"dm: crash explorations of {len(self._tests)} tests: {self._path}")


def page(tests: Mapping[str, tuple[str, Sequence[Mapping[str, Any]]]]) -> str:
    """Return the page: of each test (its outcome and explorations, as `DmCrash.results` has them) what was found.

    It needs no network: style and pictures are in it, and there is no script.
    """
    failing = sum(any(result["cases"] for result in results) for _, results in tests.values())
    head = f"{len(tests)} test{'s' if len(tests) != 1 else ''} explored crash states; in {failing} a power cut can leave something unsound"
    body = "\n".join(
        line for name, (outcome, results) in tests.items() for line in _test(name, outcome, results)
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Crash exploration</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>Crash exploration</h1><p class=soft>{escape(head)}</p>\n"
        f"{body or '<p>No test explored crash states.</p>'}\n</body></html>\n"
    )


def _test(name: str, outcome: str, results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield f'<h2><span class="tag{" good" if outcome == "passed" else ""}">{escape(outcome)}</span>{escape(name)}</h2>'
    for result in results:
        yield f"<p class=soft>{escape(result['numbers'])}</p>"
        for note in result["notes"]:
            yield f"<p class=soft>Note: {escape(note)}</p>"
        for case in result["cases"]:
            yield from _case(case)


def _split(words: str) -> tuple[str, str]:
    """Return term and text of a line in words."""
    term, colon, rest = words.partition(": ")
    return (term, rest) if colon and len(term) < 13 else ("", words)


def _case(case: Mapping[str, Any]) -> Iterator[str]:
    torn = " (torn write)" if case["torn"] else ""
    yield f"<section><h3><span class=tag>{escape(case['kind'] + torn)}</span>{escape(case['reason'])}</h3>"
    share = 100 * case["position"] / max(1, case["entries"])
    yield f'<div class=strip title="where in the log"><div style="width:{share:.1f}%"></div></div>'
    where = [
        f"after the mark {case['after']}" if case["after"] else "",
        f"before {case['before']}" if case["before"] else "",
    ]
    rows = (
        (
            "power cut",
            ", ".join(
                filter(
                    None,
                    (
                        f"before entry {case['position']} of {case['entries']}",
                        " and ".join(filter(None, where)),
                    ),
                )
            ),
        ),
        ("acknowledged", ", ".join(case["acknowledged"]) or "nothing"),
        ("under way", ", ".join(case["started"]) or "nothing"),
        *map(_split, case["words"]),
        ("besides", f"{case['others']} more distinct states fail in this way" if case["others"] else ""),
        ("state", case["state"]),
    )
    yield "<dl>" + "".join(f"<dt>{term}</dt><dd>{escape(text)}</dd>" for term, text in rows if text) + "</dl>"
    yield f"<div class=picture>{case['picture']}</div>"
    keys = "".join(f'<span><i style="background:var(--{key})"></i>{text}</span>' for key, text in _LEGEND)
    yield f"<div class=legend>{keys}<span>outlined: FUA</span></div>"
    if case["rows"]:
        words = {"present": "there", "missing": "lost", "torn": "in part"}
        lines = "".join(
            f"<tr><td class=number>{row['entry']}</td><td>{words[row['fate']]}</td><td>{escape(row['words'])}</td></tr>"
            for row in case["rows"]
        )
        yield f"<table><tr><th>entry</th><th>fate</th><th>pending write</th></tr>{lines}</table>"
    if case["details"]:
        yield f"<p class=soft>The check said:</p><pre>{escape(case['details'])}</pre>"
    yield "</section>"
