"""Calls that a coroutine awaits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial

from benchmarks.calls import PIPES, opened
from benchmarks.functions import noop
from benchmarks.measure import Figures, Measure, Row, Sized


def awaiting(name: str, sized: Sized) -> Figures:
    """A task of poolkit is awaited itself, a call of another executor through the loop."""
    contender = opened(name)
    executor = contender.pool

    async def run() -> Figures:
        loop = asyncio.get_running_loop()
        call: Callable[[], Awaitable[None]]
        call = partial(executor.submit, noop) if name == "poolkit" else partial(loop.run_in_executor, executor, noop)
        for _ in range(sized(100)):
            await call()
        one_by_one, together = sized(1_000), sized(5_000)
        started = time.perf_counter()
        for _ in range(one_by_one):
            await call()
        between = time.perf_counter()
        await asyncio.gather(*[call() for _ in range(together)])
        ended = time.perf_counter()
        return {"one": (between - started) / one_by_one * 1e6, "gathered": (ended - between) / together * 1e6}

    figures = asyncio.run(run())
    contender.close()
    return figures


MEASURES = (
    Measure(
        "await",
        "await of noop, 2 workers; the others through loop.run_in_executor",
        ("poolkit", "ppe-fork", "loky"),
        (
            Row("one", "a call, 1,000 one after the other", "us", {"ppe-fork": "8, then 12"}, PIPES),
            Row("gathered", "a call, 5,000 gathered", "us", {"ppe-fork": "10, then 12"}),
        ),
        awaiting,
    ),
)
