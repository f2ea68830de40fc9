"""Work that shows how far it is: what a report of progress costs a task, a bar a map, and a timeline a burst."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from benchmarks.calls import WORKERS, opened
from benchmarks.functions import noop
from benchmarks.measure import Figures, Measure, Row, Sized


def report_progress(count: int, report: Callable[[int, int], object] | None) -> float:
    """Run in a worker: microseconds that a report takes, beyond the loop that it stands in."""
    if report is None:
        import poolkit

        context: Any = poolkit.current_task()
        report = context.progress
    started = time.perf_counter()
    for _ in range(count):
        pass
    between = time.perf_counter()
    for done in range(count):
        report(done, count)
    return (time.perf_counter() - 2 * between + started) / count * 1e6


class Shared:
    """A number of a manager's process, which is how programs report their progress that share nothing else."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def report(self, done: int, _total: int) -> None:
        """Tell it."""
        self._value.value = done


def progress(name: str, sized: Sized) -> Figures:
    contender = opened(name)
    if name == "poolkit":
        took: Any = contender.call(report_progress, sized(1_000_000), None)
    else:
        import multiprocessing

        with multiprocessing.Manager() as manager:
            took = contender.call(report_progress, sized(10_000), Shared(manager.Value("d", 0)).report)
    contender.close()
    return {"report": took}


def bar(name: str, sized: Sized) -> Figures:
    """Shown on a terminal that nobody looks at; what is written to it is read and thrown away."""
    _look_at_a_terminal()
    count = sized(100_000) if name != "tqdm" else sized(5_000)  # which sends one item a message
    figures = {}
    if name != "tqdm":
        contender = opened(name)
        option = "progress_bar" if name == "mpire" else "progress"
        contender.map(noop, range(100))
        contender.pool.map(noop, range(100), **{option: True})  # imports what it needs
        for key, shows in (("without", False), ("with", True)):
            started = time.perf_counter()
            assert len(list(contender.pool.map(noop, range(count), **{option: shows}))) == count
            figures[key] = (time.perf_counter() - started) / count * 1e6
        contender.drop()  # mpire may wait for ever when it closes after a bar
    else:
        import warnings

        from tqdm.contrib import concurrent

        warnings.simplefilter("ignore")  # it warns of what it does by default
        started = time.perf_counter()
        concurrent.process_map(noop, range(count), max_workers=WORKERS)
        figures["with"] = (time.perf_counter() - started) / count * 1e6
    if "without" in figures:
        figures["ratio"] = figures["with"] / figures["without"]
    return figures


def trace(_name: str, sized: Sized) -> Figures:
    """Bursts without and with a timeline, in turn; what is left to be written at the end is told apart."""
    import poolkit

    count = sized(100_000)
    took: dict[str, list[float]] = {"without": [], "with": [], "rest": []}
    used: dict[str, list[float]] = {"without": [], "with": [], "rest": []}

    def timed(kind: str, work: Callable[[], object]) -> None:
        started, began = time.perf_counter(), time.process_time()
        work()
        used[kind].append(time.process_time() - began)
        took[kind].append((time.perf_counter() - started) / count * 1e6)

    def burst() -> None:
        for task in [pool.submit(noop) for _ in range(count)]:
            task.result()

    with tempfile.TemporaryDirectory() as folder, poolkit.Pool(max_workers=WORKERS) as pool:
        pool.warm_up()
        burst()  # the first one is not counted
        for number in range(6):
            for kind in ("without", "with") if number % 2 else ("with", "without"):
                if kind == "without":
                    timed(kind, burst)
                    continue
                timeline = pool.trace(f"{folder}/run.json")
                timed(kind, burst)
                timed("rest", timeline.stop)
    figures = {kind: statistics.median(times) for kind, times in took.items()}
    for key, times in (("ratio", took), ("cpu", used)):
        ratios = [traced / plain for traced, plain in zip(times["with"], times["without"], strict=True)]
        figures[key] = statistics.median(ratios)
    return figures


def _look_at_a_terminal() -> None:
    """Have standard error be one, of a usual width. A program reads it, as a thread would disturb those that fork."""
    import fcntl
    import struct
    import termios

    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    subprocess.Popen(
        [sys.executable, "-c", "import os\nwhile os.read(0, 65536): pass"],
        stdin=ours,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.dup2(theirs, 2)


MEASURES = (
    Measure(
        "progress",
        "1,000,000 reports of progress in a task; ProcessPoolExecutor: 10,000 through a Manager().Value",
        ("poolkit", "ppe-fork"),
        (Row("report", "a report", "us", {"poolkit": "under 0.5", "ppe-fork": "50"}),),
        progress,
    ),
    Measure(
        "bar",
        "map(noop, range(100_000)) with a bar on a terminal, 2 workers; tqdm: process_map, 5,000 items",
        ("poolkit", "tqdm", "mpire"),
        (
            Row("with", "an item, with a bar", "us", {"tqdm": "20"}),
            Row("without", "an item, without", "us", words=None),
            Row("ratio", "with a bar against without", "times", {"poolkit": "under 1.1"}, words=None),
        ),
        bar,
    ),
    Measure(
        "trace",
        "bursts of 100,000 noop(), 2 workers, with a timeline that is written to a file",
        ("poolkit",),
        (
            Row("with", "a task, with a timeline", "us", words=None),
            Row("without", "a task, without", "us", words=None),
            Row("ratio", "with a timeline against without", "times", {"poolkit": "under 1.05"}, words=None),
            Row("cpu", "CPU time of the owner, with against without", "times", words=None),
            Row("rest", "a task, for what is written at the end", "us", words=None),
        ),
        trace,
    ),
)
