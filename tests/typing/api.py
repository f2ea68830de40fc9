"""What type checkers know of the public API. Checked by mypy --strict and by pyright; never run."""

from __future__ import annotations

import multiprocessing
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from concurrent.futures import Executor, Future

import poolkit
from poolkit.dask import DaskPool, NodeInfo


def double(number: int, *, times: int = 1) -> str:
    """A function with a keyword."""
    return str(number * 2 * times)


def submits(pool: poolkit.Pool) -> None:
    """`submit` keeps the signature and the type of the result."""
    task: poolkit.Task[str] = pool.submit(double, 3, times=2)
    future: Future[str] = task
    text: str = future.result()
    pool.submit(double, "3")  # type: ignore[call-overload]
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


def count(stop: int, *, step: int = 1) -> Generator[int, None, str]:
    """A generator function."""
    yield from range(0, stop, step)
    return "counted"


async def count_async(stop: int) -> AsyncIterator[int]:
    """An async generator function."""
    for number in range(stop):
        yield number


async def fetch(url: str) -> bytes:
    """A coroutine function."""
    return url.encode()


class Table:
    """Something with a method that yields."""

    def rows(self, start: int) -> Iterator[tuple[int, str]]:
        """Yields."""
        yield start, "row"


def streams(pool: poolkit.Pool) -> None:
    """A stream keeps the signature, and knows the type of its items."""
    stream: poolkit.Stream[int] = pool.stream(count, 3, step=2)
    one: Iterator[int] = stream
    other: AsyncIterator[int] = pool.options(buffersize=8).stream(count_async, 3)
    rows: poolkit.Stream[tuple[int, str]] = pool.stream(Table().rows, start=1)
    squares: poolkit.Stream[int] = pool.stream(lambda: (number**2 for number in range(3)))
    ranges: poolkit.Stream[int] = pool.stream(range, 3)
    pool.stream(count, "three")  # type: ignore[call-overload]
    pool.stream(len, 3)  # type: ignore[call-overload]
    with stream as same:
        item: int = next(same)
    stream.close(grace=0.5)
    state: str = stream.task.state
    del one, other, rows, squares, ranges, item, state


async def streams_here(pool: poolkit.Pool) -> None:
    """The same in a coroutine."""
    stream: poolkit.Stream[int] = await pool.stream_async(count_async, 3)
    async with stream as same:
        item: int = await anext(same)
        async for item in same:
            print(item)
    await stream.aclose()


async def coroutines(pool: poolkit.Pool) -> None:
    """The task of a coroutine function has what that returns."""
    task: poolkit.Task[bytes] = pool.submit(fetch, "url")
    again: poolkit.Task[bytes] = await pool.submit_async(fetch, "url")
    body: bytes = await task
    del again, body


def talks(task: poolkit.Task[str]) -> None:
    """Messages may be anything."""
    for message in task.messages():
        was_sent: bool = task.send(message)
        print(was_sent)
    dropped: int = task.messages().dropped
    task.on_message(print)
    del dropped


@poolkit.offload
def plain(number: int) -> bytes:
    """An offloaded function."""
    return bytes(number)


@poolkit.offload(timeout=5, memory_limit=None, retries=1, priority=0, kind="process", pool=None, name=None)
def configured(number: int) -> bytes:
    """One with options."""
    return bytes(number)


@poolkit.offload
async def fetched(url: str) -> bytes:
    """An offloaded coroutine function."""
    return url.encode()


@poolkit.offload
def counted(stop: int) -> Generator[int, None, None]:
    """An offloaded generator function."""
    yield from range(stop)


@poolkit.offload
def iterated(stop: int) -> Iterator[int]:
    """One that says less."""
    yield from range(stop)


@poolkit.offload
async def counted_async(stop: int) -> AsyncGenerator[int, None]:
    """An offloaded async generator function."""
    for number in range(stop):
        yield number


@poolkit.offload(buffersize=8)
def configured_stream(stop: int) -> Iterator[int]:
    """One with options."""
    yield from range(stop)


@poolkit.offload(timeout=5)
async def configured_fetch(url: str) -> bytes:
    """And a coroutine function."""
    return url.encode()


def offloads_streams() -> None:
    """Each call of a generator function is a stream; one of a coroutine function is a task of its value."""
    streams: list[poolkit.Stream[int]] = [counted(3), iterated(3), counted_async(3), configured_stream(3)]
    more: poolkit.Stream[int] = counted.options(buffersize=2)(3)
    tasks: list[poolkit.Task[bytes]] = [fetched("url"), configured_fetch("url"), fetched.options(timeout=1)("url")]
    counted("three")  # type: ignore[arg-type]
    here: Iterator[int] = iterated.local(3)
    del streams, more, tasks, here


class Converter:
    """One with offloaded methods."""

    @poolkit.offload
    def convert(self, amount: float) -> str:
        """A method."""
        return str(amount)

    @poolkit.offload
    def amounts(self, count: int) -> Iterator[float]:
        """One that yields."""
        yield float(count)


def offloads_methods(converter: Converter) -> None:
    """Methods keep their signatures, without their object."""
    task: poolkit.Task[str] = converter.convert(1.5)
    here: str = converter.convert.options(timeout=1, priority=2).local(amount=1.5)
    stream: poolkit.Stream[float] = converter.amounts(3)
    of_class: poolkit.Task[str] = Converter.convert(converter, 1.5)
    converter.convert("much")  # type: ignore[arg-type]
    converter.convert.options(time_out=1)  # type: ignore[call-arg]
    del task, here, stream, of_class


def listens(pool: poolkit.Pool, cluster: poolkit.Cluster) -> None:
    """What callbacks get is known by the name of the event."""
    pool.on("task_retried", lambda retried: print(retried.delay + 1.0, retried.task.name))
    pool.on("worker_started", lambda started: print(started.pid))
    cluster.on("worker_ready", lambda info: print(info.generation + 1))
    cluster.on("reloaded", lambda generation: print(generation + 1))


def chooses() -> None:
    """Words are known."""
    poolkit.Pool(kind="thread", start_method=None)
    poolkit.Pool(kind="threads")  # type: ignore[arg-type]
    poolkit.Cluster(print, schedule="sticky", kind="thread")
    poolkit.default_pool("process").submit(print)


def offloads() -> None:
    """The decorator keeps the signature."""
    task: poolkit.Task[bytes] = plain(3)
    again: poolkit.Task[bytes] = configured.options(timeout=1)(3)
    here: bytes = plain.local(3)
    results: poolkit.Results[bytes] = configured.map(range(3))
    plain("three")  # type: ignore[arg-type]
    plain(3, wrong=2)  # type: ignore[call-arg]
    del task, again, here, results


def count_up(port: poolkit.Port, first: int, *, step: int = 1) -> str:
    """What a dedicated worker runs."""
    for message in port:
        port.send(first + step * message)
    return "done"


def works() -> None:
    """A worker takes the arguments of its target, and has its result."""
    with poolkit.Worker(count_up, 3, kind="thread", name="one") as worker:
        worker.send(1)
        number: int = worker.recv(timeout=1.0)
    text: str = worker.task.result()
    poolkit.Worker(count_up, "3")  # type: ignore[arg-type]
    port: poolkit.Port | None = poolkit.current_port()
    worker.on_exit(lambda exited: exited.cause)
    worker.on_message(3)  # type: ignore[arg-type]
    hosting: poolkit.Worker[None] = poolkit.Worker.hosting(dict, a=1)
    call: poolkit.Task[object] = hosting.call("get", "a")
    del number, text, port, call


def on_nodes() -> None:
    """A pool on nodes is a pool: its tasks, results and offloaded calls have the same types."""
    with DaskPool("tls://scheduler:8786", max_nodes=3, by_value=["mine"]) as pool:
        task: poolkit.Task[str] = pool.submit(double, 3, times=2)
        again: poolkit.Task[str] = pool.options(retries=1).submit(double, 3)
        results: poolkit.Results[str] = pool.map(double, range(3))
        coroutine: poolkit.Task[bytes] = pool.submit(fetch, "url")
        shared: poolkit.Shared[list[int]] = pool.broadcast([1])
        node: str | None = task.node
        nodes: list[NodeInfo] = pool.nodes()
        pool.submit(double, "3")  # type: ignore[call-overload]
        with poolkit.use_pool(pool):
            offloaded: list[poolkit.Task[bytes]] = [plain(3), configured(3), plain.options(timeout=1)(3)]
            plain("3")  # type: ignore[arg-type]
        executor: Executor = pool
        general: poolkit.Pool = pool
    del again, results, coroutine, shared, node, nodes, offloaded, executor, general
