"""Picture: what a pool did, drawn as SVG. A pure function; the picture is one file without a script.

A row for each worker, from its start to its end, with its runs in the colours of their functions and how busy it was;
below, how many tasks waited. Where there are too many runs to be drawn one by one, each piece of time shows by its
height how busy the worker was, in the colour that took most of it. Light or dark, as its reader has it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

SHAPES = 1_200  # that show runs; the rest makes it 2,000 at most
ROWS = 100  # of the workers that had most to do
COLOURS = ("#4e79a7", "#59a14f", "#edc948", "#b07aa1", "#76b7b2", "#9c755f", "#ff9da7", "#bab0ac")  # the last: others
LEFT, RIGHT, WIDTH = 90, 890, 1000  # where the time begins and ends, in pixels
ROW, BAR = 24, 18  # pixels from row to row, and what of it is drawn on
QUEUE = 60  # pixels of height
DARK = """\
<style>
@media (prefers-color-scheme: dark) {
  .poolkit-timeline { fill: #e6edf3 }
  .poolkit-timeline .page { fill: #0d1117 }
  .poolkit-timeline .life, .poolkit-timeline .grid { fill: #30363d; stroke: #30363d }
}
</style>"""
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Run(NamedTuple):
    """One run of a task, in seconds of the pool's clock; `error` is the name of its error's class, None for a value."""

    worker: int
    task: int
    name: str
    attempt: int
    submitted: float
    began: float
    ended: float
    error: str | None

    @property
    def outcome(self) -> str:
        """How it ended, in a word."""
        return outcome_of(self.error)


def outcome_of(error: str | None) -> str:
    """How a run ended that has this error, in a word."""
    return _WORDS.get(error, "failed")


_WORDS = {None: "succeeded", "poolkit.errors.TaskCancelled": "cancelled", "poolkit.errors.WorkerCrashed": "crashed"}


class Happening(NamedTuple):
    """A worker has started (with its process id), or is gone: why, and by which signal or exit code."""

    time: float
    worker: int
    what: str
    more: object


class Load(NamedTuple):
    """How much there is to do from now on: tasks that are not settled, and workers that are busy."""

    time: float
    unsettled: int
    busy: int

    @property
    def queued(self) -> int:
        """How many tasks wait."""
        return max(0, self.unsettled - self.busy)


def draw(
    pool: str,
    window: tuple[float, float],
    runs: Sequence[Run],
    happenings: Sequence[Happening],
    loads: Sequence[Load],
) -> str:
    """Return the picture of what happened between the two times of `window`, as SVG of at most 2,000 shapes."""
    scene = _Scene(*window)
    by_worker: dict[int, list[Run]] = {happening.worker: [] for happening in happenings}
    for run in runs:
        by_worker.setdefault(run.worker, []).append(run)
    busy = {worker: sum(scene.seconds(run.began, run.ended) for run in its) for worker, its in by_worker.items()}
    workers = sorted(sorted(by_worker, key=lambda worker: (-busy[worker], worker))[:ROWS])
    lives = {worker: scene.life(worker, happenings) for worker in by_worker}
    colours, legend = _colours(runs)
    share = sum(busy.values()) / (sum(scene.seconds(*life) for life in lives.values()) or 1.0)

    top = 64
    scene.text(0, 16, _words(pool, scene.length, runs), size=14)
    hidden = "" if len(workers) == len(by_worker) else f", of which the {ROWS} busiest are shown"
    scene.text(0, 34, f"{len(by_worker)} workers{hidden}, {share:.0%} busy")
    bottom = top + ROW * len(workers) + QUEUE + 12
    scene.axis(top - 8, bottom)
    one_by_one = len(runs) <= SHAPES
    for number, worker in enumerate(workers):
        y, its = top + ROW * number, by_worker[worker]
        scene.text(0, y + 13, f"worker {worker}")
        scene.rect(lives[worker], y, BAR, "#eeeeee", "", "life")
        if one_by_one:
            for run in its:
                scene.rect((run.began, run.ended), y, BAR, colours[run.name], _title(run), "run")
        else:
            scene.bins(its, y, SHAPES // len(workers), colours)
        failed = [run for run in its if run.outcome not in {"succeeded", "cancelled"}]
        scene.marks(y, f"m0 {BAR - 5}v8", "#d62728", "failed", [(run.ended, _title(run)) for run in failed])
        deaths = [each for each in happenings if each.worker == worker and each.what not in _PLANNED]
        cross = f"m-5 {BAR // 2 - 5}l10 10m0 -10l-10 10"
        scene.marks(y, cross, "#d62728", "death", [(each.time, f"worker {worker}: {_cause(each)}") for each in deaths])
        life = scene.seconds(*lives[worker])
        scene.text(WIDTH, y + 13, f"{busy[worker] / life if life else 0.0:.0%} busy", anchor="end")
    scene.queue(loads, bottom - QUEUE)
    for number, (name, colour, words) in enumerate(legend):
        y = bottom + 34 + 20 * number
        scene.add(f'<rect x="{LEFT}" y="{y - 10}" width="12" height="12" fill="{colour}"/>')
        scene.text(LEFT + 20, y, f"{name}: {words}")
    return scene.svg(bottom + 40 + 20 * len(legend))


_PLANNED = {"started", "stopped", "recycled", "shrunk", "idle", "shutdown"}


def _cause(death: Happening) -> str:
    return f"{death.what}, {death.more}" if death.what == "crashed" else f"killed: {death.what}"


def _title(run: Run) -> str:
    error = "" if run.error is None else f", {run.error}"
    attempt = "" if run.attempt == 1 else f", attempt {run.attempt}"
    times = f"{_time(run.ended - run.began)} after {_time(max(0.0, run.began - run.submitted))} of waiting"
    return f"{run.name}, task {run.task}{attempt}: {run.outcome}{error}; {times}"


def _words(pool: str, length: float, runs: Sequence[Run]) -> str:
    found = {outcome: sum(run.outcome == outcome for run in runs) for outcome in ("failed", "cancelled", "crashed")}
    words = [
        f"{pool}: {len(runs)} runs in {_time(length)}",
        *(f"{found[each]} {each}" for each in found if found[each]),
    ]
    return ", ".join(words)


def _colours(runs: Sequence[Run]) -> tuple[dict[str, str], list[tuple[str, str, str]]]:
    """The colour of each function, by the time that it took; and the legend."""
    seconds: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for run in runs:
        seconds[run.name] += run.ended - run.began
        counts[run.name] += 1
    names = sorted(seconds, key=lambda name: (-seconds[name], name))
    last = len(COLOURS) - 1
    colours = {name: COLOURS[min(number, last)] for number, name in enumerate(names)}
    legend = [
        (name, colours[name], f"{counts[name]} {'run' if counts[name] == 1 else 'runs'}, {_time(seconds[name])}")
        for name in names[:last]
    ]
    if others := names[last:]:
        took = _time(sum(seconds[name] for name in others))
        runs_of = sum(counts[name] for name in others)
        legend.append((f"{len(others)} others", COLOURS[-1], f"{runs_of} runs, {took}"))
    return colours, legend


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size or not seconds:
            return f"{seconds / size:.3g} {unit}" if seconds < 1000 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds / 1e-6:.3g} us"


class _Scene:
    """The shapes drawn so far, and where a time lies."""

    def __init__(self, began: float, ended: float) -> None:
        self.began = began
        self.length = max(ended - began, 1e-6)
        self.ended = began + self.length
        self._shapes: list[str] = []

    def add(self, shape: str) -> None:
        self._shapes.append(shape)

    def seconds(self, began: float, ended: float) -> float:
        """How long that is, as far as the picture shows it."""
        return max(0.0, min(ended, self.ended) - max(began, self.began))

    def x(self, time: float) -> float:
        share = (min(max(time, self.began), self.ended) - self.began) / self.length
        return round(LEFT + (RIGHT - LEFT) * share, 2)

    def life(self, worker: int, happenings: Iterable[Happening]) -> tuple[float, float]:
        """From when until when a worker was there."""
        began, ended = self.began, self.ended
        for happening in happenings:
            if happening.worker == worker and happening.what == "started":
                began = happening.time
            elif happening.worker == worker:
                ended = happening.time
        return began, ended

    def text(self, x: float, y: float, words: str, *, size: int = 12, anchor: str = "start") -> None:
        words = words if len(words) < 140 else f"{words[:139]}…"  # noqa: PLR2004 -- what has room
        self.add(f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}">{_escaped(words)}</text>')

    def rect(self, span: tuple[float, float], y: float, height: float, colour: str, title: str, kind: str) -> None:
        x = self.x(span[0])
        width = max(round(self.x(span[1]) - x, 2), 0.5)
        words = f"<title>{_escaped(title)}</title>" if title else ""
        place = f'x="{x}" y="{y:g}" width="{width:g}" height="{height:g}"'
        self.add(f'<rect class="{kind}" {place} fill="{colour}">{words}</rect>')

    def bins(self, runs: Iterable[Run], y: int, count: int, colours: dict[str, str]) -> None:
        """Draw how busy a worker was in each of so many pieces of time."""
        count = min(count, RIGHT - LEFT)
        step = self.length / count
        found: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for run in runs:
            began, ended = max(run.began, self.began), min(run.ended, self.ended)
            for piece in range(int((began - self.began) / step), min(count - 1, int((ended - self.began) / step)) + 1):
                start = self.began + piece * step
                found[piece][colours[run.name]] += max(0.0, min(ended, start + step) - max(began, start))
        for piece, times in found.items():
            share = min(1.0, sum(times.values()) / step)
            height = round(BAR * share, 1)
            start = self.began + piece * step
            colour = max(times, key=lambda colour: times[colour])
            self.rect((start, start + step), y + BAR - height, height, colour, f"{share:.0%} busy", "run")

    def marks(self, y: int, mark: str, colour: str, kind: str, found: list[tuple[float, str]]) -> None:
        """Draw the same mark at each of these times, as one shape; it says what the first ones are."""
        places = "".join(f"M{x} {y}{mark}" for x in sorted({round(self.x(time)) for time, _ in found}))
        if places:
            title = _escaped("\n".join(words for _, words in found[:20]))
            shape = f'd="{places}" stroke="{colour}" stroke-width="2" fill="none"'
            self.add(f'<path class="{kind}" {shape}><title>{title}</title></path>')

    def axis(self, top: int, bottom: int) -> None:
        step = 10.0 ** int(f"{self.length:e}".partition("e")[2])
        step = next(step * part for part in (0.1, 0.2, 0.5, 1.0, 2.0) if self.length <= 8 * step * part or part == 2.0)  # noqa: PLR2004
        for number in range(int(self.length / step) + 1):
            x = self.x(self.began + number * step)
            self.add(f'<path class="grid" d="M{x} {top}V{bottom}" stroke="#dddddd"/>')
            self.text(x, top - 2, _time(number * step), size=10, anchor="middle")

    def queue(self, loads: Iterable[Load], top: int) -> None:
        """Draw how many tasks waited; where that changed within a pixel, the most."""
        deepest: dict[int, int] = {}
        for load in loads:
            x = round(self.x(load.time))
            deepest[x] = max(deepest.get(x, 0), load.queued)
        most = max(deepest.values(), default=0)
        self.text(0, top + 13, "queued")
        self.text(WIDTH, top + 13, f"at most {most}", anchor="end")
        points = [f"{x} {round(top + QUEUE - QUEUE * deepest[x] / (most or 1), 1)}" for x in sorted(deepest)]
        if points:
            line = f"M{points[0].split()[0]} {top + QUEUE}L{' '.join(points)}L{RIGHT} {top + QUEUE}Z"
            self.add(f'<path class="queue" d="{line}" fill="#4e79a7" fill-opacity="0.35"/>')

    def svg(self, height: int) -> str:
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-10 -4 {WIDTH + 20} {height}" width="{WIDTH + 20}"'
        back = f'<rect class="page" x="-10" y="-4" width="{WIDTH + 20}" height="{height}" fill="#ffffff"/>'
        font = 'class="poolkit-timeline" font-family="system-ui, sans-serif" fill="#222222"'
        return "\n".join([f"{head} {font}>", DARK, back, *self._shapes, "</svg>\n"])


def _escaped(words: str) -> str:
    return escape(NOT_XML.sub("\N{REPLACEMENT CHARACTER}", words))
