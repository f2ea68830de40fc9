"""Arrays and bytes, there and back: what it costs to hand large data over.

Only what is measured imports NumPy: this module is imported in every trial, and others measure memory.
"""

from __future__ import annotations

import os
import time
from collections import deque
from typing import Any

from benchmarks import proc
from benchmarks.calls import WORKERS, opened
from benchmarks.contenders import Contender
from benchmarks.functions import echo, look, noop, total
from benchmarks.measure import Figures, Measure, Row, Sized

_LARGE = 8 * 1024 * 1024  # doubles: 64 MiB
_BYTES = 16 * 1024 * 1024
_FLOWING = 1024 * 1024  # doubles: 8 MiB
_FLOW_CALLS = 300
_IN_FLIGHT = 2
_SMALL_KIB = (1, 32, 63, 64, 65, 128)  # 64 KiB is the threshold from which on poolkit takes shared memory
_MIB = 1024 * 1024


def doubles(count: int) -> Any:
    """An array that no copy of zero pages can stand in for."""
    import numpy as np

    return np.random.default_rng(1).random(count)


def time_calls(contender: Contender, fn: Any, argument: object, count: int) -> float:
    """Milliseconds a call, one after the other; the workers have touched their memory before."""
    for _ in range(2 * WORKERS):  # each of them, wherever the calls go
        contender.call(fn, argument)
    started = time.perf_counter()
    for _ in range(count):
        contender.call(fn, argument)
    return (time.perf_counter() - started) / count * 1e3


def argument(name: str, sized: Sized) -> Figures:
    array = doubles(sized(_LARGE))
    contender = opened(name)
    assert contender.call(total, array) == float(array.sum())
    figures = {"sum": time_calls(contender, total, array, sized(10))}
    contender.close()
    return figures


def there_and_back(name: str, sized: Sized) -> Figures:
    array = doubles(sized(_LARGE))
    contender = opened(name)
    found: Any = contender.call(echo, array)
    assert (found == array).all()
    del found  # nobody sees it any more, so that its memory can be used again
    figures = {"echo": time_calls(contender, echo, array, sized(10))}
    contender.close()
    return figures


def large_bytes(name: str, sized: Sized) -> Figures:
    data = os.urandom(sized(_BYTES))
    contender = opened(name)
    assert contender.call(echo, data) == data
    figures = {"echo": time_calls(contender, echo, data, sized(20))}
    contender.close()
    return figures


def small_arrays(name: str, sized: Sized) -> Figures:
    """The sizes take turns: what slows the machine down for a moment hits all of them."""
    contender = opened(name)
    arrays = {kib: doubles(kib * 1024 // 8) for kib in _SMALL_KIB}
    took = dict.fromkeys(_SMALL_KIB, 0.0)
    turns = 5
    for _ in range(turns):
        for kib, array in arrays.items():
            took[kib] += time_calls(contender, echo, array, sized(100)) * 1e3
    contender.close()
    figures = {str(kib): sum_of_turns / turns for kib, sum_of_turns in took.items()}
    figures["64/63"] = figures["64"] / figures["63"]
    figures["65/63"] = figures["65"] / figures["63"]
    return figures


def shared_array(name: str, sized: Sized) -> Figures:
    import poolkit

    if not hasattr(poolkit, "SharedArray"):
        return {}
    contender = opened(name)
    shared: Any = poolkit.SharedArray.copy_of(doubles(sized(_LARGE)))
    count, turns = sized(100), 10
    figures = {"shared": 0.0, "open": 0.0, "empty": 0.0}
    for _ in range(turns):
        figures["empty"] += time_calls(contender, noop, None, count) * 1e3 / turns
        figures["shared"] += time_calls(contender, noop, shared, count) * 1e3 / turns
        figures["open"] += time_calls(contender, look, shared, count) * 1e3 / turns
    contender.close()
    shared.close()
    figures["ratio"] = figures["shared"] / figures["empty"]
    return figures


def flow(name: str, sized: Sized) -> Figures:
    """A first tenth of the calls brings everything to its size; from there on nothing should grow."""
    array = doubles(sized(_FLOWING))
    contender = opened(name)
    arena = _run_flow(contender, array, sized(_FLOW_CALLS // 10))
    before = _memory()
    count = sized(_FLOW_CALLS)
    started = time.perf_counter()
    arena += _run_flow(contender, array, count)
    figures = {"call": (time.perf_counter() - started) / count * 1e3}
    after = _memory()
    contender.close()
    figures["owner"] = (after[0] - before[0]) / _MIB
    figures["others"] = (after[1] - before[1]) / _MIB
    if any(arena):
        figures["arena"] = max(arena) / _MIB
    return figures


def _run_flow(contender: Contender, array: object, count: int) -> list[int]:
    """Keep some calls in flight; returns the bytes of poolkit's arenas after each result, while it is still held."""
    stats = getattr(contender.pool, "stats", None)
    handles: deque[Any] = deque()
    seen = []
    for number in range(count + _IN_FLIGHT):
        if number < count:
            handles.append(contender.submit(echo, array))
        if number >= _IN_FLIGHT - 1 and handles:
            value = contender.result(handles.popleft())
            if stats is not None:
                seen.append(getattr(stats(), "arena_bytes", 0))
            del value
    return seen


def _memory() -> tuple[int, int]:
    """Resident bytes of the owner, and of all its descendants together; shared pages count in each that sees them."""
    descendants = [pid for pid, generation in proc.family(os.getpid()).items() if generation]
    return proc.rss(), sum(map(proc.rss, descendants))


_POOLS = ("poolkit", "ppe-fork", "mp-fork")

MEASURES = (
    Measure(
        "array-argument",
        "an array of 64 MiB as an argument, summed in the worker",
        (*_POOLS, "loky", "joblib"),
        (
            Row(
                "sum",
                "a call, one after the other",
                "ms",
                {"ppe-fork": "13", "memcpy": "then within 1.3"},
                ("memcpy", "memcpy-sum"),
            ),
        ),
        argument,
    ),
    Measure(
        "array-echo",
        "an array of 64 MiB, there and back",
        (*_POOLS, "loky"),
        (
            Row(
                "echo",
                "a call, one after the other",
                "ms",
                {"ppe-fork": "20", "memcpy": "then within 3: two copies, 1.5 each"},
                ("memcpy",),
            ),
        ),
        there_and_back,
    ),
    Measure(
        "bytes",
        "bytes of 16 MiB, there and back",
        (*_POOLS, "loky"),
        (Row("echo", "a call, one after the other", "ms", {"ppe-fork": "3, then 6"}),),
        large_bytes,
    ),
    Measure(
        "array-small",
        "small arrays, there and back, one after the other; 64 KiB is the threshold",
        _POOLS,
        (
            *(
                Row(str(kib), f"a call, {kib} KiB", "us", {"ppe-fork": "5, then 8"} if kib in {1, 64, 128} else {})
                for kib in _SMALL_KIB
            ),
            Row("64/63", "64 KiB against 63 KiB", "times", {"poolkit": "near 1"}, words=None),
            Row("65/63", "65 KiB against 63 KiB", "times", {"poolkit": "near 1"}, words=None),
        ),
        small_arrays,
    ),
    Measure(
        "array-shared",
        "a SharedArray of 64 MiB as an argument, against an empty call",
        ("poolkit",),
        (
            Row("empty", "noop(None)", "us", words=None),
            Row("shared", "noop(shared)", "us", words=None),
            Row("open", "a function that opens its array", "us", words=None),
            Row("ratio", "noop(shared) against noop(None)", "times", {"poolkit": "under 1.5, then 1"}, words=None),
        ),
        shared_array,
    ),
    Measure(
        "array-flow",
        "300 echoes of an array of 8 MiB, 2 in flight",
        _POOLS,
        (
            Row("call", "a call", "ms"),
            Row("arena", "all arenas at their largest", "MiB", {"poolkit": "at most 64"}, words=None),
            Row("owner", "the owner's memory grew by", "MiB", {"poolkit": "near 0"}, words=None),
            Row("others", "that of its processes by", "MiB", {"poolkit": "near 0"}, words=None),
        ),
        flow,
    ),
)
