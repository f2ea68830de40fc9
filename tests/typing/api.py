"""What type checkers know of the public API. Checked by mypy --strict; never run."""

from __future__ import annotations

import multiprocessing
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Executor, Future

import poolkit


def double(number: int, *, times: int = 1) -> str:
    """A function with a keyword."""
    return str(number * 2 * times)


def submits(pool: poolkit.Pool) -> None:
    """`submit` keeps the signature and the type of the result."""
    task: poolkit.Task[str] = pool.submit(double, 3, times=2)
    future: Future[str] = task
    text: str = future.result()
    pool.submit(double, "3")  # type: ignore[arg-type]
    pool.submit(double, 3, wrong=2)  # type: ignore[call-arg]
    executor: Executor = pool.options(timeout=2).options(priority=1, memory_limit=10**9)
    executor.submit(double, 3)
    del text


def makes() -> None:
    """A pool takes what `ProcessPoolExecutor` takes, by position and by name."""
    poolkit.Pool(1, multiprocessing.get_context("spawn"), print, ("hello",)).kill_workers()
    poolkit.Pool(mp_context=multiprocessing.get_context()).terminate_workers()
    poolkit.Pool(1, kind="thread", thread_name_prefix="mine").options(priority=1).kill_workers()
    poolkit.Pool(1, "spawn")  # type: ignore[arg-type]


def shown(pool: poolkit.Pool) -> None:
    """Tasks keep their types under a bar."""
    tasks = [pool.submit(double, 1)]
    for task in poolkit.progress(tasks, desc="doubling"):
        value: str = task.result()
        fraction: float | None = None if task.progress is None else task.progress.fraction
        print(value, fraction)
    results: poolkit.Results[str] = pool.map(double, range(3), progress=True)
    results.close()


def maps(pool: poolkit.Pool) -> None:
    """`map` gives an iterator and an async iterator of results."""
    results: poolkit.Results[str] = pool.map(double, range(3), buffersize=2, ordered=False)
    one: Iterator[str] = results
    other: AsyncIterator[str] = results
    del one, other


def traces(pool: poolkit.Pool) -> None:
    """A trace is a context manager of its own type."""
    with pool.trace("run.json", most=10) as trace:
        kept: poolkit.Trace = trace
    kept.save("run.svg")
    kept.stop()


def broadcasts(pool: poolkit.Pool) -> None:
    """A handle knows the type of its object."""
    shared: poolkit.Shared[list[int]] = pool.broadcast([1])
    wrong: poolkit.Shared[str] = pool.broadcast([1])  # type: ignore[arg-type]
    del shared, wrong


async def awaits(pool: poolkit.Pool) -> str:
    """A task is awaited for its value."""
    task = await pool.submit_async(double, 3)
    return await task


@poolkit.offload
def plain(number: int) -> bytes:
    """An offloaded function."""
    return bytes(number)


@poolkit.offload(timeout=5, memory_limit=None, retries=1, priority=0, kind="process", pool=None, name=None)
def configured(number: int) -> bytes:
    """One with options."""
    return bytes(number)


def offloads() -> None:
    """The decorator keeps the signature."""
    task: poolkit.Task[bytes] = plain(3)
    again: poolkit.Task[bytes] = configured.options(timeout=1)(3)
    here: bytes = plain.local(3)
    results: poolkit.Results[bytes] = configured.map(range(3))
    plain("three")  # type: ignore[arg-type]
    del task, again, here, results
