"""Pools that wait: with many queued tasks, or with none."""

from __future__ import annotations

import os
import time

from benchmarks import proc
from benchmarks.calls import WORKERS, opened
from benchmarks.fifo import Fifo
from benchmarks.functions import hold, noop
from benchmarks.measure import Figures, Measure, Row, Sized

_DEPTHS = (1_000, 10_000, 100_000, 300_000)
_SETTLE_SECONDS = 1.0
_IDLE_SECONDS = 3.0


def queued(name: str, sized: Sized) -> Figures:
    """All workers are held, so that everything stays queued; each depth is told by the last tenth before it."""
    contender = opened(name)
    fifo = Fifo("hold")
    holders = [contender.submit(hold, fifo.path) for _ in range(WORKERS)]
    time.sleep(0.2)
    handles: list[object] = []
    figures: Figures = {}
    cpu: list[float] = []
    before = proc.rss()
    for depth in _DEPTHS:
        last = sized(depth) - sized(depth // 10)
        while len(handles) < last:
            handles.append(contender.submit(noop))
        started, began = time.perf_counter(), time.thread_time()
        while len(handles) < sized(depth):
            handles.append(contender.submit(noop))
        cpu.append((time.thread_time() - began) / sized(depth // 10))
        figures[f"submit {depth}"] = (time.perf_counter() - started) / sized(depth // 10) * 1e6
    figures["growth"] = cpu[-1] / cpu[0]
    figures["bytes"] = (proc.rss() - before) / len(handles)
    fifo.release(WORKERS)
    for handle in holders:
        contender.result(handle)
    fifo.close()
    contender.drop()
    return figures


def idle(name: str, sized: Sized) -> Figures:
    contender = opened(name)
    time.sleep(_SETTLE_SECONDS)
    family = proc.family(os.getpid())
    before = {pid: (proc.switches(pid), proc.cpu_seconds(pid)) for pid in family}
    time.sleep(_IDLE_SECONDS * min(1.0, sized.scale))
    # This process comes last: what it does to read the others is not the pool's.
    order = sorted(family, key=family.__getitem__, reverse=True)
    after = {pid: (proc.switches(pid), proc.cpu_seconds(pid)) for pid in order}
    figures = {"owner": 0.0, "children": 0.0, "grandchildren": 0.0, "cpu": 0.0}
    for pid, generation in family.items():
        figures[("owner", "children", "grandchildren")[min(generation, 2)]] += after[pid][0] - before[pid][0]
        if generation:
            figures["cpu"] += (after[pid][1] - before[pid][1]) * 1e3
    figures["owner"] -= 1  # the sleep of the measurement itself
    contender.close()
    return figures


MEASURES = (
    Measure(
        "queued",
        "300,000 submit(noop) while both workers are held",
        ("poolkit", "ppe-fork", "mp-fork"),
        (
            Row(
                "bytes",
                "owner's memory a task",
                "bytes",
                {"poolkit": "under 420, then 300"},
                words=("smaller", "larger"),
            ),
            *(Row(f"submit {depth}", f"a submit, {depth:,} queued", "us") for depth in _DEPTHS),
            Row(
                "growth",
                "CPU time of a submit, 300,000 against 1,000",
                "times",
                {"poolkit": "under 1.6, then 1.2"},
                words=("flatter", "steeper"),
            ),
        ),
        queued,
    ),
    Measure(
        "idle",
        "an idle pool of 2 for 3 seconds",
        ("poolkit", "ppe-fork", "mp-fork", "pebble", "loky"),
        (
            Row("owner", "wake-ups of the owner", "number", {"poolkit": "0"}, words=("calmer", "busier")),
            Row("children", "of its children (poolkit: the template)", "number", words=("calmer", "busier")),
            Row("grandchildren", "of their children (poolkit: the workers)", "number", words=("calmer", "busier")),
            Row("cpu", "CPU time of all but the owner", "ms", {"poolkit": "0"}, words=("calmer", "busier")),
        ),
        idle,
    ),
)
