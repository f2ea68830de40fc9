"""Side by side with `client.submit` of Dask itself, in one run, by turns: `python -m tests.engine.bench`.

Each measure is taken of both in alternation, and told as the median of `--times` and their ratio. The bars are those
that the library sets itself; a ratio says more than the seconds, which depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import distributed
import psutil

import poolkit
from poolkit.dask import DaskPool


def nothing(_: object = None) -> None:
    """Return at once."""


def same(value: Any) -> Any:
    """Return what it was given."""
    return value


def nap(seconds: float) -> None:
    """Take so long."""
    time.sleep(seconds)  # noqa: TID251 -- what the task takes


def stamp() -> float:
    """When this runs."""
    return time.monotonic()


class Bench:
    """The pool, the client, and what was found."""

    def __init__(self, pool: DaskPool, client: Any, times: int, scheduler: psutil.Process) -> None:
        self.pool = pool
        self.client = client
        self.times = times
        self.scheduler = scheduler
        self.missed = 0

    def compare(self, what: str, ours: Callable[[], float], theirs: Callable[[], float], bar: float) -> None:
        """Take both by turns; `bar`: how many times less ours is to be."""
        found: list[tuple[float, float]] = [(ours(), theirs()) for _ in range(self.times)]
        our, their = (statistics.median(each) for each in zip(*found, strict=True))
        self.tell(what, our, f"{their:.6f} for Dask, {their / our:.1f} times (bar {bar:g})", met=their / our >= bar)

    def limit(self, what: str, measure: Callable[[], float], most: float) -> None:
        """Take ours alone, which is to be no more than `most`."""
        value = statistics.median(measure() for _ in range(self.times))
        self.tell(what, value, f"(bar {most:g})", met=value <= most)

    def tell(self, what: str, value: float, more: str, *, met: bool) -> None:
        """Print a line."""
        self.missed += not met
        print(f"{'met   ' if met else 'MISSED'}  {what}: {value:.6f}; {more}", flush=True)

    def cpu(self) -> float:
        """Seconds of CPU of the owner and of Dask's scheduler."""
        times = self.scheduler.cpu_times()
        return time.process_time() + times.user + times.system


def timed(call: Callable[[], object]) -> float:
    """How long a call takes, in seconds."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def measure(bench: Bench, tasks: int) -> None:  # noqa: C901, PLR0915 -- one measure after another
    """Take all measures."""
    pool, client = bench.pool, bench.client
    counter = iter(range(1 << 60))

    def one_of_ours() -> float:
        return statistics.median(timed(lambda: pool.submit(nothing).result()) for _ in range(100))

    def one_of_theirs() -> float:
        return statistics.median(timed(lambda: client.submit(nothing, next(counter)).result()) for _ in range(20))

    bench.compare("one empty call, seconds", one_of_ours, one_of_theirs, 3)

    def burst() -> float:
        def run() -> None:
            for task in [pool.submit(nothing) for _ in range(tasks)]:
                task.result()

        return timed(run) / tasks

    def gathered() -> float:
        return timed(lambda: client.gather([client.submit(nothing, next(counter)) for _ in range(tasks)])) / tasks

    def mapped() -> float:
        items = [next(counter) for _ in range(tasks)]
        return timed(lambda: client.gather(client.map(nothing, items))) / tasks

    bench.compare(f"burst of {tasks}, beside submit and gather, seconds a call", burst, gathered, 4)
    bench.compare(f"burst of {tasks}, beside client.map, seconds a call", burst, mapped, 3)

    def cpu_of(run: Callable[[], float]) -> Callable[[], float]:
        def taken() -> float:
            before = bench.cpu()
            run()
            return (bench.cpu() - before) / tasks

        return taken

    bench.compare("CPU of owner and scheduler, seconds a call of that", cpu_of(burst), cpu_of(gathered), 4)

    def our_map() -> float:
        return timed(lambda: list(pool.map(nothing, range(100_000)))) / 100_000

    bench.compare("map of 100,000, beside client.map of fewer, seconds an item", our_map, mapped, 100)

    workers = pool.max_workers

    def short() -> float:
        def run() -> None:
            for task in [pool.submit(nap, 0.01) for _ in range(400)]:
                task.result()

        return timed(run) / (400 * 0.01 / workers)

    for _ in range(2):
        short()
    bench.limit(f"400 tasks of 10 ms on {workers} workers, times the ideal", short, 1.3)

    import numpy as np

    array = np.ones(8 << 20)

    def scattered() -> float:
        def run() -> None:
            future = client.scatter(array, hash=False)
            client.submit(len, future, pure=False).result()

        return timed(run)

    pool.submit(len, array).result()
    bench.compare(
        "64 MiB argument, beside scatter, seconds",
        lambda: timed(lambda: pool.submit(len, array).result()),
        scattered,
        1,
    )

    def echoed() -> float:
        def run() -> None:
            future = client.scatter(array, hash=False)
            client.submit(same, future, pure=False).result()

        return timed(run)

    bench.compare(
        "64 MiB there and back, beside scatter, seconds",
        lambda: timed(lambda: pool.submit(same, array).result()),
        echoed,
        1,
    )

    def overshoot() -> float:
        view = pool.options(timeout=0.1)
        return timed(lambda: view.submit(nap, 10).exception()) - 0.1

    empty = statistics.median(timed(lambda: pool.submit(nothing).result()) for _ in range(50))
    bench.limit("a limit of 0.1 s, beyond it and one empty call, seconds", lambda: overshoot() - empty, 0.03)

    def serves_again() -> float:
        held = [pool.submit(nap, 10) for _ in range(workers)]
        while not all(task.running() for task in held):
            threading.Event().wait(0.001)
        waiting = pool.submit(nothing)
        begun = time.perf_counter()
        held[0].cancel()
        waiting.result()
        taken = time.perf_counter() - begun
        for task in held:
            task.cancel()
        return taken

    bench.limit("cancel until the place serves again, seconds", serves_again, 0.04)

    def behind() -> float:
        blockers = [pool.submit(nap, 0.1) for _ in range(workers)]
        queued = [pool.submit(stamp) for _ in range(60)]
        urgent = pool.options(priority=1).submit(stamp).result()
        before = sum(task.result() < urgent for task in queued)
        for task in blockers:
            task.result()
        return float(before)

    bench.limit("tasks that began before an urgent one among 60 queued", behind, 0)

    before = pool.stats()
    for _ in range(1000):
        pool.submit(nothing).result()
    after = pool.stats()
    sent = after.network_bytes_sent + after.network_bytes_received
    bench.tell(
        "bytes on the wire an empty call, both ways",
        (sent - before.network_bytes_sent - before.network_bytes_received) / 1000,
        "(bar 200)",
        met=sent - before.network_bytes_sent - before.network_bytes_received < 200_000,
    )
    with poolkit.Pool(workers) as local:
        local.submit(nothing).result()
        here = statistics.median(timed(lambda: local.submit(nothing).result()) for _ in range(100))
    print(f"told    an empty call beside a local pool: {one_of_ours() / here:.1f} times slower")


def main() -> int:
    """Run it; the exit code says whether a bar was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tasks", type=int, default=5000)
    parser.add_argument("--times", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as ending:
        file = Path(folder, "scheduler.json")
        run = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
        processes = [subprocess.Popen([*run, "--port", "0", "--no-dashboard", "--scheduler-file", str(file)])]
        run = [sys.executable, "-m", "distributed.cli.dask_worker", "--no-nanny", "--no-dashboard"]
        run += ["--memory-limit", "0", "--nthreads", str(given.workers), "--local-directory", folder]
        processes += [subprocess.Popen([*run, "--scheduler-file", str(file)]) for _ in range(given.nodes)]
        for process in processes:
            ending.callback(process.wait)
        for process in processes:
            ending.callback(process.terminate)
        with (
            distributed.Client(scheduler_file=str(file)) as client,
            DaskPool(client, min_nodes=given.nodes) as pool,
        ):
            bench = Bench(pool, client, given.times, psutil.Process(processes[0].pid))
            measure(bench, given.tasks)
    return 1 if bench.missed else 0


if __name__ == "__main__":
    sys.exit(main())
