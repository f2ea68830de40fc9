"""Calls that do nothing: what handing them in, running them and reading their results costs."""

from __future__ import annotations

import sys
import time
from typing import Any

from benchmarks.contenders import ENTRIES, Call, Contender
from benchmarks.functions import nap, noop, summary
from benchmarks.measure import Figures, Measure, Row, Sized

WORKERS = 2
PIPES = ("pipe", "pipes", "spin")
_LONG_SECONDS = 2.0
_ARGUMENTS = ("three numbers", (1.0, 2.5, 4.0), 2.0)


def opened(name: str, workers: int = WORKERS) -> Contender:
    """A contender with its workers up."""
    contender = ENTRIES[name].open(workers)
    contender.warm_up(workers)
    return contender


def time_latency(contender: Contender, fn: Call, count: int, *args: object) -> float:
    """Microseconds a call, one after the other."""
    started = time.perf_counter()
    for _ in range(count):
        contender.result(contender.submit(fn, *args))
    return (time.perf_counter() - started) / count * 1e6


def time_burst(contender: Contender, fn: Call, count: int, *args: object) -> float:
    """Microseconds a call, all handed in at once."""
    started = time.perf_counter()
    contender.burst(fn, count, *args)
    return (time.perf_counter() - started) / count * 1e6


def latency(name: str, sized: Sized) -> Figures:
    contender = opened(name)
    time_latency(contender, noop, sized(200))
    figures = {"latency": time_latency(contender, noop, sized(2_000))}
    contender.close()
    return figures


def burst(name: str, sized: Sized) -> Figures:
    contender = opened(name)
    figures = {"burst": time_burst(contender, noop, sized(10_000))}
    contender.close()
    return figures


def arguments(name: str, sized: Sized) -> Figures:
    contender = opened(name)
    assert contender.call(summary, *_ARGUMENTS) == summary(*_ARGUMENTS)
    time_latency(contender, summary, sized(200), *_ARGUMENTS)
    figures = {
        "latency": time_latency(contender, summary, sized(2_000), *_ARGUMENTS),
        "burst": time_burst(contender, summary, sized(10_000), *_ARGUMENTS),
    }
    contender.close()
    return figures


def map_items(name: str, sized: Sized) -> Figures:
    contender = opened(name)
    count = sized(100_000)
    started = time.perf_counter()
    found = contender.map(noop, range(count))
    took = time.perf_counter() - started
    assert len(found) == count
    contender.close()
    return {"map": took / count * 1e6}


def many_workers(name: str, sized: Sized) -> Figures:
    figures = {}
    for workers in (2, 8, 32):
        contender = opened(name, workers)
        figures[str(workers)] = time_burst(contender, noop, sized(10_000))
        contender.close()
    figures["8/2"] = figures["8"] / figures["2"]
    figures["32/2"] = figures["32"] / figures["2"]
    return figures


def of_main(name: str, sized: Sized) -> Figures:
    """The function of `__main__` is the one in `trial.py`, the script that this process runs."""
    main: Any = sys.modules["__main__"]
    contender = opened(name)
    figures = {}
    for key, fn in (("importable", noop), ("main", main.noop_of_main)):
        contender.result(contender.submit(fn))
        figures[f"latency {key}"] = time_latency(contender, fn, sized(1_000))
        figures[f"burst {key}"] = time_burst(contender, fn, sized(5_000))
    for key in ("latency", "burst"):
        figures[f"{key} ratio"] = figures[f"{key} main"] / figures[f"{key} importable"]
    contender.close()
    return figures


def threads(name: str, sized: Sized) -> Figures:
    return {**latency(name, sized), **burst(name, sized)}


def mixed(name: str, sized: Sized) -> Figures:
    """Quick calls of a millisecond, and among the first of them a long one of the same function."""
    count = sized(1_000)
    alone = opened(name, 1)
    started = time.perf_counter()
    for handle in [alone.submit(nap, 0.001) for _ in range(count)]:
        alone.result(handle)
    one_worker = time.perf_counter() - started
    alone.close()

    contender = opened(name)
    for handle in [contender.submit(nap, 0.001) for _ in range(20)]:  # it has learned that the function is quick
        contender.result(handle)
    started = time.perf_counter()
    quick = [contender.submit(nap, 0.001) for _ in range(count // 10)]
    long = contender.submit(nap, _LONG_SECONDS)
    quick += [contender.submit(nap, 0.001) for _ in range(count - count // 10)]
    for handle in quick:
        contender.result(handle)
    two_workers = time.perf_counter() - started
    contender.result(long)
    contender.close()
    return {"quick": two_workers * 1e3, "alone": one_worker * 1e3, "ratio": two_workers / one_worker}


_EVERYBODY = ("poolkit", "ppe-fork", "mp-fork", "pebble", "loky", "mpire")

MEASURES = (
    Measure(
        "latency",
        "submit(noop).result(), one after the other, 2 workers",
        _EVERYBODY,
        (Row("latency", "a call", "us", {"ppe-fork": "9, then 12"}, PIPES),),
        latency,
    ),
    Measure(
        "burst",
        "10,000 submit(noop), then all results, 2 workers",
        (*_EVERYBODY, "joblib"),
        (Row("burst", "a call", "us", {"ppe-fork": "14, then 25", "mp-fork": "4, then 8"}, PIPES),),
        burst,
    ),
    Measure(
        "arguments",
        "a call with three small arguments that returns a small dict, 2 workers",
        _EVERYBODY,
        (
            Row("latency", "a call, one after the other", "us"),
            Row("burst", "a call, 10,000 at once", "us"),
        ),
        arguments,
    ),
    Measure(
        "map",
        "map(noop, range(100_000)), everybody's own chunks, 2 workers",
        ("poolkit", "mp-fork", "mpire", "joblib"),
        (Row("map", "an item", "us", {"mp-fork": "1, then 1.5"}),),
        map_items,
    ),
    Measure(
        "workers",
        "10,000 submit(noop) with 2, 8 and 32 workers",
        ("poolkit", "ppe-fork", "mp-fork"),
        (
            Row("2", "a call, 2 workers", "us"),
            Row("8", "a call, 8 workers", "us"),
            Row("32", "a call, 32 workers", "us"),
            Row("8/2", "8 workers against 2", "times", {"poolkit": "under 1.1, then 1"}, words=None),
            Row("32/2", "32 workers against 2", "times", {"poolkit": "under 1.5, then 1"}, words=None),
        ),
        many_workers,
    ),
    Measure(
        "main",
        "a function of __main__ against an importable one, 2 workers",
        ("poolkit", "ppe-fork", "loky"),
        (
            Row("latency importable", "latency, importable", "us"),
            Row("latency main", "latency, of __main__", "us"),
            Row("latency ratio", "latency, of __main__ against importable", "times", words=None),
            Row("burst importable", "burst of 5,000, importable", "us"),
            Row("burst main", "burst of 5,000, of __main__", "us"),
            Row("burst ratio", "burst, of __main__ against importable", "times", words=None),
        ),
        of_main,
    ),
    Measure(
        "threads",
        "submit(noop) on 2 threads",
        ("poolkit-thread", "threads"),
        (
            Row("latency", "a call, one after the other", "us", {"threads": "0.88, then 1.2"}),
            Row("burst", "a call, 10,000 at once", "us", {"threads": "1.05, then 1.5"}),
        ),
        threads,
    ),
    Measure(
        "mixed",
        "1,000 calls of 1 ms and one of 2 s of the same function, 2 workers",
        ("poolkit", "ppe-fork", "mp-fork"),
        (
            Row("quick", "until all quick results are there", "ms"),
            Row("alone", "the quick ones on one worker alone", "ms", words=None),
            Row("ratio", "the first against the second", "times", {"poolkit": "near 1"}, words=None),
        ),
        mixed,
    ),
)
