"""Tasks that crash, hang, eat memory or are cancelled, with others beside them, on two nodes.

Usage: python -m tests.engine.faults [--rounds 1] [--only NAME]

Bars, for each: the right error; the others have results, and have begun once; the dask workers are the same as before;
the next call is served. Told: how long after the limit the error came, beyond an empty call.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import poolkit
import support_functions as functions
from engine import work
from engine.cluster import Bars, Cluster, error_of, name_of, new_journal, wait_for
from poolkit.dask import DaskPool

NODES, WORKERS = 2, 2
LIMIT = 0.5  # seconds that a task may run
MEMORY = 512 << 20  # bytes that a task may use
BESIDE = 0.3  # seconds that each of the others takes
Fault = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], type[BaseException], Callable[[Any], bool]]


def _any(_error: Any) -> bool:
    return True


FAULTS: dict[str, Fault] = {
    "segfault": (functions.segfault, (), {}, poolkit.WorkerCrashed, lambda exc: exc.signal == "SIGSEGV"),
    "exit": (functions.leave, (7,), {}, poolkit.WorkerCrashed, lambda exc: exc.exitcode == 7),
    "hang": (functions.spin, (), {"timeout": LIMIT}, poolkit.TaskTimeout, lambda exc: "spin" in exc.stack),
    "gil": (functions.hold_the_gil, (), {"timeout": LIMIT}, poolkit.TaskTimeout, _any),
    "memory": (work.eat, (4 * MEMORY,), {"memory_limit": MEMORY}, poolkit.MemoryLimitExceeded, _any),
    "cancel": (functions.spin, (), {}, poolkit.TaskCancelled, _any),
}


def run(rounds: int, only: str | None) -> int:
    """Try each; returns the exit status."""
    bars = Bars(f"faults: {rounds} rounds on {NODES} nodes of {WORKERS} workers")
    with Cluster(NODES, WORKERS) as cluster, DaskPool(cluster.address, min_nodes=NODES) as pool:
        before = {node.pid for node in pool.nodes()}
        empty = _seconds_of_a_call(pool)
        bars.tell(f"an empty call takes {empty * 1e3:.1f} ms (median)")
        for _ in range(rounds):
            for name in FAULTS if only is None else [only]:
                _try(bars, pool, name, empty)
        bars.bar({node.pid for node in pool.nodes()} == before, "the nodes are the same as before")
        stats = pool.stats()
        bars.tell(f"crashed {stats.crashed}, respawned {stats.respawned}, failed {stats.failed}")
    return bars.done()


def _seconds_of_a_call(pool: DaskPool) -> float:
    found = []
    for _ in range(100):
        since = time.monotonic()
        pool.submit(work.name_of_process).result()
        found.append(time.monotonic() - since)
    return statistics.median(found)


def _try(bars: Bars, pool: DaskPool, name: str, empty: float) -> None:
    fn, args, options, kind, is_right = FAULTS[name]
    with new_journal() as journal:
        since = time.monotonic()
        bad = pool.options(**options).submit(fn, *args)
        beside = [pool.submit(work.journalled, journal.path, number, BESIDE) for number in range(6)]
        if name == "cancel":
            wait_for(lambda: bad.running() and bad.node, "the bad task to run")
            since = time.monotonic()
            bad.cancel()
        error = error_of(bad)
        told = time.monotonic()
        bars.bar(type(error) is kind and is_right(error), f"{name}: {name_of(error)} on {bad.node}")
        if "timeout" in options:
            bars.tell(f"told {(told - since - LIMIT - empty) * 1e3:.0f} ms after the limit, beyond an empty call")
        if name == "cancel":
            again = pool.options(priority=2).submit(work.name_of_process)
            again.result()
            bars.tell(f"the next call was served {(time.monotonic() - since) * 1e3:.0f} ms after the cancel")
        results = [error_of(task) for task in beside]
        bars.bar(not any(results), f"the others have results: {sum(each is None for each in results)} of {len(beside)}")
        begun = journal.begun()
        bars.bar(sorted(begun.values()) == [1] * len(beside), f"and began once: {sorted(begun.values())}")
        bars.bar(len({task.node for task in beside}) == NODES, "on all nodes")


def main() -> int:
    """Do what the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.engine.faults", description="Bad tasks, and good ones.")
    parser.add_argument("--rounds", type=int, default=1, metavar="N")
    parser.add_argument("--only", choices=list(FAULTS))
    asked = parser.parse_args()
    return run(asked.rounds, asked.only)


if __name__ == "__main__":
    sys.exit(main())
