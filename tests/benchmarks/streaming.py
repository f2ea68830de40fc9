"""What a task gives and gets while it runs: items of a generator, messages both ways."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.calls import opened
from benchmarks.functions import (
    answer,
    arrays,
    closing,
    noop,
    numbers,
    records,
    say,
    stamps,
    stamps_in_bursts,
)
from benchmarks.measure import Figures, Measure, Row, Sized

_QUEUE = 1024  # items that a queue holds, as many as a stream does
_QUEUES = ("mp-queue", "manager-queue")


def _feed(queue: Any, make: Callable[[int], Iterable[object]], count: int) -> None:
    for item in make(count):
        queue.put(item)
    queue.put(None)


def _seconds(name: str, make: Callable[[int], Iterable[object]], count: int, use: Callable[[Any], object]) -> float:
    """Seconds from the first item to the last."""
    with _items(name, make, count) as items:
        next(items)
        started = time.perf_counter()
        for item in items:
            use(item)
        return time.perf_counter() - started


@contextlib.contextmanager
def _items(name: str, make: Callable[[int], Iterable[Any]], count: int) -> Iterator[Iterator[Any]]:
    """What another process makes, as it comes; to be taken to its end."""
    if name == "poolkit":
        contender = opened(name)
        yield contender.pool.stream(make, count)
        contender.close()
        return
    context = multiprocessing.get_context("fork")
    manager = context.Manager() if name == "manager-queue" else None
    queue: Any = context.Queue(_QUEUE) if manager is None else manager.Queue(_QUEUE)
    process = context.Process(target=_feed, args=(queue, make, count))
    process.start()
    yield iter(queue.get, None)
    process.join()
    if manager is not None:
        manager.shutdown()


def _ignore(_item: object) -> None:
    return None


def stream(name: str, sized: Sized) -> Figures:
    count = sized(200_000 if name != "manager-queue" else 20_000)
    return {
        key: _seconds(name, make, count, _ignore) / count * 1e6 for key, make in (("ints", numbers), ("dicts", records))
    }


def stream_arrays(name: str, sized: Sized) -> Figures:
    count = sized(200)
    return {"array": _seconds(name, arrays, count, lambda array: float(array.sum())) / count * 1e3}


def stream_latency(name: str, sized: Sized) -> Figures:
    """From the `yield` to who reads; beside a call and its result, as often."""
    with _items(name, stamps, sized(1000)) as items:
        late = sorted(time.monotonic() - made for made in items)
    figures = {"p50": late[len(late) // 2] * 1e6, "p99": late[len(late) * 99 // 100] * 1e6}
    with _items(name, stamps_in_bursts, sized(100)) as items:
        figures["burst"] = max(time.monotonic() - made for made in items) * 1e3
    if name == "poolkit":
        contender, times = opened(name), []
        for _ in range(sized(1000)):
            time.sleep(0.002)
            started = time.monotonic()
            contender.call(noop)
            times.append(time.monotonic() - started)
        contender.close()
        figures["call"] = sorted(times)[len(times) // 2] * 1e6
        figures["times"] = figures["p50"] / figures["call"]
    return figures


def stream_close(name: str, sized: Sized) -> Figures:
    """How soon the generator's `finally` has run, and the next task on that worker."""
    contender = opened(name)
    ends, nexts = [], []
    path = Path(os.environ.get("TMPDIR", "/tmp"), "closed")  # noqa: S108 -- of this trial alone
    for _ in range(sized(20)):
        items = contender.pool.stream(closing, os.fspath(path))
        for _ in range(10):
            next(items)
        started = time.perf_counter()
        items.close()
        while not path.exists():
            time.sleep(0.0002)
        ends.append(time.perf_counter() - started)
        started = time.perf_counter()
        contender.call(noop)
        nexts.append(time.perf_counter() - started)
        path.unlink()
    contender.close()
    return {"finally": sorted(ends)[len(ends) // 2] * 1e3, "next": sorted(nexts)[len(nexts) // 2] * 1e3}


def messages(name: str, sized: Sized) -> Figures:
    count = sized(100_000)
    if name != "poolkit":
        return {"message": _seconds(name, records, count, _ignore) / count * 1e6}
    contender = opened(name)
    found = contender.submit(say, count).messages()
    next(found)
    started = time.perf_counter()
    left = sum(1 for _ in found)
    seconds = time.perf_counter() - started
    contender.close()
    return {"message": seconds / left * 1e6}


def mail(name: str, sized: Sized) -> Figures:
    """A message to a task, and its answer; beside a call and its result."""
    contender = opened(name)
    count = sized(5000)
    task = contender.submit(answer, count + 1)
    answers = task.messages()
    task.send(0)
    next(answers)
    started = time.perf_counter()
    for number in range(count):
        task.send(number)
        next(answers)
    figures = {"mail": (time.perf_counter() - started) / count * 1e6}
    started = time.perf_counter()
    for _ in range(count):
        contender.call(noop)
    figures["call"] = (time.perf_counter() - started) / count * 1e6
    figures["times"] = figures["mail"] / figures["call"]
    contender.close()
    return figures


MEASURES = (
    Measure(
        "stream",
        "one generator, 200,000 items",
        ("poolkit", *_QUEUES),
        (
            Row("ints", "an int", "us", {"mp-queue": "1.5, then 3", "manager-queue": "10"}),
            Row("dicts", "a record of 4 fields", "us", {"mp-queue": "1.3, then 2"}),
        ),
        stream,
    ),
    Measure(
        "stream-arrays",
        "one generator, 200 arrays of 8 MiB, summed",
        ("poolkit", "mp-queue"),
        (Row("array", "an array", "ms", {"mp-queue": "8"}),),
        stream_arrays,
    ),
    Measure(
        "stream-latency",
        "one generator that yields the time, every 2 ms; and ten times at once, then 50 ms of Python",
        ("poolkit", "mp-queue"),
        (
            Row("p50", "until it is here, median", "us", {"mp-queue": "1"}),
            Row("p99", "until it is here, 99th percentile", "us", {"poolkit": "3000"}),
            Row("call", "a call and its result, every 2 ms, median", "us", words=None),
            Row("times", "the first against that", "times", {"poolkit": "under 1.3 times"}, words=None),
            Row("burst", "of the bursts, the latest", "ms", {"poolkit": "2 beyond the median"}),
        ),
        stream_latency,
    ),
    Measure(
        "stream-close",
        "ten items of an endless generator, then close()",
        ("poolkit",),
        (
            Row("finally", "until its `finally` has run", "ms", {"poolkit": "20"}, words=None),
            Row("next", "the next task on that worker, after that", "ms", {"poolkit": "5"}, words=None),
        ),
        stream_close,
    ),
    Measure(
        "messages",
        "100,000 messages of one task, all taken",
        ("poolkit", "mp-queue"),
        (Row("message", "a message", "us", {"mp-queue": "1.3"}),),
        messages,
    ),
    Measure(
        "mail",
        "task.send, receive, send, messages, one after the other",
        ("poolkit",),
        (
            Row("mail", "a message and its answer", "us", words=None),
            Row("call", "a call and its result", "us", words=None),
            Row("times", "the first against the second", "times", {"poolkit": "under 1.5 times"}, words=None),
        ),
        mail,
    ),
)
