"""Dedicated workers: messages both ways and one way, large ones, start, death, calls to an object; and idle ones."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.calls import opened
from benchmarks.measure import Figures, Measure, Row, Sized

_LARGE, _MIDDLE = 64 << 20, 1 << 20  # bytes


def _answer(port: Any) -> None:
    """Answer each message: with so many numbers, or with what an array begins and ends with, or as it is."""
    with contextlib.suppress(EOFError):
        while True:
            message = port.recv()
            if type(message) is tuple:
                for number in range(message[0]):
                    port.send(number)
            else:
                port.send(message if type(message) is int else (int(message[0]), int(message[-1])))


def _first(port: Any) -> None:
    port.send(0)


def _wait(port: Any) -> None:
    port.send(os.getpid())
    with contextlib.suppress(EOFError):
        port.recv()


def _give(value: int) -> int:
    return value


class Holder:
    """What is hosted."""

    def give(self, value: int) -> int:
        return value


@contextlib.contextmanager
def _end(name: str, target: Callable[[Any], None], method: str = "fork", **settings: Any) -> Iterator[Any]:
    """The owner's end of a channel to a process that runs `target`."""
    if name == "poolkit":
        import poolkit

        with poolkit.Worker(target, **settings) as worker:
            yield worker
        return
    context: Any = multiprocessing.get_context(method)
    context.set_forkserver_preload(settings.get("preload", []))
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs,))
    process.start()
    theirs.close()
    yield ours
    ours.close()
    process.terminate()  # a forked one has a copy of our end, and so never sees that it is closed
    process.join()


def _round_trips(end: Any, message: Any, count: int) -> float:
    """Seconds for one."""
    for _ in range(2):
        end.send(message)
        end.recv()
    started = time.perf_counter()
    for _ in range(count):
        end.send(message)
        end.recv()
    return (time.perf_counter() - started) / count


def channel(name: str, sized: Sized) -> Figures:
    import numpy as np

    figures: Figures = {}
    with _end(name, _answer) as end:
        _round_trips(end, 1, sized(500))
        figures["both"] = _round_trips(end, 1, sized(5000)) * 1e6
        end.send((sized(1000),))
        count = sized(50_000)
        for _ in range(sized(1000)):
            end.recv()
        started = time.perf_counter()
        end.send((count,))
        for _ in range(count):
            end.recv()
        figures["one"] = (time.perf_counter() - started) / count * 1e6
        figures["middle"] = _round_trips(end, np.ones(max(1, sized(_MIDDLE // 8))), sized(50)) * 1e3
        figures["large"] = _round_trips(end, np.ones(max(1, sized(_LARGE // 8))), sized(5)) * 1e3
    times = []
    for _ in range(1 + sized(10)):
        started = time.perf_counter()
        with _end(name, _first, "forkserver", preload=[__name__]) as end:
            end.recv()
            times.append(time.perf_counter() - started)
    figures["start"] = sorted(times[1:])[len(times) // 2 - 1] * 1e3
    if name == "poolkit":
        figures["crash"] = _crash(sized)
        with _end(name, _answer, kind="thread") as end:
            figures["thread"] = _round_trips(end, 1, sized(5000)) * 1e6
    return figures


def _crash(sized: Sized) -> float:
    """Milliseconds from a kill until `recv` raises."""
    import poolkit

    times = []
    for _ in range(sized(10)):
        worker = poolkit.Worker(_wait)
        pid = worker.recv()
        started = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(poolkit.WorkerCrashed):
            worker.recv()
        times.append(time.perf_counter() - started)
        worker.join()
    return sorted(times)[len(times) // 2] * 1e3


def hosted(name: str, sized: Sized) -> Figures:
    count = sized(3000)
    if name != "poolkit":
        contender = opened(name, 1)
        started = time.perf_counter()
        for number in range(count):
            contender.call(_give, number)
        seconds = time.perf_counter() - started
        contender.close()
        return {"call": seconds / count * 1e6}
    import poolkit

    with poolkit.Worker.hosting(Holder) as worker:
        worker.call("give", 0).result()
        started = time.perf_counter()
        for number in range(count):
            worker.call("give", number).result()
        return {"call": (time.perf_counter() - started) / count * 1e6}


def idle_workers(name: str, sized: Sized) -> Figures:
    """What 50 workers cost that wait for a message."""
    import poolkit

    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(poolkit.Worker(_wait)) for _ in range(sized(50))]
        pids = [worker.recv() for worker in workers]
        before = sum(map(_ticks, ["self", *pids]))
        time.sleep(1.0)
        used = sum(map(_ticks, ["self", *pids])) - before
        return {
            "threads": len(threading.enumerate()) - 1.0,
            "cpu": used * 1000.0 / os.sysconf("SC_CLK_TCK"),
            "pss": sum(map(_pss, pids)) / len(pids) / 1024,
        }


def _ticks(pid: int | str) -> int:
    """CPU time."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def _pss(pid: int) -> int:
    """Kibibytes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


MEASURES = (
    Measure(
        "channel",
        "messages to a dedicated worker and back; its start and its death",
        ("poolkit", "mp-pipe"),
        (
            Row("both", "an int there and back", "us", {"mp-pipe": "0.83, then 1"}),
            Row("one", "an int, 50,000 one way", "us", {"mp-pipe": "1.5, then 2"}),
            Row("middle", "an array of 1 MiB there", "ms", {"mp-pipe": "1"}),
            Row("large", "an array of 64 MiB there", "ms", {"mp-pipe": "5"}),
            Row("start", "start to its first message, forkserver", "ms", {"mp-pipe": "2"}),
            Row("thread", "an int to a thread and back", "us", {"poolkit": "19"}, words=None),
            Row("crash", "a kill until recv() raises", "ms", {"poolkit": "20, then 5"}, words=None),
        ),
        channel,
    ),
    Measure(
        "hosted",
        "a call to an object in a dedicated worker, one after the other; beside a pool of one worker",
        ("poolkit", "ppe-fork"),
        (Row("call", "a call and its result", "us", {"ppe-fork": "3, then 6"}),),
        hosted,
    ),
    Measure(
        "idle-workers",
        "50 dedicated workers that wait for a message",
        ("poolkit",),
        (
            Row("threads", "threads of the owner", "threads", {"poolkit": "2"}, words=None),
            Row("cpu", "CPU time of all in a second", "ms", {"poolkit": "0"}, words=None),
            Row("pss", "memory of each", "MB", {"poolkit": "5, then 3"}, words=None),
        ),
        idle_workers,
    ),
)
