"""The picture of a record: for each row, how many times more than poolkit its peers need, on a logarithmic axis.

A bar is the chief peer of the row, a dot each of the others; to the right of the line poolkit is ahead. It is an SVG
with a background of its own, light or dark as the reader has it, so that it can be read on any page.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from html import escape

from benchmarks.contenders import ENTRIES
from benchmarks.record import Line
from benchmarks.table import number

# Each is to be told from its neighbours, and from both backgrounds.
_COLOURS = {
    "ppe-fork": "#3d82d1",
    "ppe-spawn": "#2a9d9d",
    "mp-fork": "#c9751a",
    "threads": "#8a6fd1",
    "pebble": "#3f9b5c",
    "loky": "#cf5f9b",
    "mpire": "#8c8430",
    "joblib": "#cc5252",
    "trio-parallel": "#5f7f8f",
    "starlette": "#7b5ea7",
    "in-loop": "#a05a2c",
    "poolkit-asyncio": "#a3a300",
    "tqdm": "#6b7785",
    "mp-queue": "#b8860b",
    "mp-pipe": "#b04a6f",
    "subprocess": "#4f6db8",
    "asyncio-subprocess": "#9a7d2e",
    "manager-queue": "#708238",
    "gunicorn": "#4e8a3a",
    "gunicorn-preload": "#93b23c",
    "gunicorn-asgi": "#2f8f83",
    "uvicorn": "#c2488f",
    "uvicorn-workers": "#7d5bd0",
    "uvicorn-nodelay": "#b58adf",
    "granian": "#c4622d",
    "hypercorn": "#5a86c7",
    "node-cluster": "#7a8a2f",
    "poolkit": "#8a8a8a",
    "poolkit-round-robin": "#a8893a",
    "poolkit-preload": "#6b9a9a",
}
_WIDTH, _LEFT, _RIGHT = 980, 370, 70  # in all; for the names; for the ratios
_LINE, _BAR, _DOT = 20, 10, 3.5
_TOP, _BOTTOM = 214, 34
_STYLE = """\
text { font: 12px system-ui, sans-serif; fill: #24292f }
.title { font-size: 16px; font-weight: 600 }
.strong { font-weight: 600 }
.note { fill: #59636e }
.end { text-anchor: end }
.middle { text-anchor: middle }
.page { fill: #ffffff }
.grid { stroke: #d8dee4 }
.even { stroke: #24292f; stroke-width: 1.5 }
.dot { stroke: #ffffff }
.arrow { stroke: #59636e; stroke-width: 1.5; fill: none }
.tip { fill: #59636e }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .note { fill: #9aa4ae }
  .page { fill: #0d1117 }
  .grid { stroke: #30363d }
  .even { stroke: #e6edf3 }
  .dot { stroke: #0d1117 }
  .arrow { stroke: #9aa4ae }
  .tip { fill: #9aa4ae }
}"""


def draw(lines: Sequence[Line]) -> str:
    """The picture of those lines that are compared, as the text of an SVG file."""
    shown = [line for line in lines if line.is_compared]
    axis = _Axis([statistics.median(line.ratios(peer)) for line in shown for peer in line.peers if line.ratios(peer)])
    height = _TOP + _LINE * len(shown) + _BOTTOM
    parts = [
        *_head({peer for line in shown for peer in line.peers if line.ratios(peer)}),
        *axis.draw(height),
    ]
    for place, line in enumerate(shown):
        parts += ["<g>", *_line(line, axis, _TOP + _LINE * place + _LINE / 2), "</g>"]
    axis_line = f'<line class="even" x1="{axis.x(1):.1f}" x2="{axis.x(1):.1f}" y1="{_TOP - 6}" y2="{height - 28}"/>'
    return framed(_TITLE, _WIDTH, height, [*parts, axis_line])


def framed(title: str, width: float, height: float, parts: Iterable[str]) -> str:
    """Shapes as the text of an SVG file."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{title}">',
        f"<title>{title}</title>",
        f"<style>\n{_STYLE}\n</style>",
        f'<rect class="page" width="{width}" height="{height}"/>',
    )
    return "\n".join([*head, *parts, "</svg>"]) + "\n"


_TITLE = "poolkit beside other pools"
_NOTES = (
    "What the others need, time or memory, divided by what poolkit needs. Right of 1, poolkit is ahead.",
    "Bar: the chief peer of the row, whose ratio stands at the right edge. Dots: the other peers.",
)


class _Axis:
    """Where a ratio lies. Its ends are 1, 2 or 5 times a power of ten, beyond all ratios."""

    def __init__(self, ratios: Sequence[float]) -> None:
        ticks = [step * 10.0**power for power in range(-6, 7) for step in (1, 2, 5)]
        least, most = min([0.9, *ratios]), max([1.1, *ratios])
        first = max(place for place, tick in enumerate(ticks) if tick <= least)
        last = min(place for place, tick in enumerate(ticks) if tick >= most)
        self.ticks = ticks[first : last + 1]

    def x(self, ratio: float) -> float:
        """The place of a ratio, from the left edge of the picture."""
        least, most = math.log(self.ticks[0]), math.log(self.ticks[-1])
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (math.log(ratio) - least) / (most - least)

    def draw(self, height: int) -> Iterator[str]:
        """The grid, with its figures above and below."""
        for tick in self.ticks:
            x = f"{self.x(tick):.1f}"
            yield f'<line class="grid" x1="{x}" x2="{x}" y1="{_TOP - 6}" y2="{height - 28}"/>'
            for y in (_TOP - 12, height - 12):
                yield f'<text class="note middle" x="{x}" y="{y}">{tick:g}</text>'


def _head(peers: set[str]) -> Iterator[str]:
    yield f'<text class="title" x="12" y="26">{_TITLE}</text>'
    for number_of_note, note in enumerate(_NOTES):
        yield f'<text class="note" x="12" y="{46 + 18 * number_of_note}">{note}</text>'
    x, y = 12.0, 92
    for peer in (peer for peer in _COLOURS if peer in peers):
        title = ENTRIES[peer].title
        width = 33 + 7 * len(title)
        if x + width > _WIDTH:
            x, y = 12.0, y + 18
        yield f'<rect x="{x:.1f}" y="{y - 10}" width="10" height="10" rx="2" fill="{_COLOURS[peer]}"/>'
        yield f'<text x="{x + 15:.1f}" y="{y}">{escape(title)}</text>'
        x += width


def _line(line: Line, axis: _Axis, y: float) -> Iterator[str]:
    yield f'<text class="end" x="{_LEFT - 10}" y="{y + 4:.1f}">{escape(line.name)}</text>'
    found = [(peer, statistics.median(line.ratios(peer))) for peer in line.peers if line.ratios(peer)]
    if not found:
        ours = line.samples.of(line.ours, line.row.key)
        said = f"no ratio: poolkit has {number(statistics.median(ours))}" if ours else "not measured"
        yield f'<text class="note" x="{axis.x(1) + 8:.1f}" y="{y + 4:.1f}">{said}</text>'
        return
    (chief, ratio), *others = found
    start, end = sorted((axis.x(1), axis.x(ratio)))
    yield (
        f'<rect x="{start:.1f}" y="{y - _BAR / 2:.1f}" width="{max(end - start, 1):.1f}" height="{_BAR}" '
        f'rx="2" fill="{_COLOURS[chief]}"/>'
    )
    for peer, other in others:
        yield f'<circle class="dot" cx="{axis.x(other):.1f}" cy="{y:.1f}" r="{_DOT}" fill="{_COLOURS[peer]}"/>'
    yield f'<text class="end" x="{_WIDTH - 12}" y="{y + 4:.1f}">{ratio:.3g}</text>'
