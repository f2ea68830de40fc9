"""Dask takes nodes away under load: one is retired, one has come to the end of its lifetime, or all may go.

Usage: python -m tests.engine.retire [--tasks 200] [--only retired lifetime late adapt] [--seed N]

Three nodes of two workers; each task writes down when it begins, lives and ends, and takes 20 ms to a second.
retired: `client.retire_workers` of one node, in a burst. lifetime: one node has a `--lifetime`, and a nanny. Bars: all
tasks have results, none begins twice, nothing more is sent to the node that leaves, and its process ends.
late: a node is retired under tasks that take longer than it waits for them (`node_timeout`). Bars: `NodeLost` then, and
not before; or a retry that begins on another node when the first run has ended.
adapt: `cluster.adapt(0, 3)` of a `LocalCluster`, under load and after it. Bars: the nodes stay as long as they are in
use, all tasks have results, and within 15 s (`idle_timeout` and 5 s) without work all nodes are given back.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import time
from typing import Any

import distributed

import poolkit
import support
from engine import work
from engine.cluster import (
    AFTER,
    Bars,
    Cluster,
    count_of,
    error_of,
    impatient_nodes,
    local_cluster,
    new_journal,
    overlapping,
    pause,
    seeded,
    up,
    wait_for,
)
from engine.work import Journal
from poolkit.dask import DaskPool

NODES, WORKERS = 3, 2
SECONDS = 0.02, 0.02, 0.05, 0.3, 1.0  # that tasks take
LIFETIME = 6.0  # seconds, and up to two more
GRACE = 3.0  # seconds that a node has for what it runs; `node_timeout`, if owners did not wait for nodes as long
IDLE = 10.0 + 5.0  # seconds; `idle_timeout` as it is by default, and what is allowed beside it
SETTLE = 0.1  # seconds in which what is known of a node has come to be heeded


def burst(pool: DaskPool, journal: Journal, tasks: int, rng: random.Random) -> list[poolkit.Task[int]]:
    """Submit tasks of different lengths."""
    seconds = [rng.choice(SECONDS) for _ in range(tasks)]
    return [pool.submit(work.journalled, journal.path, number, takes) for number, takes in enumerate(seconds)]


def retired(bars: Bars, tasks: int, rng: random.Random) -> None:
    """One node is retired in a burst."""
    with (
        Cluster(NODES, WORKERS) as cluster,
        new_journal() as journal,
        DaskPool(cluster.address, min_nodes=NODES) as pool,
        distributed.Client(cluster.address, set_as_default=False) as client,
    ):
        started = burst(pool, journal, tasks, rng)
        wait_for(started[rng.randrange(tasks // 20, tasks // 2)].done, "the moment to retire a node")
        victim = rng.choice(pool.nodes())
        client.retire_workers([victim.address])
        _leaves(bars, pool, journal, started, victim)


def lifetime(bars: Bars, tasks: int, rng: random.Random) -> None:
    """One node has a lifetime, as in a batch system, and goes by itself in a burst."""
    with Cluster(NODES - 1, WORKERS) as cluster, new_journal() as journal:
        cluster.add(1, "--lifetime", f"{LIFETIME + 2 * rng.random():.3f} seconds", nanny=True)
        with DaskPool(cluster.address, min_nodes=NODES) as pool:
            (victim,) = [node for node in pool.nodes() if node.pid not in cluster.nodes]
            _leaves(bars, pool, journal, burst(pool, journal, tasks, rng), victim)


def _leaves(
    bars: Bars, pool: DaskPool, journal: Journal, started: list[poolkit.Task[int]], victim: poolkit.dask.NodeInfo
) -> None:
    """A node goes; nothing is lost, and nothing more is sent there."""
    wait_for(lambda: victim.address not in up(pool), "the node to leave")
    left = time.monotonic()
    pause(SETTLE)
    there = _sent_to(victim.address, started)
    running = sum(not task.done() for task in there)
    wait_for(lambda: not support.is_alive(victim.pid), "the process of the node to end")
    bars.tell(f"the node left under {running} tasks, and its process ended {time.monotonic() - left:.2f} s later")
    errors = [error_of(task) for task in started]
    bars.bar(not any(errors), f"outcomes: {count_of(errors)}")
    after = len(_sent_to(victim.address, started)) - len(there)
    bars.bar(after == 0, f"tasks that were sent there afterwards: {after}")
    counts = set(journal.begun().values())
    bars.bar(counts == {1}, f"each task has begun once, {len(journal.begun())} in all")
    bars.bar(len(pool.nodes()) == NODES - 1, f"nodes that are left: {len(pool.nodes())}")


def late(bars: Bars, _tasks: int, _rng: random.Random) -> None:
    """A node is retired under tasks that take too long, one of which is to be repeated."""
    with (
        Cluster(1, WORKERS) as cluster,
        new_journal() as journal,
        impatient_nodes(GRACE),
        DaskPool(cluster.address) as pool,
        distributed.Client(cluster.address, set_as_default=False) as client,
    ):
        lost = pool.submit(work.journalled, journal.path, 0, 600.0)
        again = pool.options(retries=1).submit(work.journalled_long_at_first, journal.path, 1)
        wait_for(lambda: len(journal.begun()) == 2, "the tasks to begin")
        cluster.add(1)
        wait_for(lambda: len(up(pool)) == 2, "another node")
        began = time.monotonic()
        client.retire_workers([str(lost.node)])
        error = error_of(lost)
        told = time.monotonic() - began
        is_right = isinstance(error, poolkit.NodeLost) and (error.reason, error.begun) == ("retired", True)
        bars.bar(is_right, f"what takes too long ends with {error!r:.60}")
        lasted = journal.runs(0)[-1][1] - began
        most = GRACE + 2.0
        bars.bar(
            GRACE - 0.1 < lasted < most,
            f"its last sign of life comes {lasted:.2f} s after ({GRACE:g} to {most:g})",
        )
        bars.bar(told < most + AFTER, f"which is told {told:.2f} s after")
        bars.bar(error_of(again) is None, "what is to be repeated has its result")
        bars.bar(len(journal.runs(1)) == 2, f"runs of that: {len(journal.runs(1))}")
        bars.bar(not overlapping(journal), f"runs that overlap: {len(overlapping(journal))}")


def adapt(bars: Bars, tasks: int, rng: random.Random) -> None:
    """Dask may take any node, and takes those that are idle."""
    with (
        local_cluster(NODES, WORKERS) as cluster,
        new_journal() as journal,
        DaskPool(cluster.scheduler_address, min_nodes=NODES) as pool,
    ):
        started = burst(pool, journal, tasks, rng)
        wait_for(started[tasks // 20].done, "the load")
        cluster.adapt(minimum=0, maximum=NODES)
        fewest = NODES
        while pool.stats().queued:
            fewest = min(fewest, len(up(pool)))
            pause(SETTLE)
        bars.bar(fewest == NODES, f"nodes while tasks are queued: at least {fewest}")
        errors = [error_of(task) for task in started]
        idle = time.monotonic()
        bars.bar(not any(errors), f"outcomes: {count_of(errors)}")
        bars.bar(set(journal.begun().values()) == {1}, f"each task has begun once, {len(journal.begun())} in all")
        with contextlib.suppress(TimeoutError):
            wait_for(lambda: not pool.nodes() and not cluster.plan, "the nodes to be given back", IDLE)
        text = f"{len(pool.nodes())} nodes are left {time.monotonic() - idle:.1f} s after the end of the work"
        bars.bar(not pool.nodes(), text)


def _sent_to(address: str, tasks: list[poolkit.Task[Any]]) -> list[poolkit.Task[Any]]:
    return [task for task in tasks if task.node == address]


PARTS = {part.__name__: part for part in (retired, lifetime, late, adapt)}


def main() -> int:
    """Do what the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.engine.retire", description="Dask takes nodes away.")
    parser.add_argument("--tasks", type=int, default=200, metavar="N")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--seed", type=int, metavar="N")
    asked = parser.parse_args()
    rng = seeded(asked.seed)
    missed = 0
    for name in asked.only:
        bars = Bars(f"retire, {name}: {PARTS[name].__doc__}")
        PARTS[name](bars, asked.tasks, rng)
        missed += bars.done()
    return missed


if __name__ == "__main__":
    sys.exit(main())
