"""The cost account of a call: how much CPU time it takes in the caller, in the owner's other threads, in the workers.

Everything runs on one CPU, so that parts do not overlap and nobody spins for long: what one side gives up, the other
gets. CPU time is counted, so what others do on the machine disturbs little; caches are as cold as in real use.
"""

from __future__ import annotations

import os
import time

from benchmarks import proc
from benchmarks.calls import opened
from benchmarks.contenders import Contender
from benchmarks.functions import noop
from benchmarks.measure import Figures, Measure, Row, Sized

_CALLS = 3_000


def account(name: str, sized: Sized) -> Figures:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # before there are workers, which inherit it
    contender = opened(name)
    _account(contender, sized(_CALLS // 10))
    figures = _account(contender, sized(_CALLS))
    contender.close()
    return figures


def _account(contender: Contender, count: int) -> Figures:
    """Microseconds a call, in each part."""
    clock = time.thread_time
    reading = _cost_of(count)
    workers = [pid for pid, generation in proc.family(os.getpid()).items() if generation]
    in_submit = in_result = 0.0
    in_workers = -sum(map(proc.cpu_seconds, workers))
    in_owner, started = -time.process_time(), time.perf_counter()
    for _ in range(count):
        before = clock()
        handle = contender.submit(noop)
        between = clock()
        contender.result(handle)
        in_result += clock() - between
        in_submit += between - before
    wall = time.perf_counter() - started
    in_owner += time.process_time()
    in_workers += sum(map(proc.cpu_seconds, workers))
    in_submit -= count * reading
    in_result -= count * reading
    in_owner -= 3 * count * reading
    parts = {
        "submit": in_submit,
        "result": in_result,
        "threads": in_owner - in_submit - in_result,
        "workers": in_workers,
        "total": in_owner + in_workers,
        "wall": wall - 3 * count * reading,
    }
    return {key: seconds / count * 1e6 for key, seconds in parts.items()}


def _cost_of(count: int) -> float:
    """Seconds that one reading of the clock takes; three are part of each call that is measured."""
    clock = time.thread_time
    started = clock()
    for _ in range(count):
        clock()
    return (clock() - started) / count


MEASURES = (
    Measure(
        "account",
        "CPU time of submit(noop).result(), one after the other, all on one CPU, 2 workers",
        ("poolkit", "ppe-fork", "mp-fork"),
        (
            Row("submit", "the caller, in submit", "us", words=None),
            Row("result", "the caller, in result", "us", words=None),
            Row("threads", "the owner's other threads", "us", words=None),
            Row("workers", "the workers", "us", words=None),
            Row("total", "CPU time of a call", "us", words=("less", "more")),
            Row("wall", "wall time of a call, on one CPU", "us"),
        ),
        account,
    ),
)
