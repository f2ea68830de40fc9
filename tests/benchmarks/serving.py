"""A small service that makes thumbnails, asked by 200 at a time: how long its event loop is kept from turning.

The service is an ASGI application in this process; who asks is a program of its own (`client.py`). A coroutine beside
it sleeps for a millisecond, again and again, and notes how much longer that took.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.calls import opened
from benchmarks.functions import thumbnail
from benchmarks.measure import Figures, Measure, Row, Sized

CLIENT = Path(__file__).with_name("client.py")
AT_ONCE = 200
_TICK = 0.001

Work = Callable[[bytes], Awaitable[bytes]]


def serving(name: str, sized: Sized) -> Figures:
    """The service of one contender, asked by a client until all is answered."""
    contender = None if name in {"in-loop", "starlette"} else opened(name)
    own = _Own()
    work: Work
    if name == "poolkit":
        own.watch_loop()

        async def work(picture: bytes) -> bytes:
            task = await own.timed(contender.pool.submit_async(thumbnail, picture))
            made: bytes = await task
            return made

    elif name == "starlette":
        from starlette.concurrency import run_in_threadpool

        work = partial(run_in_threadpool, thumbnail)
    elif contender is None:

        async def work(picture: bytes) -> bytes:
            return thumbnail(picture)

    else:

        async def work(picture: bytes) -> bytes:
            return await asyncio.get_running_loop().run_in_executor(contender.pool, thumbnail, picture)

    figures = asyncio.run(_serve(work, sized(1_000), own))
    if contender is not None:
        contender.close()
    if name == "poolkit":
        figures |= {"own": own.longest * 1e3, "own cpu": own.longest_cpu * 1e3}
    return figures


async def _serve(work: Work, count: int, own: _Own) -> Figures:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.responses import Response
    from starlette.routing import Route

    async def answer(request: Any) -> Response:
        return Response(await work(await request.body()), media_type="image/jpeg")

    app = Starlette(routes=[Route("/", answer, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", loop="asyncio"))
    serving = asyncio.ensure_future(server.serve())
    while not server.started:  # noqa: ASYNC110 -- it has no event for that
        await asyncio.sleep(_TICK)
    port = server.servers[0].sockets[0].getsockname()[1]
    await _ask(port, AT_ONCE)  # so that everything is warm
    own.forget()
    lags: list[float] = []
    watching = asyncio.ensure_future(_note_lags(lags))
    seconds = await _ask(port, count)
    watching.cancel()
    server.should_exit = True
    await serving
    lags.sort()
    return {
        "p99": lags[len(lags) * 99 // 100] * 1e3,
        "worst": lags[-1] * 1e3,
        "request": seconds / count * 1e3,
    }


async def _ask(port: int, count: int) -> float:
    """Have a client ask; returns the seconds that all requests took."""
    pictures = str(Path(importlib.util.find_spec("skimage").origin).parent / "data")  # type: ignore[union-attr,arg-type]
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(CLIENT), str(port), str(count), str(AT_ONCE), pictures, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError("the client failed")
    return float(out)


async def _note_lags(lags: list[float]) -> None:
    while True:
        before = time.perf_counter()
        await asyncio.sleep(_TICK)
        lags.append(time.perf_counter() - before - _TICK)


class _Own:
    """How long poolkit's own steps on the loop took, at most."""

    longest = longest_cpu = 0.0

    def forget(self) -> None:
        self.longest = self.longest_cpu = 0.0

    def note(self, started: tuple[float, float]) -> None:
        """A step has ended; by the clock, and by the CPU time of the thread, as others want the CPU as well."""
        clock, cpu = started
        self.longest = max(self.longest, time.perf_counter() - clock)
        self.longest_cpu = max(self.longest_cpu, time.thread_time() - cpu)

    def watch_loop(self) -> None:
        """Time what the loop calls to read results and to hand them over."""
        from poolkit import awaiting

        for name in ("_read", "_empty"):
            setattr(awaiting._Mailbox, name, self._timing(getattr(awaiting._Mailbox, name)))

    def _timing(self, method: Callable[..., None]) -> Callable[..., None]:
        def timed(*args: Any) -> None:
            started = time.perf_counter(), time.thread_time()
            method(*args)
            self.note(started)

        return timed

    async def timed(self, coroutine: Any) -> Any:
        """Wait for a coroutine, and time each of its steps."""
        return await _Steps(coroutine, self)


class _Steps:
    def __init__(self, coroutine: Any, own: _Own) -> None:
        self._coroutine = coroutine
        self._own = own

    def __await__(self) -> Any:
        while True:
            started = time.perf_counter(), time.thread_time()
            try:
                wanted = self._coroutine.send(None)
            except StopIteration as exc:
                return exc.value
            finally:
                self._own.note(started)
            yield wanted


MEASURES = (
    Measure(
        "lag",
        "a service that makes thumbnails for 200 who ask at once, 2 workers",
        ("poolkit", "ppe-fork", "starlette", "in-loop"),
        (
            Row("p99", "the loop is late, 99th percentile", "ms"),
            Row("worst", "the loop is late, at most", "ms"),
            Row("request", "a request", "ms", {"ppe-fork": "1.1"}),
            Row("own", "poolkit's longest step on the loop", "ms", words=None),
            Row("own cpu", "the same, its CPU time", "ms", words=None),
        ),
        serving,
    ),
)
