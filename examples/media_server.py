"""Serve conversions of videos by ffmpeg: two at a time, eight may wait, and whoever leaves takes his ffmpeg along.

    POST /convert?format=mp4&timeout=120   a form with a file; its progress, as server-sent events
    POST /picture                          a video as the body; its first picture, made without a file
    GET  /stream/NAME                      what was made, at the speed of a player, as ffmpeg writes it
    GET  /system-info                      what a line for the shell says of this machine
    GET  /health                           how many conversions run, and how many wait

No argument is ever seen by a shell, but for that line, which nobody can change. A full queue is a 503, a file that
ffmpeg cannot read a 422 with ffmpeg's last word, a conversion that takes too long a 504, or an event if it had begun.

`--load` starts the server on a free port, has clients use and abuse it, and says what came of it.
Needs what `pip install 'poolkit[examples]'` brings, and ffmpeg on the PATH or that of imageio-ffmpeg.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import shutil
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

import poolkit


def find_ffmpeg() -> str:
    """Return the ffmpeg of the PATH, else that of imageio-ffmpeg. Ends the program where there is none."""
    if found := shutil.which("ffmpeg"):
        return found
    with contextlib.suppress(ImportError, RuntimeError):
        import imageio_ffmpeg  # noqa: PLC0415 -- only for those who have no other

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    sys.exit("there is no ffmpeg: install it by your system's package manager, or `pip install imageio-ffmpeg`")


# ===== the server =====

FFMPEG = find_ffmpeg()
FORMATS = {"mkv", "mp4", "webm"}

pool = poolkit.Pool(2, kind="thread", max_queue=8)  # two conversions at a time, eight may wait
impatient = pool.options(block=False)  # a full queue is an error


async def convert(request: Request) -> Response:
    """Convert an upload. The response begins when ffmpeg has begun, and is its progress."""
    wanted = request.query_params.get("format", "mp4")
    if wanted not in FORMATS:
        raise HTTPException(400, f"format must be one of {', '.join(sorted(FORMATS))}")
    try:
        limited = impatient.options(timeout=min(float(request.query_params.get("timeout", "120")), 120.0))
    except ValueError as error:
        raise HTTPException(400, f"timeout: {error}") from error
    source = await uploaded(request)
    target = source.with_suffix(f".{wanted}")
    length = Length()
    try:
        command = await limited.run_async(
            [FFMPEG, "-i", source, "-stats_period", "0.1", "-progress", "pipe:1", target],
            text=True,
            stdout="lines",
            on_stderr=length.read,  # it is kept for the errors all the same
            grace=1.0,
        )
    except BaseException:
        source.unlink()
        raise

    def tidy(_: object) -> None:
        source.unlink()
        if command.cancelled() or command.exception() or command.result().returncode:
            target.unlink(missing_ok=True)

    command.add_done_callback(tidy)
    lines = aiter(command)
    await anext(lines)  # it has begun; or this raises, and the status says why
    # When the client leaves, the generator is cancelled, and then ffmpeg is stopped.
    events = follow(command, lines, length, target)
    return StreamingResponse(events, media_type="text/event-stream", background=BackgroundTask(command.stop))


async def follow(
    command: poolkit.Command[str], lines: AsyncIterator[str], length: Length, target: Path
) -> AsyncIterator[str]:
    """Make events of what ffmpeg says of its progress, and of its end."""
    progress = 0.0
    try:
        async for line in lines:
            name, _, value = line.partition("=")
            if name == "out_time_us" and value.isdigit() and length.seconds:
                progress = max(progress, min(1.0, int(value) / 1e6 / length.seconds))  # ffmpeg's goes back at times
                yield event(progress=progress)
        done = await command
        yield event(progress=1.0, done=target.name, peak_rss=done.peak_rss)
    except (poolkit.CommandFailed, poolkit.TaskTimeout) as error:  # the status is sent, so this is an event, too
        yield event(error=type(error).__name__, message=str(error))


class Length:
    """How long a video is, once ffmpeg has said so."""

    seconds = 0.0

    def read(self, line: str) -> None:
        """Look at a line of ffmpeg's standard error."""
        if found := re.search(r"Duration: (\d+):(\d+):([\d.]+)", line):
            hours, minutes, seconds = map(float, found.groups())
            self.seconds = hours * 3600 + minutes * 60 + seconds


async def picture(request: Request) -> Response:
    """Return the first picture of an upload."""
    command = await impatient.run_async(
        [FFMPEG, "-i", "pipe:0", "-frames:v", "1", "-f", "image2pipe", "-c:v", "png", "pipe:1"],
        input=await request.body(),
        timeout=10,
    )
    return Response((await command).stdout, media_type="image/png")


async def stream(request: Request) -> Response:
    """Send what was made as ffmpeg writes it, at the speed of a player."""
    path: Path = request.app.state.folder / request.path_params["name"]  # a name, as the route takes no slash
    if not path.is_file():  # noqa: ASYNC240 -- as quick as it gets
        raise HTTPException(404)
    command = poolkit.spawn([FFMPEG, "-re", "-i", path, "-c", "copy", "-f", "matroska", "pipe:1"])
    return StreamingResponse(command.chunks(), media_type="video/x-matroska", background=BackgroundTask(command.stop))


async def system_info(_: Request) -> Response:
    """Say what a shell says."""
    line = "uname -sr; cat /proc/loadavg; df -h . | tail -1"
    command = poolkit.run(line, shell=True, text=True, timeout=5)  # noqa: S604 -- nobody can change that line
    return PlainTextResponse((await command).stdout)


async def health(_: Request) -> Response:
    """Say how much there is to do."""
    stats = pool.stats()
    return JSONResponse({"running": stats.running, "queued": stats.queued})


async def uploaded(request: Request) -> Path:
    """Store the file of a form, under a name of ours."""
    async with request.form() as form:
        upload = form.get("file")
        if not isinstance(upload, UploadFile):
            raise HTTPException(400, "the form has no file")
        path: Path = request.app.state.folder / f"{uuid.uuid4()}.upload"
        with path.open("wb") as target:
            await asyncio.to_thread(shutil.copyfileobj, upload.file, target)
    return path


def event(**facts: object) -> str:
    """Make a server-sent event."""
    return f"data: {json.dumps(facts)}\n\n"


async def busy(_request: Request, _error: Exception) -> Response:
    """The queue is full."""
    return PlainTextResponse("busy", 503, {"Retry-After": "1"})


async def unreadable(_request: Request, error: Exception) -> Response:
    """Say what ffmpeg said last."""
    return PlainTextResponse(str(error).splitlines()[-1], 422)


async def too_slow(_request: Request, error: Exception) -> Response:
    """A limit has passed before there was anything to send."""
    return PlainTextResponse(str(error), 504)


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Keep what is uploaded and made as long as the server runs."""
    with tempfile.TemporaryDirectory(prefix="media-server-") as folder:
        app.state.folder = Path(folder)
        async with pool:
            yield


app = Starlette(
    routes=[
        Route("/convert", convert, methods=["POST"]),
        Route("/picture", picture, methods=["POST"]),
        Route("/stream/{name}", stream),
        Route("/system-info", system_info),
        Route("/health", health),
    ],
    exception_handlers={
        poolkit.QueueFull: busy,
        poolkit.CommandFailed: unreadable,
        poolkit.TaskTimeout: too_slow,
    },
    lifespan=lifespan,
)


# ===== the load =====


class Load:
    """Clients of the server, and what they have seen."""

    def __init__(self, client: httpx.AsyncClient, folder: Path, clip: bytes) -> None:
        self.client, self.folder, self.clip = client, folder, clip
        self.failures = 0
        self.most = 0  # conversions that were seen at once

    def check(self, holds: object, text: str) -> None:
        """Print what was to be seen, and whether it was."""
        print(f"{'ok   ' if holds else 'WRONG'} {text}")
        self.failures += not holds

    def alive(self) -> int:
        """Count the programs that work in the server's folder."""
        count = 0
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                command = path.read_bytes()
                count += command.startswith(f"{FFMPEG}\0".encode()) and str(self.folder).encode() in command
        return count

    async def convert(self, wanted: str, *, clip: bytes = b"", leaves: bool = False, timeout: float = 60.0) -> Any:
        """Convert a clip. Returns the events, or the response where that has none."""
        events = []
        url, files = f"/convert?format={wanted}&timeout={timeout}", {"file": clip or self.clip}
        async with self.client.stream("POST", url, files=files) as response:
            if response.status_code != httpx.codes.OK:
                await response.aread()
                return response
            async for line in response.aiter_lines():
                if line:
                    events.append(json.loads(line.removeprefix("data: ")))
                if events and leaves:
                    break
        return events

    async def until(self, **wanted: int) -> None:
        """Wait until so many conversions run, and so many wait."""
        while (await self.client.get("/health")).json() != wanted:  # noqa: ASYNC110 -- as a client does
            await asyncio.sleep(0.01)

    async def nobody(self, who: str) -> None:
        """Check that no program is there any more within three seconds."""
        began = time.monotonic()
        while (count := self.alive()) and time.monotonic() < began + 3:  # noqa: ASYNC110 -- as for `until`
            await asyncio.sleep(0.01)
        self.check(not count, f"{who}: no ffmpeg is left {time.monotonic() - began:.2f} s later")

    async def watch(self) -> None:
        """Count, again and again."""
        while True:
            self.most = max(self.most, self.alive())
            await asyncio.sleep(0.02)

    async def convert_many(self) -> list[Path]:
        """Ask for eight conversions, two that fail, and one too many, all at a time. Returns the files of the eight."""
        watching = asyncio.create_task(self.watch())
        asked = [asyncio.create_task(self.convert("webm")) for _ in range(2)]  # which take longest
        await asyncio.wait_for(self.until(running=2, queued=0), 10)
        asked += [asyncio.create_task(self.convert("mp4")) for _ in range(6)]
        broken = asyncio.create_task(self.convert("mp4", clip=b"no video"))
        slow = asyncio.create_task(self.convert("webm", timeout=0.2))
        await asyncio.wait_for(self.until(running=2, queued=8), 10)
        refused = await self.convert("mp4")
        self.check(refused.status_code == httpx.codes.SERVICE_UNAVAILABLE, f"the eleventh: {refused!r} {refused.text}")
        made = []
        for events in await asyncio.gather(*asked):
            progress = [each["progress"] for each in events]
            made.append(self.folder / events[-1]["done"])
            text = ", ".join(f"{each:.0%}" for each in progress)
            self.check(progress == sorted(progress) and progress[-1] == 1.0, f"{made[-1].suffix} {text}")
        unreadable = await broken
        holds = unreadable.status_code == httpx.codes.UNPROCESSABLE_ENTITY
        self.check(holds and "Invalid data" in unreadable.text, f"no video: {unreadable!r} {unreadable.text}")
        late = await slow
        text = late.text if isinstance(late, httpx.Response) else late[-1].get("message", "")
        self.check("timeout" in text, f"a limit of 0.2 s: {text}")
        watching.cancel()
        self.check(self.most == pool.max_workers, f"at most {self.most} conversions were seen at a time")
        return made

    async def look_into(self, made: list[Path]) -> None:
        """Have ffmpeg say what the files are that it made."""
        names = {".mp4": "mov,mp4", ".webm": "matroska,webm"}
        looks = [poolkit.run([FFMPEG, "-i", path], text=True, check={1}) for path in made]  # 1, as it wants an output
        for path, look in zip(made, looks, strict=True):
            seen = (await look).stderr
            holds = f"Input #0, {names[path.suffix]}" in seen and "320x180" in seen and "Duration: 00:00:03" in seen
            self.check(holds, f"{path.suffix} of {path.stat().st_size} bytes")

    async def leave(self, made: Path) -> None:
        """Go away in the middle of things."""
        last = (await self.convert("webm", leaves=True))[-1]
        self.check("done" not in last, f"left at {last['progress']:.0%}")
        await self.nobody("left in a conversion")
        began = time.monotonic()
        async with self.client.stream("GET", f"/stream/{made.name}") as response:
            async for chunk in response.aiter_raw():
                self.check(self.alive() == 1, f"{len(chunk)} bytes of 3 s came after {time.monotonic() - began:.2f} s")
                break
        await self.nobody("left in a stream")

    async def look_around(self) -> None:
        """Use what else there is."""
        picture = await self.client.post("/picture", content=self.clip)
        self.check(picture.content.startswith(b"\x89PNG"), f"a picture of {len(picture.content)} bytes, without a file")
        broken = await self.client.post("/picture", content=b"no video")
        self.check(broken.status_code == httpx.codes.UNPROCESSABLE_ENTITY, f"no picture: {broken!r} {broken.text}")
        system = await self.client.get("/system-info")
        self.check("Linux" in system.text, system.text.partition("\n")[0])


async def put_under_load(url: str) -> int:
    """Use the server as clients do; returns how often it was wrong."""
    films = ["-f", "lavfi", "-i", "testsrc=duration=3:size=320x180:rate=15", "-f", "lavfi", "-i", "sine=duration=3"]
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        (await client.get("/health")).raise_for_status()  # it is up
        folder: Path = app.state.folder
        await poolkit.run([FFMPEG, *films, "-c:v", "mpeg4", folder / "clip.mkv"])
        load = Load(client, folder, (folder / "clip.mkv").read_bytes())
        made = await load.convert_many()
        await load.look_into(made)
        await load.leave(made[0])
        await load.look_around()
    return load.failures


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="0, which is the default, takes a free one")
    parser.add_argument("--load", action="store_true", help="use the server, say what came of it, and stop")
    asked = parser.parse_args()
    with socket.create_server(("127.0.0.1", asked.port)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        print(f"serving on {url}")
        # Connections are kept for longer than clients keep them, or one is closed while it is used again.
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_keep_alive=30))
        if not asked.load:
            with contextlib.suppress(KeyboardInterrupt):
                server.run([listener])
            return
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            failures = asyncio.run(put_under_load(url))
        finally:
            server.should_exit = True
            thread.join()
    if failures:
        sys.exit(f"{failures} checks failed")


if __name__ == "__main__":
    main()
