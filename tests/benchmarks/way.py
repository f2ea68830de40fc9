"""The way of a call, with what each part of it costs: docs/call.svg, made from the account of a record."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from benchmarks.contenders import ENTRIES
from benchmarks.picture import framed
from benchmarks.record import Line
from benchmarks.table import number

_WIDTH, _HEIGHT = 980, 552
_LEFT, _RIGHT, _BOX, _LINE = 16, 604, 360, 18


class _Part(NamedTuple):
    """Who has a part in a call, what they do, and where that stands."""

    who: str
    colour: str
    x: int
    y: int
    what: tuple[str, ...]

    @property
    def height(self) -> int:
        return 34 + _LINE * len(self.what)


_PARTS = {  # by the keys of the account's rows
    "submit": _Part(
        *("your thread, in submit", "#3d82d1", _LEFT, 76),
        (
            "pack the call; large buffers into shared memory",
            "under the pool's lock: make the task, choose a worker",
            "put down a token for it; one write to the worker's pipe",
        ),
    ),
    "workers": _Part(
        *("the worker process", "#3f9b5c", _RIGHT, 150),
        (
            "read the call",
            "take the token: from here on the task has begun,",
            "and is not run again unless retries were asked for",
            "load the call, run it, pack the outcome; one write",
        ),
    ),
    "result": _Part(
        *("your thread, in result", "#c9751a", _LEFT, 250),
        (
            "look at the pipes for a moment, then sleep",
            "read the outcome; under the pool's lock: settle the",
            "task, send the next one",
            "unpack the value",
        ),
    ),
    "threads": _Part(
        *("the pool's own threads", "#8a6fd1", _RIGHT, 282),
        ("read the pipes while nobody waits for a result", "time limits, deaths, new workers, callbacks"),
    ),
}
_TITLE = "The way of a call, and what it costs"


def draw_way(lines: Sequence[Line]) -> str:
    """The picture, as the text of an SVG file."""
    account = {line.row.key: line for line in lines if line.measure.name == "account"}
    parts = [
        f'<text class="title" x="{_LEFT}" y="26">{_TITLE}</text>',
        f'<text class="note" x="{_LEFT}" y="46">{_NOTE}</text>',
        _TIP,
    ]
    for key, part in _PARTS.items():
        shape = f'x="{part.x}" y="{part.y}" width="{_BOX}" height="{part.height}" rx="4"'
        parts += [
            f'<rect {shape} fill="{part.colour}" fill-opacity="0.14" stroke="{part.colour}"/>',
            f'<text class="strong" x="{part.x + 12}" y="{part.y + 20}">{part.who}</text>',
            f'<text class="end" x="{part.x + _BOX - 12}" y="{part.y + 20}">{_said(account[key])}</text>',
        ]
        for place, line in enumerate(part.what):
            parts.append(f'<text x="{part.x + 12}" y="{part.y + 40 + _LINE * place}">{line}</text>')
    parts += _arrow(_LEFT + _BOX, 144, _RIGHT, 176, "the call: one message")
    parts += _arrow(_RIGHT, 242, _LEFT + _BOX, 276, "the outcome: one message")
    parts += _bars(account, 392)
    return framed(_TITLE, _WIDTH, _HEIGHT, parts)


_TIP = (
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
    '<path class="tip" d="M0 0L8 4L0 8Z"/></marker></defs>'
)
_NOTE = "Microseconds of CPU time for submit(noop).result(), one after the other, with everything on one CPU."


def _said(line: Line) -> str:
    return f"{number(_median(line, line.ours))} us"


def _median(line: Line, contender: str) -> float:
    return statistics.median(line.samples.of(contender, line.row.key))


def _arrow(x: int, y: int, to_x: int, to_y: int, words: str) -> Iterator[str]:
    yield f'<path class="arrow" d="M{x} {y}L{to_x} {to_y}" marker-end="url(#tip)"/>'
    yield f'<text class="note middle" x="{(x + to_x) / 2}" y="{min(y, to_y) - 6}">{words}</text>'


def _bars(account: dict[str, Line], y: int) -> Iterator[str]:
    """A bar for poolkit and for each peer, of the same parts."""
    total = account["total"]
    contenders = (total.ours, *total.peers)
    most = max(_median(total, contender) for contender in contenders)
    yield f'<text class="strong" x="{_LEFT}" y="{y}">The same parts elsewhere</text>'
    for place, contender in enumerate(contenders):
        top = y + 16 + 46 * place
        yield f'<text x="{_LEFT}" y="{top + 12}">{ENTRIES[contender].title}</text>'
        x = float(_LEFT)
        for key, part in _PARTS.items():
            figure = _median(account[key], contender)
            width = (_WIDTH - 2 * _LEFT - 90) * figure / most
            shape = f'x="{x:.1f}" y="{top + 18}" width="{width:.1f}" height="16"'
            yield f'<rect {shape} fill="{part.colour}"><title>{part.who}: {number(figure)} us</title></rect>'
            x += width
        yield f'<text x="{x + 8:.1f}" y="{top + 31}">{number(_median(total, contender))} us</text>'
