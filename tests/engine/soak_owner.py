"""The owner of the soak's pool: a process of its own, and what it does; see `soak.py`."""

from __future__ import annotations

import argparse
import contextlib
import functools
import heapq
import json
import os
import random
import subprocess
import sys
import threading
import time
from typing import Any

import poolkit
import poolkit.testing
from engine import work
from engine.cluster import LONG, error_of, name_of, pause, wait_for
from poolkit.dask import DaskPool

NODES, WORKERS = 3, 2
LEASE = 3.0  # seconds
AT_ONCE = 400  # tasks under way, at most
AFTERWARDS = 200  # tasks when all faults are over
LIMIT = 0.2  # seconds that a task may run that hangs
BAD = 0.05  # of all tasks

FITS = {  # what each kind of task ends with, unless it is lost
    "good": "results",
    "segfault": "WorkerCrashed(SIGSEGV)",
    "exit": "WorkerCrashed(7)",
    "hang": "TaskTimeout",
    "raise": "ValueError",
    "unpicklable": "SerializationError",
    "cancel": "TaskCancelled",
}
OUTCOMES = "-outcomes"  # the end of the name of the file with the outcomes
STATS = ("submitted", "succeeded", "failed", "cancelled", "crashed", "timed_out", "retried", "respawned")


class Plan:
    """What a task is, by its number: the same here and in the ledger."""

    def __init__(self, seed: int, number: int) -> None:
        rng = random.Random(f"{seed} {number}")
        self.number = number
        self.retries = rng.choice((0, 0, 2))
        self.kind = rng.choice(list(FITS)[1:]) if rng.random() < BAD else "good"
        self.seconds = rng.choices((0.0, rng.uniform(0.002, 0.02), rng.uniform(0.05, 0.3)), (85, 12, 3))[0]
        self.load = bytes(rng.choices((0, 200_000), (98, 2))[0])
        self.cancel_after = rng.uniform(0.0, 0.5)

    def submit(self, pool: DaskPool, path: str) -> poolkit.Task[Any]:
        """Have it run."""
        timeout = LIMIT if self.kind == "hang" else None
        view = pool.options(retries=self.retries, timeout=timeout)
        if self.kind in {"hang", "cancel"}:
            return view.submit(work.journalled, path, self.number, 60.0)
        if self.kind == "good":
            return view.submit(work.journalled, path, self.number, self.seconds, self.load)
        return view.submit(work.go_bad, path, self.number, self.kind)


def own(address: str, path: str, seconds: float, tasks: int, seed: int) -> None:
    """Be the owner: submit tasks, write down their outcomes, and say what was left."""
    with poolkit.testing.leaks(grace=10.0), DaskPool(address, min_nodes=NODES, lease=LEASE) as pool:
        print("up", flush=True)
        _submit_all(pool, path, seconds, tasks, seed)
        print("settled", flush=True)
        sys.stdin.readline()  # all nodes are there
        wait_for(lambda: sum(node.state == "up" for node in pool.nodes()) >= NODES, "all nodes")
        again = [pool.submit(work.journalled, path, tasks + number, 0.02) for number in range(AFTERWARDS)]
        print("again", *[name_of(error_of(task)) for task in again], flush=True)
        print("on", len({task.node for task in again}), flush=True)
        stats = pool.stats()
        print("stats", json.dumps({name: getattr(stats, name) for name in STATS}), flush=True)
    print("clean", flush=True)


def _submit_all(pool: DaskPool, path: str, seconds: float, tasks: int, seed: int) -> None:
    outcomes = os.open(path + OUTCOMES, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    lock, settled = threading.Lock(), 0

    def note(number: int, task: poolkit.Task[Any]) -> None:
        nonlocal settled
        line = f"{number} {time.monotonic()} {task.attempts} {_word(error_of(task))}\n"
        os.write(outcomes, line.encode())
        with lock:
            settled += 1

    to_cancel: list[tuple[float, int, poolkit.Task[Any]]] = []
    begun, number = time.monotonic(), 0
    while number < tasks or settled < tasks:
        now = time.monotonic()
        while number < min(tasks, tasks * (now - begun) / seconds) and number - settled < AT_ONCE:
            plan = Plan(seed, number)
            task = plan.submit(pool, path)
            task.add_done_callback(functools.partial(note, number))
            if plan.kind == "cancel":
                heapq.heappush(to_cancel, (now + plan.cancel_after, number, task))
            number += 1
        while to_cancel and to_cancel[0][0] <= now:
            heapq.heappop(to_cancel)[2].cancel()
        pause(0.005)
    os.close(outcomes)


def _word(error: BaseException | None) -> str:
    if isinstance(error, poolkit.WorkerCrashed) and not isinstance(error, poolkit.NodeLost):
        return f"WorkerCrashed({error.signal or error.exitcode})"
    return name_of(error).replace(" ", "")


class Owner:
    """That process, and what it has said."""

    def __init__(self, address: str, path: str, seconds: float, tasks: int, seed: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "engine.soak_owner", *map(str, (address, path, seconds, tasks, seed))],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        self.said: dict[str, str] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                word, _, rest = line.rstrip().partition(" ")
                self.said[word] = rest

    def has_said(self, word: str) -> bool:
        """Whether it has said that; True as well when it has ended."""
        return word in self.said or self._process.poll() is not None

    def go_on(self) -> None:
        """All nodes are there."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as told:
            print(file=told)

    def wait(self) -> int | None:
        """Its exit status, when it has ended by itself; None if it does not."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(LONG)
        return self._process.returncode

    def kill(self) -> None:
        """End it, if it has not ended."""
        self._process.kill()
        self._process.wait()
        self._reader.join()


def main() -> None:
    """Be the owner."""
    parser = argparse.ArgumentParser()
    for name, kind in (("address", str), ("path", str), ("seconds", float), ("tasks", int), ("seed", int)):
        parser.add_argument(name, type=kind)
    own(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
