"""Calls that a coroutine awaits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial

from benchmarks.calls import PIPES, WORKERS, opened
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


def awaiting_in_trio(name: str, sized: Sized) -> Figures:
    """The same calls in a nursery of trio, and for comparison gathered in asyncio."""
    one_by_one, together = sized(1_000), sized(2_000)
    if name == "trio-parallel":
        return _timed_in_trio(None, one_by_one, together)
    contender = opened(name)
    timed = _timed_in_asyncio if name == "poolkit-asyncio" else _timed_in_trio
    figures = timed(partial(contender.pool.submit, noop), one_by_one, together)
    contender.close()
    return figures


def _timed_in_trio(submit: Callable[[], Awaitable[None]] | None, one_by_one: int, together: int) -> Figures:
    import trio

    async def run() -> Figures:
        call = submit
        if call is None:
            import trio_parallel

            call = partial(trio_parallel.run_sync, noop, limiter=trio.CapacityLimiter(WORKERS))

        async def one() -> None:
            await call()

        async def all_of(count: int) -> None:
            async with trio.open_nursery() as nursery:
                for _ in range(count):
                    nursery.start_soon(one)

        await all_of(100)
        started = time.perf_counter()
        for _ in range(one_by_one):
            await call()
        between = time.perf_counter()
        await all_of(together)
        return _figures(started, between, one_by_one, together)

    figures: Figures = trio.run(run)
    return figures


def _timed_in_asyncio(submit: Callable[[], Awaitable[None]], one_by_one: int, together: int) -> Figures:
    async def run() -> Figures:
        await asyncio.gather(*[submit() for _ in range(100)])
        started = time.perf_counter()
        for _ in range(one_by_one):
            await submit()
        between = time.perf_counter()
        await asyncio.gather(*[submit() for _ in range(together)])
        return _figures(started, between, one_by_one, together)

    return asyncio.run(run())


def _figures(started: float, between: float, one_by_one: int, together: int) -> Figures:
    ended = time.perf_counter()
    return {"one": (between - started) / one_by_one * 1e6, "together": (ended - between) / together * 1e6}


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
    Measure(
        "trio",
        "await of noop in trio, 2 workers",
        ("poolkit", "trio-parallel", "poolkit-asyncio"),
        (
            Row(
                "one",
                "a call, 1,000 one after the other",
                "us",
                {"trio-parallel": "2", "poolkit-asyncio": "no more than 1.5 times slower"},
                PIPES,
            ),
            Row(
                "together",
                "a call, 2,000 in a nursery",
                "us",
                {"trio-parallel": "2", "poolkit-asyncio": "no more than 1.5 times slower"},
            ),
        ),
        awaiting_in_trio,
    ),
)
