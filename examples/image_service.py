"""Serve thumbnails: a cluster of two processes for the requests, and a pool in each of them for the pictures.

    POST /thumbnail?width=200&timeout=5   a picture as the body; answered with its thumbnail
    POST /thumbnails?width=200            a form with many; thumbnails as they come, as server-sent events
    GET  /health                          which process answers, and what its pool does

The loops of the requests never work, so they never block. A full queue is a 503, a picture that takes too long a 504,
one that kills its decoder costs its own request, a 422, and nothing else.
The same by the command line: `python -m poolkit serve image_service:app --workers 2`, in this folder.

`--load` starts the service on a free port, has clients upload pictures while a worker of each sort is killed and all
are replaced, and says what came of it; beside that, of the same application that works in its loop, which `--inline`
serves. Needs what `pip install 'poolkit[examples]'` brings.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import importlib.util
import io
import json
import logging
import os
import random
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
from PIL import Image, UnidentifiedImageError
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import poolkit

# ===== the service =====

AT_ONCE = 4  # pictures of one form
TICK = 0.01  # seconds

# Made where this module is imported, which may be before the workers fork, and theirs all the same.
pool = poolkit.Pool(max_queue=8, preload=["image_service"])


@poolkit.offload(timeout=5, block=False, memory_limit=512 << 20)
def thumbnail(data: bytes, width: int) -> bytes:
    """Make a thumbnail."""
    with Image.open(io.BytesIO(data)) as picture:
        picture.thumbnail((width, width))
        made = io.BytesIO()
        picture.convert("RGB").save(made, "WEBP")
    return made.getvalue()


async def in_the_loop(data: bytes, width: int) -> bytes:
    """Make a thumbnail here, as `--inline` does, while nobody else is served."""
    return thumbnail.local(data, width)


def width_of(request: Request) -> int:
    """Return the width that was asked for."""
    text = request.query_params.get("width", "200")
    if not text.isdecimal() or not 1 <= int(text) <= 2000:  # noqa: PLR2004 -- a thumb is no larger
        raise HTTPException(400, "width must be from 1 to 2000")
    return int(text)


async def one(request: Request) -> Response:
    """Make a thumbnail of the body."""
    make = request.app.state.make
    if "timeout" in request.query_params and make is thumbnail:
        try:
            make = thumbnail.options(timeout=min(float(request.query_params["timeout"]), 5.0))
        except ValueError as error:
            raise HTTPException(400, f"timeout: {error}") from error
    return Response(await make(await request.body(), width_of(request)), media_type="image/webp")


async def many(request: Request) -> Response:
    """Make thumbnails of all files of a form."""
    width = width_of(request)
    async with request.form() as form:
        files = [(each.filename, await each.read()) for each in form.getlist("file") if isinstance(each, UploadFile)]
    return StreamingResponse(events(files, width), media_type="text/event-stream")


async def events(files: list[tuple[str | None, bytes]], width: int) -> AsyncIterator[str]:
    """Make an event of each thumbnail once it is there. When the client leaves, this is cancelled, and so are they."""
    places = asyncio.Semaphore(AT_ONCE)

    async def event(name: str | None, data: bytes) -> str:
        facts: dict[str, Any] = {"name": name}
        async with places:
            try:
                facts["webp"] = base64.b64encode(await thumbnail(data, width)).decode()
            except (poolkit.PoolkitError, OSError) as error:
                facts["error"] = str(error).splitlines()[0]
        return f"data: {json.dumps(facts)}\n\n"

    tasks = [asyncio.ensure_future(event(*each)) for each in files]
    try:
        for task in asyncio.as_completed(tasks):
            yield await task
    finally:
        for each in tasks:
            each.cancel()


async def health(_: Request) -> Response:
    """Say who answers."""
    stats = pool.stats()
    pids = [worker.pid for worker in pool.workers()]
    return JSONResponse({"pid": os.getpid(), "pool": pids, "running": stats.running, "queued": stats.queued})


async def busy(_request: Request, _error: Exception) -> Response:
    """The queue is full."""
    return PlainTextResponse("busy", 503, {"Retry-After": "1"})


async def too_slow(_request: Request, error: Exception) -> Response:
    """A limit has passed."""
    return PlainTextResponse(str(error).splitlines()[0], 504)


async def unreadable(_request: Request, error: Exception) -> Response:
    """This is no picture, or one that no decoder survives."""
    logging.getLogger("image_service").warning("%s", error)
    return PlainTextResponse("this picture cannot be read", 422)


class Timing:
    """Tells with each response which process it is of, and how late its loop was at each tick since the last one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._lags: deque[float] = deque(maxlen=500)
        self._watch: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""

        async def send_with_lags(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Worker"] = str(os.getpid())
                headers["Server-Timing"] = ", ".join(f"lag;dur={lag * 1000:.2f}" for lag in self._lags)
                self._lags.clear()
            await send(message)

        if self._watch is None:
            self._watch = asyncio.ensure_future(self._look())
        await self._app(scope, receive, send_with_lags)

    async def _look(self) -> None:
        due = time.perf_counter()
        while True:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            now = time.perf_counter()
            while due <= now:  # a loop that was blocked has missed many
                self._lags.append(now - due)
                due += TICK


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Have the pool run what is offloaded, as long as the application serves."""
    async with pool:
        poolkit.set_default_pool(pool)
        if app.state.make is thumbnail:
            await asyncio.to_thread(pool.warm_up)  # a worker of the cluster is ready when its pool is
        yield


def make_app(make: Callable[[bytes, int], Awaitable[bytes]]) -> Starlette:
    """Make the application, with what makes a thumbnail."""
    app = Starlette(
        routes=[
            Route("/thumbnail", one, methods=["POST"]),
            Route("/thumbnails", many, methods=["POST"]),
            Route("/health", health),
        ],
        exception_handlers={
            poolkit.QueueFull: busy,
            poolkit.TaskTimeout: too_slow,
            poolkit.WorkerCrashed: unreadable,
            poolkit.MemoryLimitExceeded: unreadable,
            UnidentifiedImageError: unreadable,
        },
        lifespan=lifespan,
    )
    app.add_middleware(Timing)
    app.state.make = make
    return app


app = make_app(thumbnail)
inline = make_app(in_the_loop)


def make_cluster(name: str, port: int) -> poolkit.Cluster:
    """Make the cluster: its workers import this module, and this process does not serve."""
    target = poolkit.application(f"image_service:{name}", app_dir=Path(__file__).parent)
    return poolkit.Cluster(target, workers=2, bind=f"127.0.0.1:{port}", grace=10, preload=["image_service"])


# ===== the load =====


class Seen:
    """What clients have seen of one server."""

    def __init__(self) -> None:
        self.answers: Counter[str] = Counter()
        self.failures: list[tuple[str, int | None]] = []  # what, and the process that the connection went to
        self.lags: list[float] = []
        self.workers: set[int] = set()
        self.where: dict[int, int | None] = {}  # the process that each client is connected with; None: not known yet
        self.is_over = False

    def lag(self, percent: int) -> float:
        """How late the loops were, in milliseconds; so many percent of the ticks were less."""
        return sorted(self.lags)[len(self.lags) * percent // 100]

    def take(self, number: int, response: httpx.Response) -> None:
        """Note what a client has got."""
        self.where[number] = worker = int(response.headers["X-Worker"])
        self.workers.add(worker)
        timing = response.headers["Server-Timing"]
        self.lags += [float(each.rpartition("=")[2]) for each in timing.split(", ") if each]
        self.answers[str(response.status_code)] += 1
        if response.status_code not in {httpx.codes.OK, httpx.codes.SERVICE_UNAVAILABLE}:
            self.failures.append((str(response.status_code), worker))


class Load:
    """Clients of the service, and what they have seen."""

    def __init__(self, cluster: poolkit.Cluster, pictures: list[bytes]) -> None:
        self.cluster, self.pictures = cluster, pictures
        self.seen = Seen()
        self._tls = httpx.create_ssl_context()  # which nobody needs, and each client would make
        self.failures = 0
        self.processes: set[int] = set()
        self.own = 0  # clients of the killed worker
        self.calm: list[float] = []  # lags before that

    def check(self, holds: object, text: str) -> None:
        """Print what was to be seen, and whether it was."""
        print(f"{'ok   ' if holds else 'WRONG'} {text}")
        self.failures += not holds

    def client(self) -> httpx.AsyncClient:
        """Make a client, with connections of its own."""
        return httpx.AsyncClient(base_url=self.cluster.url, timeout=20, verify=self._tls)

    async def upload(self, number: int) -> None:
        """Be a client: one picture after the other, on one connection."""
        seen = self.seen
        seen.where[number] = None
        async with self.client() as client:
            while not seen.is_over:
                try:
                    response = await client.post("/thumbnail?width=160", content=random.choice(self.pictures))
                except httpx.HTTPError as error:
                    seen.answers[type(error).__name__] += 1
                    seen.failures.append((type(error).__name__, seen.where[number]))
                    seen.where[number] = None
                    continue
                seen.take(number, response)
                if response.status_code == httpx.codes.SERVICE_UNAVAILABLE:
                    await asyncio.sleep(random.uniform(0.5, 1.5) * float(response.headers["Retry-After"]))

    async def look_around(self) -> None:
        """Use what there is, once."""
        async with self.client() as client:
            small = await client.post("/thumbnail?width=50", content=self.pictures[0])
            self.check(small.content[8:12] == b"WEBP", f"a thumbnail of {len(small.content)} bytes")
            late = await client.post("/thumbnail?timeout=0.001", content=self.pictures[0])
            self.check(late.status_code == httpx.codes.GATEWAY_TIMEOUT, f"a limit of 1 ms: {late!r} {late.text}")
            wrong = await client.post("/thumbnail", content=b"no picture")
            holds = wrong.status_code == httpx.codes.UNPROCESSABLE_ENTITY
            self.check(holds, f"no picture: {wrong!r} {wrong.text}")
            files = [("file", (f"{number}.png", data)) for number, data in enumerate([*self.pictures[:5], b"none"])]
            async with client.stream("POST", "/thumbnails?width=50", files=files) as response:
                lines = [line async for line in response.aiter_lines() if line]
            came = [json.loads(line.removeprefix("data: ")) for line in lines]
            errors = [each["name"] for each in came if "error" in each]
            self.check(len(came) == len(files) and errors == ["5.png"], f"{len(came)} events came, {errors} is none")
            at_once = [client.post("/thumbnail", content=self.pictures[0]) for _ in range(40)]
            codes = Counter(response.status_code for response in await asyncio.gather(*at_once))
            self.check(set(codes) == {200, 503}, f"40 pictures at once: {dict(codes)}")

    async def disturb(self, seconds: float) -> int:
        """Kill a worker of a pool, and one of the cluster, and reload. Returns the id of the second."""
        await asyncio.sleep(seconds / 3)
        while len(self.seen.lags) < 100:  # noqa: ASYNC110, PLR2004 -- enough for a percentile
            await asyncio.sleep(0.01)
        self.calm = [self.seen.lag(percent) for percent in (50, 99)]
        pids: list[int] = []
        while not pids:
            async with self.client() as client:
                pids = (await client.get("/health")).json()["pool"]
        self.processes |= {*pids}
        os.kill(pids[0], signal.SIGKILL)
        await asyncio.sleep(seconds / 6)
        worker = self.cluster.workers()[0].pid
        assert worker is not None  # noqa: S101 -- it serves
        self.own = sum(where in {worker, None} for where in self.seen.where.values())
        os.kill(worker, signal.SIGKILL)
        await asyncio.sleep(seconds / 6)
        await self.cluster.reload_async()
        return worker

    async def endure(self, count: int, seconds: float) -> None:
        """Have clients upload while workers come and go."""
        seen, until = self.seen, time.monotonic() + seconds
        clients = [asyncio.ensure_future(self.upload(number)) for number in range(count)]
        worker = await self.disturb(seconds)
        new = {info.pid for info in self.cluster.workers() if info.generation == 2}  # noqa: PLR2004 -- after one reload
        last = time.monotonic() + 5
        while time.monotonic() < (until if new & seen.workers else last):  # noqa: ASYNC110 -- as clients come to them
            await asyncio.sleep(0.05)
        seen.is_over = True
        await asyncio.gather(*clients)
        crashed = [what for what, _ in seen.failures if what == "422"]
        cut = [what for what, where in seen.failures if what != "422" and where in {worker, None}]
        others = Counter(what for what, where in seen.failures if what != "422" and where not in {worker, None})
        stats = self.cluster.stats()
        print(f"      answers: {dict(seen.answers)}, by {len(seen.workers)} processes")
        self.check(len(crashed) <= 1, f"a worker of a pool was killed: {len(crashed)} request failed of that")
        text = f"a worker of the cluster was killed: {len(cut)} requests of its {self.own} clients were cut"
        self.check(len(cut) <= self.own, text)
        self.check(not others, f"a reload, and all of this: {dict(others)} failed beside these")
        holds = new & seen.workers and stats.crashed == 1
        self.check(holds, f"{stats.started} workers were started, and the last ones have served")
        self.processes |= seen.workers

    async def upload_for(self, count: int, seconds: float) -> None:
        """Have clients upload, and nothing else."""
        clients = [asyncio.ensure_future(self.upload(number)) for number in range(count)]
        await asyncio.sleep(seconds)
        self.seen.is_over = True
        await asyncio.gather(*clients)


async def put_under_load(count: int, seconds: float) -> int:
    """Use the service as clients do, and its rival; returns how often it was wrong."""
    pictures = find_pictures()
    async with make_cluster("app", 0) as cluster:
        load = Load(cluster, pictures)
        await load.look_around()
        await load.endure(count, seconds)
    left = await who_is_left(load.processes)
    load.check(not left, f"stopped: of {len(load.processes)} processes that were seen, {len(left)} are left")
    async with make_cluster("inline", 0) as cluster:
        rival = Load(cluster, pictures)
        await rival.upload_for(count, seconds / 3)
        rivals = [rival.seen.lag(percent) for percent in (50, 99)]
    text = f"the loops were late by {load.calm[0]:.1f} ms (p50), {load.calm[1]:.1f} ms (p99)"
    load.check(load.calm[1] < rivals[1], f"{text}; inline by {rivals[0]:.1f} ms, {rivals[1]:.1f} ms")
    return load.failures


def find_pictures() -> list[bytes]:
    """Return scikit-image's; where there are none, such as look like snow."""
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        return [_snow(width) for width in (500, 550, 600, 650, 700)]
    paths = sorted((Path(found.origin).parent / "data").glob("*.png"))
    return [path.read_bytes() for path in paths if path.stat().st_size in range(100_000, 300_000)]  # photographs


def _snow(width: int) -> bytes:
    data = io.BytesIO()
    Image.effect_noise((width, 480), 80).save(data, "PNG")
    return data.getvalue()


async def who_is_left(processes: set[int]) -> set[int]:
    """Return those that have not ended within three seconds."""
    until = time.monotonic() + 3
    while (left := {pid for pid in processes if Path(f"/proc/{pid}").exists()}) and time.monotonic() < until:  # noqa: ASYNC110, ASYNC240 -- processes of others have no event
        await asyncio.sleep(0.02)
    return left


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="0, which is the default, takes a free one")
    parser.add_argument("--inline", action="store_true", help="make thumbnails in the loops, to see what that does")
    parser.add_argument("--load", action="store_true", help="use the service, say what came of it, and stop")
    parser.add_argument("--clients", type=int, default=40, metavar="N", help="of the load (default: 40)")
    parser.add_argument("--seconds", type=float, default=6.0, metavar="S", help="of the load (default: 6)")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="      %(name)s: %(message)s")
    for name in ("httpx", "uvicorn"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if asked.load:
        failures = asyncio.run(put_under_load(asked.clients, asked.seconds))
        sys.exit(f"{failures} checks failed" if failures else 0)
    cluster = make_cluster("inline" if asked.inline else "app", asked.port)
    print(f"serving on {cluster.url} (pid {os.getpid()})")
    sys.exit(cluster.run())


if __name__ == "__main__":
    main()
