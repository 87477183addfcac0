"""The picture of a crash state: writes over time and place, flushes, marks, and what was there when the power went.

The x axis is the log, entry by entry, around the crash; the y axis the places that were written there, in order of their
byte on the device, with what lies between them left out. The same picture comes as SVG and as text for a terminal.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from dmcore.formats.log_writes import LogFlag

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from dmcore.crash.epochs import Timeline
    from dmcore.crash.log import CrashLog
    from dmcore.crash.states import State

__all__ = ["Bar", "Picture", "svg", "text"]

_BEFORE, _AFTER = 56, 8
_GAP = 64 << 10
"""Bytes between two places above which the picture breaks its axis."""

FATES = ("durable", "present", "missing", "torn", "after")


@dataclass(frozen=True, slots=True)
class Bar:
    """One entry of the log as it is drawn.

    Attributes:
        entry: Its number.
        offset: First byte it is about.
        length: Bytes; 0 for a flush and a mark.
        kind: "write", "discard", "flush" or "mark".
        fua: Whether it was durable by itself.
        metadata: Whether the file system called it metadata.
        fate: For writes: "durable" (a flush or FUA promised it), "present" and "missing" (it was pending), "torn" (a part
            of it is there), "after" (issued or logged after the crash).
        label: What is known of it: the mark's text, the file it belongs to.
    """

    entry: int
    offset: int
    length: int
    kind: str
    fua: bool
    metadata: bool
    fate: str
    label: str


@dataclass(frozen=True, slots=True)
class Picture:
    """What is drawn.

    Attributes:
        bars: The entries around the crash, in order.
        position: The crash: entries from this number on had not become durable.
        entries: How many entries the log has.
        state: Id of the state.
    """

    bars: tuple[Bar, ...]
    position: int
    entries: int
    state: str

    @classmethod
    def of(
        cls, log: CrashLog, timeline: Timeline, state: State, labels: Mapping[int, str] | None = None
    ) -> Picture:
        """Draw a state of a log.

        Args:
            log: The log.
            timeline: Its epochs.
            state: The state.
            labels: What is known of entries, by their number.
        """
        epoch = timeline.epochs[state.epoch]
        torn = {tear.write for tear in state.torn}
        fates: dict[int, str] = {}
        for number, write in enumerate(epoch.pending):
            there = state.present >> number & 1
            fates[write.entry] = "torn" if number in torn else "present" if there else "missing"
        durable = {write.entry for one in timeline.epochs[: state.epoch + 1] for write in one.durable}
        first = min([epoch.position, *fates])
        last = max([epoch.position - 1, *fates])
        begin = max(0, min(first - 4, epoch.position - _BEFORE))
        end = min(len(log.index), max(last + 1, epoch.position) + _AFTER)
        known = labels or {}
        marks = {mark.position: mark.text for mark in log.marks}
        bars: list[Bar] = []
        for entry in range(begin, end):
            flags = log.index.flags(entry)
            offset, length = log.index.extent_of(entry)
            kind = "mark" if flags & LogFlag.MARK else "discard" if flags & LogFlag.DISCARD else "write"
            kind = "flush" if kind == "write" and not length else kind
            fate = fates.get(entry) or ("durable" if entry in durable else "after")
            label = marks.get(entry, "") if kind == "mark" else known.get(entry, "")
            metadata, fua = bool(flags & LogFlag.METADATA), bool(flags & LogFlag.FUA)
            bars.append(Bar(entry, offset, length, kind, fua and length > 0, metadata, fate, label))
        return cls(tuple(bars), epoch.position, len(log.index), str(state))

    def column(self) -> int:
        """Return the number of the bar before which the power went."""
        return sum(bar.entry < self.position for bar in self.bars)


def _places(bars: Sequence[Bar]) -> list[tuple[int, int]]:
    """Return the parts of the device that are drawn: first byte, and the byte behind, with small gaps closed."""
    places: list[tuple[int, int]] = []
    for offset, end in sorted((bar.offset, bar.offset + bar.length) for bar in bars if bar.length):
        if places and offset <= places[-1][1] + _GAP:
            places[-1] = (places[-1][0], max(end, places[-1][1]))
        else:
            places.append((offset, end))
    return places


def size(value: int) -> str:
    """Return a number of bytes as people say it."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if value >= unit:
            return f"{value / unit:.4g} {name}"
    return f"{value} B"


class _Axis:
    """Where a byte of the device is drawn: every place gets room by the logarithm of its length."""

    def __init__(self, bars: Sequence[Bar], height: float, gap: float) -> None:
        self.places = _places(bars)
        weights = [max(1.0, (end - start).bit_length() - 9.0) for start, end in self.places]
        room = height - gap * max(0, len(self.places) - 1)
        scale = room / sum(weights) if weights else 1.0
        self.tops: list[float] = []
        self.heights = [weight * scale for weight in weights]
        top = 0.0
        for part in self.heights:
            self.tops.append(top)
            top += part + gap

    def span(self, offset: int, length: int) -> tuple[float, float]:
        """Return the top and the height of an extent."""
        at = max(i for i, (start, _) in enumerate(self.places) if start <= offset)
        start, end = self.places[at]
        scale = self.heights[at] / (end - start)
        return self.tops[at] + (offset - start) * scale, max(3.0, length * scale)


_LEFT, _TOP, _HEIGHT = 92, 64, 320
_LEAST, _MOST, _WIDTH = 16, 30, 1000
_LABEL = 90
"""Room on the right for the labels of marks, which lean there."""


def svg(picture: Picture) -> str:
    """Return the picture as an SVG element, styled by classes; hovering a bar says what it is."""
    axis = _Axis(picture.bars, _HEIGHT, 6)
    step = max(_LEAST, min(_MOST, _WIDTH // (len(picture.bars) + 2)))
    end = _LEFT + step * (len(picture.bars) + 1)
    width = end + _LABEL
    crash = _LEFT + step * picture.column()
    height = _TOP + _HEIGHT + 34
    out = [
        (
            f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
            f'aria-label="writes around the crash of state {escape(picture.state)}">'
        ),
        (
            '<defs><pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
            '<rect width="5" height="5" class="hatch-back"/><rect width="2.5" height="5" class="hatch-line"/></pattern></defs>'
        ),
    ]
    for (start, behind), top, part in zip(axis.places, axis.tops, axis.heights, strict=True):
        out.append(
            f'<rect class="place" x="{_LEFT}" y="{_TOP + top:.1f}" width="{end - _LEFT}" height="{part:.1f}">'
            f"<title>bytes {start} to {behind}</title></rect>"
            f'<text class="axis" x="{_LEFT - 6}" y="{_TOP + top + min(part, 10):.1f}">{size(start)}</text>'
        )
    out.extend(_drawn(picture, axis, step))
    out.append(
        f'<line class="crash" x1="{crash}" x2="{crash}" y1="{_TOP - 14}" y2="{_TOP + _HEIGHT + 8}"/>'
        f'<text class="crash-label" x="{crash}" y="{_TOP + _HEIGHT + 24}">power cut</text></svg>'
    )
    return "\n".join(out)


def _drawn(picture: Picture, axis: _Axis, step: int) -> Iterator[str]:
    for column, bar in enumerate(picture.bars):
        x = _LEFT + step * column
        middle = x + step // 2
        title = f"<title>{escape(describe(bar))}</title>"
        if bar.kind == "mark":
            yield f'<line class="mark" x1="{middle}" x2="{middle}" y1="{_TOP - 6}" y2="{_TOP + _HEIGHT}">{title}</line>'
            shown = bar.label if len(bar.label) <= 24 else f"{bar.label[:23]}…"
            yield (
                f'<text class="mark-label" transform="translate({middle + 3},{_TOP - 10}) rotate(-32)">{escape(shown)}'
                f"{title}</text>"
            )
        elif bar.kind == "flush":
            yield f'<line class="flush" x1="{middle}" x2="{middle}" y1="{_TOP}" y2="{_TOP + _HEIGHT}">{title}</line>'
        else:
            top, part = axis.span(bar.offset, bar.length)
            classes = (
                f"bar {bar.fate}{' fua' if bar.fua else ''}{' discard' if bar.kind == 'discard' else ''}"
            )
            yield (
                f'<rect class="{classes}" x="{x + 2}" y="{_TOP + top:.1f}" width="{step - 4}" height="{part:.1f}">'
                f"{title}</rect>"
            )


def describe(bar: Bar) -> str:
    """Return what an entry is, in words."""
    if bar.kind == "mark":
        return f"entry {bar.entry}: mark {bar.label}"
    if bar.kind == "flush":
        return f"entry {bar.entry}: flush; what had completed before it was issued is durable"
    what = "FUA write" if bar.fua else bar.kind
    kind = ", metadata" if bar.metadata else ""
    label = f", {bar.label}" if bar.label else ""
    return f"entry {bar.entry}: {what} of {size(bar.length)} at byte {bar.offset}{kind}{label}: {_FATE[bar.fate]}"


_FATE = {
    "durable": "durable",
    "present": "pending, and there",
    "missing": "pending, and lost",
    "torn": "pending, and there in part",
    "after": "after the crash",
}
_SIGNS = {"durable": "=", "present": "+", "missing": "x", "torn": "/", "after": "."}


def text(picture: Picture, width: int = 78, *, most_rows: int = 14) -> str:
    """Return the picture for a terminal: a column for each entry, a row for each place."""
    label = 11
    bars = list(picture.bars)
    room = width - label - 1
    if len(bars) > room:
        keep = min(picture.column() + _AFTER, len(bars))
        bars = bars[max(0, keep - room) : keep]
    crash = sum(bar.entry < picture.position for bar in bars)
    places = _places(bars)
    rows: list[str] = []
    for start, end in places[:most_rows]:
        signs = [
            _SIGNS[bar.fate] if bar.length and start <= bar.offset < end else _upright(bar) for bar in bars
        ]
        rows.append(f"{size(start):>{label}} {''.join(signs[:crash])}|{''.join(signs[crash:])}")
    if len(places) > most_rows:
        rows.append(f"{'...':>{label}} ({len(places) - most_rows} more places)")
    legend = "= durable  + there  x lost  / torn  . later  F flush  m mark  | power cut"
    head = "".join(
        "m" if bar.kind == "mark" else "F" if bar.kind == "flush" else "'" if bar.fua else " " for bar in bars
    )
    return "\n".join(
        [f"{'entry ' + str(bars[0].entry):>{label}} {head[:crash]}|{head[crash:]}", *rows, legend]
    )


def _upright(bar: Bar) -> str:
    return ":" if bar.kind == "flush" else " "
