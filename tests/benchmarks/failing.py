"""Tasks that end badly: how soon the caller knows, and how soon the worker's place serves again.

The other worker is held all the time, so that the next result can only come from that place.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.calls import WORKERS, opened
from benchmarks.contenders import Call, Contender
from benchmarks.fifo import Fifo
from benchmarks.functions import die, hold, hold_the_gil, noop, run_away
from benchmarks.measure import Figures, Measure, Row, Sized

_TIMES = 8
_LIMIT_SECONDS = 0.1
_TICK_SECONDS = 0.1  # some look around that often: episodes begin at all points between two looks, not just after one
Episode = Callable[[Contender, Fifo], "tuple[float | None, float]"]


def _crash(contender: Contender, marks: Fifo, *, answered: bool) -> tuple[float | None, float]:
    doomed = contender.submit(die, marks.path)
    following = contender.submit(noop)
    error = None
    if answered:
        assert contender.error(doomed) is not None
        error = time.perf_counter()
    contender.result(following)
    ended = time.perf_counter()
    died = marks.instant()
    return None if error is None else error - died, ended - died


def _overrun(contender: Contender, marks: Fifo, fn: Call) -> tuple[float | None, float]:
    doomed = contender.submit_limited(_LIMIT_SECONDS, fn, marks.path)
    following = contender.submit(noop)
    assert isinstance(contender.error(doomed), TimeoutError)
    error = time.perf_counter()
    contender.result(following)
    ended = time.perf_counter()
    due = marks.instant() + _LIMIT_SECONDS
    return error - due, ended - due


def _cancel(contender: Contender, marks: Fifo) -> tuple[float | None, float]:
    doomed: Any = contender.submit(run_away, marks.path)
    marks.instant()  # it runs
    following = contender.submit(noop)
    started = time.perf_counter()
    assert doomed.cancel()
    answered = time.perf_counter()
    contender.result(following)
    return answered - started, time.perf_counter() - started


def _repeated(name: str, sized: Sized, episode: Episode) -> Figures:
    """The medians of some episodes, in milliseconds."""
    contender = opened(name)
    holding = Fifo("hold")
    marks = Fifo("mark")
    holder = contender.submit(hold, holding.path)
    for _ in range(WORKERS):  # until nothing but the holder holds
        contender.result(contender.submit(noop))
    found = []
    for number in range(sized(_TIMES)):
        time.sleep(number / _TIMES * _TICK_SECONDS)
        found.append(episode(contender, marks))
    holding.release(1)
    contender.result(holder)
    holding.close()
    marks.close()
    contender.drop()
    figures = {"next": statistics.median(after for _, after in found) * 1e3}
    errors = [error for error, _ in found if error is not None]
    if errors:
        figures["error"] = statistics.median(errors) * 1e3
    return figures


def crash(name: str, sized: Sized) -> Figures:
    # multiprocessing.Pool never answers the task whose worker died.
    return _repeated(name, sized, lambda contender, marks: _crash(contender, marks, answered=name != "mp-fork"))


def timeout(name: str, sized: Sized) -> Figures:
    return _repeated(name, sized, lambda contender, marks: _overrun(contender, marks, run_away))


def timeout_in_c(name: str, sized: Sized) -> Figures:
    return _repeated(name, sized, lambda contender, marks: _overrun(contender, marks, hold_the_gil))


def cancel(name: str, sized: Sized) -> Figures:
    return _repeated(name, sized, _cancel)


MEASURES = (
    Measure(
        "crash",
        "a worker is killed in a task; the other one is busy",
        ("poolkit", "mp-fork", "pebble"),
        (
            Row("error", "until the task's error", "ms"),
            Row("next", "until the next result", "ms", {"mp-fork": "1", "fork": "then under 2.5 times"}, ("fork",)),
        ),
        crash,
    ),
    *(
        Measure(
            measure,
            f"{title} with a limit of 100 ms; the other worker is busy",
            ("poolkit", "pebble"),
            (
                Row("error", "beyond the limit, until the caller's error", "ms", {"poolkit": "under 7.4, then 3"}),
                Row(
                    "next", "beyond the limit, until the next result", "ms", {"poolkit": "under 11, then 8"}, ("fork",)
                ),
            ),
            trial,
        )
        for measure, title, trial in (
            ("timeout", "an endless loop", timeout),
            ("timeout-in-c", "a call into C that keeps the interpreter's lock,", timeout_in_c),
        )
    ),
    Measure(
        "cancel",
        "an endless loop is cancelled; the other worker is busy",
        ("poolkit", "pebble"),
        (
            Row("error", "until cancel() returns", "ms"),
            Row("next", "until the next result", "ms", {"poolkit": "under 8.5, then 6"}, ("fork",)),
        ),
        cancel,
    ),
)
