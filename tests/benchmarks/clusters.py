"""Clusters that serve HTTP: reloads and kills under load, latency, shares, start, memory, stop; beside other servers.

All serve the application of `app_mod.py` (node: the same in its language), with two workers unless said otherwise. A
program of its own asks (`http_client.py`), which also says what a failed request is.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import statistics
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from benchmarks.measure import Figures, Measure, Row, Sized
from benchmarks.proc import cpu_seconds, pss, rss
from benchmarks.servers import LIMIT, Load, Server, answer_of, answering, opened, wait_until

_BETWEEN_RELOADS = 1.5  # seconds
_BETWEEN_KILLS = 1.0  # so that each worker lives for two, and nobody takes it for a crash loop
_KILLING = 40.0  # seconds after which no more are killed
_GONE = 10.0  # seconds for what is said to be gone
_STEP = 0.005


def reloads(name: str, sized: Sized, *options: str) -> Figures:
    """SIGHUP to the owner, again and again, under load."""
    with Server(name) as server, Load(server, 16, *options) as load:
        for _ in range(sized(20)):
            time.sleep(_BETWEEN_RELOADS)
            server.send("SIGHUP")
        time.sleep(_BETWEEN_RELOADS)
        found = load.finish()
        server.send("SIGCONT")  # which raises where it has ended
    return {
        "failed": len(found["failed"]),
        "answered": found["answered"],
        "workers": len(found["pids"]),
        "p99": found["p99"] * 1e3,
    }


def respawn(name: str, sized: Sized) -> Figures:
    """SIGKILL to a worker, and requests until one is answered by a process that was not there before."""
    times = []
    with Server(name) as server:
        alive = server.worker_pids(server.workers)
        for _ in range(sized(10)):
            time.sleep(_BETWEEN_KILLS)
            os.kill(alive.pop(0), signal.SIGKILL)
            started = time.perf_counter()
            alive.append(_first_other(server.port, alive))
            times.append(time.perf_counter() - started)
    return {"first": statistics.median(times) * 1e3, "last": max(times) * 1e3}


def _first_other(port: int, known: Collection[int]) -> int:
    """Who answers first that is not known; a new request every few milliseconds."""
    with contextlib.ExitStack() as stack:
        waiting: list[socket.socket] = []
        give_up = time.perf_counter() + LIMIT
        while time.perf_counter() < give_up:
            if len(waiting) < 100:
                with contextlib.suppress(OSError):
                    waiting.append(stack.enter_context(opened(port, "/pid")))
            ready, _, _ = select.select(waiting, [], [], _STEP)
            for sock in ready:
                waiting.remove(sock)
                body = answer_of(sock)
                sock.close()
                if body and int(body) not in known:
                    return int(body)
            time.sleep(_STEP)
    raise AssertionError(f"no successor has answered within {LIMIT:g} s")


def kills(name: str, sized: Sized) -> Figures:
    """SIGKILL to workers under load, the oldest first, each when the one before has a successor."""
    with Server(name) as server, Load(server, 8) as keeping, Load(server, 8, "--once") as once:
        alive, killed = server.worker_pids(server.workers), set[int]()
        give_up = time.perf_counter() + _KILLING
        for _ in range(sized(50)):
            time.sleep(_BETWEEN_KILLS)
            killed.add(victim := alive.pop(0))
            os.kill(victim, signal.SIGKILL)
            alive += server.worker_pids(1, {*alive, *killed})
            if time.perf_counter() > give_up:
                break
        found = [keeping.finish(), once.finish()]
    kept, single = (load["failed"] for load in found)
    return {
        "kept": _lost(kept, killed),
        "once": _lost(single, killed),
        "unknown": sum(kind in {"reset", "cut"} and not pid for _, kind, pid in [*kept, *single]),
        "kills": len(killed),
    }


def _lost(failed: list[tuple[float, str, int]], killed: Collection[int]) -> int:
    """How many were none of the dead workers' own, whose connections the kernel resets at once.

    Whose a connection was that was reset before its first answer nobody knows; those are told by themselves.
    """
    return sum(kind in {"refused", "late"} or (pid > 0 and pid not in killed) for _, kind, pid in failed)


def latency(name: str, sized: Sized) -> Figures:
    found = _loaded(Server(name), sized, 4)
    return {"p50": found["p50"] * 1e3, "p99": found["p99"] * 1e3}


def requests(name: str, sized: Sized) -> Figures:
    kept, once = (_loaded(Server(name), sized, 16, *options) for options in ((), ("--once",)))
    return {key: found["seconds"] / found["answered"] * 1e6 for key, found in (("kept", kept), ("once", once))}


def _loaded(server: Server, sized: Sized, clients: int, *options: str) -> dict[str, Any]:
    with server, Load(server, clients, *options) as load:
        time.sleep(sized(1000) / 1000)
        load.forget()
        time.sleep(max(0.3, sized(4000) / 1000))
        found = load.finish()
    if found["failed"] or not found["answered"]:
        raise AssertionError(f"{len(found['failed'])} requests have failed, {found['answered']} were answered")
    return found


def shares(name: str, sized: Sized) -> Figures:
    """A burst of 100 connections that stay open until all are answered."""
    largest, smallest = [], []
    with Server(name, workers=4) as server:
        pids = server.worker_pids(4)
        for _ in range(sized(5)):
            time.sleep(0.5)  # those of before are closed on both sides
            counts = Counter(answering(server.port, 100))
            largest.append(max(counts.values()))
            smallest.append(min(counts[pid] for pid in pids))
    return {"largest": max(largest), "smallest": min(smallest)}


def slow_worker(name: str, sized: Sized) -> Figures:
    """One worker is held for 2 of each 3 seconds; the other requests come on connections of their own."""
    with Server(name) as server, Load(server, 8, "--once", "--pause", "0.02") as load:
        time.sleep(0.5)
        load.forget()
        for _ in range(sized(4)):
            with opened(server.port, "/block?s=2") as sock:
                answer_of(sock)
            time.sleep(1.0)
        found = load.finish()
    return {
        "p50": found["p50"] * 1e3,
        "p99": found["p99"] * 1e3,
        "held": found["held"],
        "answered": found["answered"],
    }


def start(name: str, sized: Sized) -> Figures:
    times = []
    for _ in range(sized(5)):
        with Server(name) as server:
            times.append(server.start_seconds)
    return {"start": statistics.median(times) * 1e3}


def memory(name: str, sized: Sized) -> Figures:
    figures: Figures = {}
    with Server(name) as server:
        _, others = _parts(server)
        figures["others"] = sum(map(pss, others)) / 1e6
    with Server(name, workers=8, megabytes=sized(100)) as server:
        _parts(server)
        figures["sum"] = sum(map(pss, server.pids())) / 1e6
    return figures


def idle(name: str, sized: Sized) -> Figures:
    with Server(name) as server:
        _, others = _parts(server)
        time.sleep(0.5)
        before = sum(map(cpu_seconds, others))
        time.sleep(sized(10_000) / 1000)
        return {"cpu": (sum(map(cpu_seconds, others)) - before) * 1e3}


def _parts(server: Server) -> tuple[set[int], set[int]]:
    """The processes that answer, and those that do not."""
    workers = set(server.worker_pids(server.workers))
    return workers, set(server.pids()) - workers


def stop(name: str, sized: Sized) -> Figures:
    return {**_stopped(name, sized), **_stopped_twice(name), **_killed(name)}


def _stopped(name: str, sized: Sized) -> Figures:
    """SIGTERM while requests run that take two seconds."""
    count = sized(20)
    with Server(name, grace=10) as server, contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(opened(server.port, "/slow?s=2", keep=True)) for _ in range(count)]
        time.sleep(0.5)
        server.send("SIGTERM")
        lost = count - sum(answer_of(sock) == b"ok" for sock in sockets)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return {"lost": lost, "exit": abs(server.process.wait(_GONE))}
    return {"lost": lost}


def _stopped_twice(name: str) -> Figures:
    with Server(name, grace=15) as server, contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(opened(server.port, "/slow?s=14", keep=True))
        time.sleep(0.5)
        server.send("SIGTERM")
        time.sleep(0.5)
        pids = server.pids()
        if server.process.poll() is not None:
            return {}  # it has not waited
        server.send("SIGTERM")
        waiting = threading.Thread(target=server.process.wait, daemon=True)  # it is our child: without this a zombie
        waiting.start()
        with contextlib.suppress(AssertionError):
            return {"second": wait_until(lambda: not any(map(rss, pids)), "all to be gone", _GONE) * 1e3}
    return {}


def _killed(name: str) -> Figures:
    with Server(name) as server, contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(opened(server.port, "/slow?s=14", keep=True))
        time.sleep(0.5)
        server.process.kill()
        with contextlib.suppress(AssertionError):
            return {"port": wait_until(lambda: _is_free(server.port), "the port", _GONE) * 1e3}
    return {}


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


_OURS = ("poolkit", "poolkit-round-robin")
_PYTHON = ("uvicorn-workers", "gunicorn", "gunicorn-asgi", "granian")
_RELOADED = (*_OURS, *_PYTHON, "node-cluster")  # hypercorn and a preloaded gunicorn load nothing anew
_ALL = (*_OURS, "gunicorn", "uvicorn-workers", "gunicorn-asgi", "granian", "hypercorn", "node-cluster")
_NONE = dict.fromkeys(_OURS, "0")


def _reloading(name: str, title: str, *options: str) -> Measure:
    trial: Callable[[str, Sized], Figures] = partial(_reloads_with, options)
    return Measure(
        name,
        f"20 reloads in 30 s under 16 clients, {title}",
        _RELOADED,
        (
            Row("failed", "failed requests", "requests", _NONE, words=None),
            Row("answered", "answered requests", "requests", words=None),
            Row("workers", "workers that answered", "workers", words=None),
            Row("p99", "a quick request, 99th percentile", "ms", words=None),
        ),
        trial,
    )


def _reloads_with(options: tuple[str, ...], name: str, sized: Sized) -> Figures:
    return reloads(name, sized, *options)


MEASURES = (
    _reloading("reloads", "which keep their connections"),
    _reloading("reloads-once", "one request a connection", "--once"),
    _reloading("reloads-slow", "a fifth of the requests of 1 s, half of those with 5 MiB", "--slow", "0.2"),
    Measure(
        "respawn",
        "a worker is killed, 10 times: until its successor has answered",
        ("poolkit", "gunicorn", "gunicorn-preload", *_ALL[3:], "poolkit-preload", "poolkit-round-robin"),
        (
            Row(
                "first",
                "a kill until its successor answers",
                "ms",
                {"gunicorn": "1", "poolkit-preload": "3 times faster than gunicorn"},
            ),
            Row("last", "the same, at most", "ms", words=None),
        ),
        respawn,
    ),
    Measure(
        "kills",
        "50 kills of a worker under 16 clients, half of which keep their connections",
        _ALL,
        (
            Row("kept", "lost beside the dead worker's own, kept", "requests", _NONE, words=None),
            Row("once", "the same, one request a connection", "requests", _NONE, words=None),
            Row("unknown", "reset before a connection's first answer", "requests", words=None),
            Row("kills", "kills", "kills", words=None),
        ),
        kills,
    ),
    Measure(
        "serve-latency",
        "requests of 4 clients that keep their connections",
        ("poolkit", "uvicorn", "uvicorn-nodelay", *_ALL[2:], "poolkit-round-robin"),
        (
            Row("p50", "a request of 4 clients, median", "ms", {"uvicorn": "0.9"}),
            Row("p99", "the same, 99th percentile", "ms"),
        ),
        latency,
    ),
    Measure(
        "requests",
        "16 clients, as many requests as they get answered",
        ("poolkit", "uvicorn-nodelay", *_ALL[2:], "poolkit-round-robin"),
        (
            Row("kept", "a request of 16 clients, kept", "us", {"uvicorn-nodelay": "0.95", "gunicorn": "0.95"}),
            Row("once", "the same, one a connection", "us", {"uvicorn-nodelay": "0.95", "gunicorn": "0.95"}),
        ),
        requests,
    ),
    Measure(
        "shares",
        "100 connections at once for 4 workers, 5 times",
        ("poolkit", "poolkit-round-robin", "poolkit-least-busy", *_ALL[2:]),
        (
            Row(
                "largest",
                "the largest share",
                "connections",
                {"poolkit-round-robin": "25", "poolkit-least-busy": "26"},
                words=None,
            ),
            Row(
                "smallest",
                "the smallest share",
                "connections",
                {"poolkit-round-robin": "25", "poolkit-least-busy": "24"},
                words=None,
            ),
        ),
        shares,
    ),
    Measure(
        "slow-worker",
        "one worker of two is held for 2 of each 3 seconds; 8 others, one request a connection",
        ("poolkit", "poolkit-round-robin", "poolkit-least-busy", *_ALL[2:]),
        (
            Row("p50", "another request, median", "ms", words=None),
            Row(
                "p99",
                "another request, 99th percentile",
                "ms",
                {"poolkit": "50", "poolkit-least-busy": "50"},
                words=None,
            ),
            Row("held", "requests that took over 1 s", "requests", words=None),
            Row("answered", "answered requests", "requests", words=None),
        ),
        slow_worker,
    ),
    Measure(
        "serve-start",
        "a server of two workers: from its start to its first answer",
        ("poolkit", "gunicorn", "gunicorn-preload", *_ALL[3:], "poolkit-preload"),
        (Row("start", "start to first answer", "ms", {"gunicorn": "1"}),),
        start,
    ),
    Measure(
        "serve-memory",
        "memory of a server, PSS; an application of 100 MB, 8 workers",
        ("poolkit-preload", "gunicorn", "gunicorn-preload", "poolkit", *_ALL[3:-1]),  # node has no such modules
        (
            Row("others", "all but the workers", "MB", {"poolkit-preload": "25", "poolkit": "25"}, words=None),
            Row("sum", "8 workers of 100 MB, sum", "MB", {"gunicorn": "2"}),
        ),
        memory,
    ),
    Measure(
        "serve-idle",
        "a server that nobody asks, 10 s",
        _ALL,
        (Row("cpu", "CPU time of all but the workers", "ms", dict.fromkeys(_OURS, "2"), words=None),),
        idle,
    ),
    Measure(
        "serve-stop",
        "SIGTERM with 20 requests of 2 s in flight; a second one; SIGKILL of the owner",
        _ALL,
        (
            Row("lost", "requests without an answer", "requests", _NONE, words=None),
            Row("exit", "exit code", "", _NONE, words=None),
            Row("second", "all gone after a second SIGTERM", "ms", dict.fromkeys(_OURS, "200"), words=None),
            Row("port", "SIGKILL of the owner until the port is free", "ms", dict.fromkeys(_OURS, "1000"), words=None),
        ),
        stop,
    ),
)
