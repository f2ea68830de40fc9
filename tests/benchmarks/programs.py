"""Programs that are run: one, many, what they write and read, and how they end."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import poolkit
from benchmarks.measure import Figures, Measure, Row, Sized

_TRUE = ["true"]
_HELD = ["sh", "-c", "echo here; sleep 3 &"]
_STUBBORN = ["sh", "-c", "(trap '' TERM; sleep 60) & sleep 60 & wait; sleep 60"]
_LARGE = 1_500_000_000  # bytes that the owner has


def run(name: str, sized: Sized) -> Figures:
    """One program after the other, in a small process and in a large one."""
    with poolkit.Pool(2, kind="thread") as pool:
        once = _runner(name, pool)
        found = {"run": _median(once, sized(60))}
        ballast = bytearray(sized(_LARGE))
        ballast[::4096] = b"x" * len(ballast[::4096])
        return {**found, "large": _median(once, sized(30))}


def _runner(name: str, pool: poolkit.Pool) -> Callable[[], object]:
    if name == "poolkit":
        return lambda: pool.run(_TRUE).result()
    if name == "subprocess":
        return lambda: subprocess.run(_TRUE, capture_output=True, check=True)
    loop = asyncio.new_event_loop()

    async def once() -> None:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*_TRUE, stdout=pipe, stderr=pipe)
        await process.communicate()

    return lambda: loop.run_until_complete(once())


def _median(call: Callable[[], object], count: int) -> float:
    """Milliseconds."""
    times = []
    for _ in range(count + 2):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:]) * 1e3


def many(name: str, sized: Sized) -> Figures:
    """So many programs, two at a time."""
    count = sized(500)
    with poolkit.Pool(2, kind="thread") as pool:
        pool.run(_TRUE).result()
        started = time.perf_counter()
        if name == "poolkit":
            for command in [pool.run(_TRUE) for _ in range(count)]:
                command.result()
        else:
            with ThreadPoolExecutor(2) as executor:
                list(executor.map(lambda _: subprocess.run(_TRUE, capture_output=True, check=True), range(count)))
        return {"many": time.perf_counter() - started}


def output(name: str, sized: Sized) -> Figures:
    """What programs write and read."""
    count = sized(400_000)
    lines = ["seq", str(count)]
    capture = ["head", "-c", str(sized(256 << 20)), "/dev/zero"]
    data = b"x" * sized(20 << 20)
    found: Figures = {}
    if name == "asyncio-subprocess":
        return {"loop": _timed(lambda: asyncio.run(_lines_of_asyncio(lines))) / count * 1e9}
    with poolkit.Pool(2, kind="thread") as pool:
        pool.run(_TRUE).result()
        if name == "poolkit":
            found["lines"] = _timed(lambda: _count(poolkit.spawn(lines)))
            found["loop"] = _timed(lambda: asyncio.run(_lines_of_ours(lines))) / count * 1e9
            found["capture"] = _timed(lambda: pool.run(capture, max_output=1 << 30).result()) * 1e3
            found["input"] = _timed(lambda: pool.run(["cat"], input=data).result()) * 1e3
        else:
            found["lines"] = _timed(lambda: _lines_of_popen(lines))
            found["capture"] = _timed(lambda: subprocess.run(capture, capture_output=True, check=True)) * 1e3
            found["input"] = _timed(lambda: subprocess.run(["cat"], input=data, capture_output=True, check=True)) * 1e3  # noqa: S607
    found["lines"] *= 1e9 / count
    return found


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _count(items: Any) -> int:
    return sum(1 for _ in items)


def _lines_of_popen(argv: list[str]) -> int:
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        return _count(process.stdout)


async def _lines_of_ours(argv: list[str]) -> int:
    count = 0
    async for _ in poolkit.spawn(argv):
        count += 1
    return count


async def _lines_of_asyncio(argv: list[str]) -> int:
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    count = 0
    assert process.stdout is not None
    async for _ in process.stdout:
        count += 1
    await process.wait()
    return count


def ends(name: str, sized: Sized) -> Figures:
    """How programs end that do not want to."""
    if name == "subprocess":
        return {"held": _timed(lambda: subprocess.run(_HELD, capture_output=True, check=True))}
    with poolkit.Pool(1, kind="thread") as pool:
        pool.run(_TRUE).result()
        found = {"held": _timed(lambda: pool.run(_HELD).result())}
        found["limit"] = _timed(lambda: pool.run(_STUBBORN, timeout=0.5, grace=1.0).exception())
        times = []
        for _ in range(sized(20)):
            command = pool.run(["sleep", "60"], grace=0)
            while command.pid is None:
                time.sleep(0.001)
            started = time.perf_counter()
            command.cancel()
            pool.submit(int).result()
            times.append(time.perf_counter() - started)
        found["cancel"] = statistics.median(times) * 1e3
    return found


def crowd(name: str, sized: Sized) -> Figures:
    """So many programs at once: threads of their owner; and a flood beside small tasks."""
    before = threading.active_count()
    with poolkit.Pool(sized(100), kind="thread") as pool:
        commands = [pool.run(["sleep", "60"], grace=0) for _ in range(sized(100))]
        while any(command.pid is None for command in commands):
            time.sleep(0.01)
        threads = threading.active_count() - before
        pool.cancel_all()
    with poolkit.Pool(2) as pool:
        calm = _p99(pool, sized(2000))
        with pool.run(["yes"], stdout="lines") as command:
            reader = threading.Thread(target=_count, args=(command.chunks(),))
            reader.start()
            flood = _p99(pool, sized(2000))
        reader.join()
    return {"threads": float(threads), "flood": flood / calm}


def _p99(pool: poolkit.Pool, count: int) -> float:
    times = []
    for _ in range(count):
        started = time.perf_counter()
        pool.submit(int).result()
        times.append(time.perf_counter() - started)
    return sorted(times)[int(len(times) * 0.99)]


_PEERS = ("poolkit", "subprocess", "asyncio-subprocess")
MEASURES = (
    Measure(
        "commands",
        "`true`, captured, to its result",
        _PEERS,
        (
            Row("run", "run(...).result()", "ms", {"subprocess": "0.5, then 0.77", "asyncio-subprocess": "1"}),
            Row("large", "with 1.5 GB in the owner", "ms", {"subprocess": "0.5"}),
        ),
        run,
    ),
    Measure(
        "commands-many",
        "500 times `true`, two at a time, against a ThreadPoolExecutor over subprocess.run",
        ("poolkit", "subprocess"),
        (Row("many", "to the last result", "s", {"subprocess": "0.77, then 1"}),),
        many,
    ),
    Measure(
        "commands-output",
        "what programs write and read",
        _PEERS,
        (
            Row("lines", "`seq 400000`, a line in a for loop", "ns", {"poolkit": "under 500, then 250"}),
            Row("loop", "the same, async for", "ns", {"poolkit": "under 400, then 250"}),
            Row("capture", "256 MiB captured", "ms", {"subprocess": "1"}),
            Row("input", "20 MiB of input through `cat`", "ms", {"subprocess": "1, then 1.3"}),
        ),
        output,
    ),
    Measure(
        "commands-ends",
        "programs that end late",
        ("poolkit", "subprocess"),
        (
            Row("held", "its child holds the output for 3 s", "s", {"poolkit": "under 0.8"}),
            Row("limit", "a limit of 0.5 s, not obeyed at once", "s", {"poolkit": "under 1.7"}),
            Row("cancel", "from cancel() until its place is free", "ms", {"poolkit": "under 10, then 5"}),
        ),
        ends,
    ),
    Measure(
        "commands-crowd",
        "100 programs at once, and a flood of output beside small tasks",
        ("poolkit",),
        (
            Row("threads", "threads of the owner with 100 programs", "number", {"poolkit": "at most 3"}, words=None),
            Row(
                "flood",
                "p99 of a small task beside `yes`, in times of that without",
                "",
                {"poolkit": "under 2"},
                words=None,
            ),
        ),
        crowd,
    ),
)
