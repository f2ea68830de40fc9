"""A pool asks a Dask cluster for nodes while it has work for them, and gives them back.

Usage: python -m tests.engine.adapt [--rounds 1] [--seed N]

`DaskPool(LocalCluster, max_nodes=3)`, nodes of two workers. In each round tasks of 0.2 s are queued until three nodes
have run some, and then none. After the rounds there is one in which a node is taken away under load.
Bars: all tasks have results, and none begins twice; within `idle_timeout` and 5 s there is one node, `min_nodes`, which
takes tasks; for the node that was taken away another one comes.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable

import distributed

import poolkit
from engine import work
from engine.cluster import Bars, count_of, error_of, local_cluster, new_journal, seeded, up, wait_for
from engine.work import Journal
from poolkit.dask import DaskPool

NODES, WORKERS = 3, 2
SECONDS = 0.2  # that a task takes
QUEUED = 4 * NODES * WORKERS  # tasks, under load
IDLE = 2.0  # seconds, `idle_timeout`
SLACK = 5.0  # seconds that nodes may take to be given back, beyond that


def run(rounds: int, *, seed: int | None) -> int:
    """Have a cluster grow and shrink; returns the exit status."""
    rng = seeded(seed)
    bars = Bars(f"adapt: 1 to {NODES} nodes of {WORKERS} workers, tasks of {SECONDS:g} s")
    with (
        local_cluster(1, WORKERS) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
        new_journal() as journal,
        DaskPool(cluster, max_nodes=NODES, idle_timeout=IDLE) as pool,
    ):
        load = Load(pool, journal)
        for _ in range(rounds):
            _grow(bars, load, pool)
            _shrink(bars, load, pool)
        _grow(bars, load, pool)
        before = running(pool)
        client.retire_workers([rng.choice(sorted(before))])
        took = load.until(lambda: running(pool) - before and len(running(pool)) == NODES, "another node")
        bars.tell(f"another node runs tasks {took:.1f} s after one was taken away")
        _shrink(bars, load, pool)
        counts = journal.begun()
        bars.bar(set(counts.values()) == {1}, f"each task has begun once, {len(counts)} in all")
    return bars.done()


def _grow(bars: Bars, load: Load, pool: DaskPool) -> None:
    took = load.until(lambda: len(running(pool)) == NODES, "the cluster to grow")
    bars.tell(f"grew to {NODES} nodes in {took:.1f} s")


def _shrink(bars: Bars, load: Load, pool: DaskPool) -> None:
    errors = load.ended()
    idle = time.monotonic()
    bars.bar(not any(errors), f"outcomes: {count_of(errors)}")
    with contextlib.suppress(TimeoutError):
        wait_for(lambda: len(up(pool)) == 1, "the cluster to shrink", IDLE + SLACK)
    text = f"{len(up(pool))} node is left {time.monotonic() - idle:.1f} s after the end of the work"
    bars.bar(len(up(pool)) == 1, text)
    bars.bar(pool.submit(abs, -3).result(30) == 3, "which takes tasks")


class Load:
    """Tasks, of which some are always queued."""

    def __init__(self, pool: DaskPool, journal: Journal) -> None:
        self._pool, self._journal = pool, journal
        self._tasks: list[poolkit.Task[int]] = []

    def until(self, predicate: Callable[[], object], what: str) -> float:
        """Have tasks queued until that is so; returns after how many seconds it was."""
        began = time.monotonic()

        def is_so() -> object:
            while self._pool.stats().queued < QUEUED:
                task = self._pool.submit(work.journalled, self._journal.path, len(self._tasks), SECONDS)
                self._tasks.append(task)
            return predicate()

        wait_for(is_so, what)
        return time.monotonic() - began

    def ended(self) -> list[BaseException | None]:
        """Wait for the end of all tasks; returns how each one ended."""
        return [error_of(task) for task in self._tasks]


def running(pool: DaskPool) -> set[str]:
    """Addresses of the nodes that have run tasks and take more."""
    return {node.address for node in pool.nodes() if node.state == "up" and node.tasks_done}


def main() -> int:
    """Do what the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.engine.adapt", description="A cluster grows and shrinks.")
    parser.add_argument("--rounds", type=int, default=1, metavar="N")
    parser.add_argument("--seed", type=int, metavar="N")
    asked = parser.parse_args()
    return run(asked.rounds, seed=asked.seed)


if __name__ == "__main__":
    sys.exit(main())
