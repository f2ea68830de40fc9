"""Dask's scheduler is killed in a burst of tasks, and another one comes at the same address, with other nodes.

Usage: python -m tests.engine.schedkill [--tasks 400] [--away 2] [--seed N]

Two nodes of two workers; each task writes down when it begins and ends, and takes 20 ms. Dask workers close themselves
when their scheduler is gone: what they run is lost, what is queued stays in the pool.
Bars: what was queued has results; what ran has them too, or `NodeLost(reason="scheduler")`, and these are no more than
there were workers; no task begins twice; the old dask workers and all that they started are gone.
"""

from __future__ import annotations

import argparse
import sys
import time

import poolkit
from engine import work
from engine.cluster import Bars, Cluster, count_of, error_of, new_journal, offspring, pause, seeded, wait_for
from poolkit.dask import DaskPool

NODES, WORKERS = 2, 2
SECONDS = 0.02


def run(tasks: int, away: float, *, seed: int | None) -> int:
    """Kill the scheduler; returns the exit status."""
    rng = seeded(seed)
    bars = Bars(f"schedkill: {tasks} tasks of 20 ms, no scheduler for {away:g} s")
    with (
        Cluster(NODES, WORKERS) as cluster,
        new_journal() as journal,
        DaskPool(cluster.address, min_nodes=NODES) as pool,
    ):
        old = list(cluster.nodes)
        started = [pool.submit(work.journalled, journal.path, number, SECONDS) for number in range(tasks)]
        kill_at = rng.randrange(tasks // 20, tasks // 2)
        wait_for(started[kill_at].done, "the moment of the kill")
        under = [process for pid in old for process in offspring(pid)]
        cluster.kill_scheduler()
        pause(away)
        queued = sum(not task.done() for task in started)
        cluster.new_scheduler()
        cluster.add(NODES)
        since = time.monotonic()
        wait_for(lambda: any(node.state == "up" and node.pid not in old for node in pool.nodes()), "another node")
        bars.tell(f"killed after {kill_at} tasks; {queued} left; others joined after {time.monotonic() - since:.1f} s")
        errors = [error_of(task) for task in started]
        lost = [error for error in errors if isinstance(error, poolkit.NodeLost)]
        bars.bar(len(lost) == sum(error is not None for error in errors), f"outcomes: {count_of(errors)}")
        for error in errors:
            if error is not None and not isinstance(error, poolkit.NodeLost):
                bars.tell(str(error))
        bars.bar({error.reason for error in lost} <= {"scheduler"}, "all that is lost was lost with the scheduler")
        bars.bar(len(lost) <= NODES * WORKERS, f"NodeLost: {len(lost)} (at most {NODES * WORKERS})")
        begun = journal.begun()
        bars.bar(max(begun.values()) == 1, f"begun twice: {sum(count > 1 for count in begun.values())}")
        unbegun = [number for number, error in enumerate(errors) if error is None and number not in begun]
        bars.bar(not unbegun, f"results of what has not begun: {len(unbegun)}")
        wait_for(lambda: all(cluster.nodes[pid].has_ended() for pid in old), "the end of the old dask workers")
        left = [process for process in under if process.is_running() and process.status() != "zombie"]
        bars.bar(not left, f"processes of the old dask workers that are left: {len(left)}")
    return bars.done()


def main() -> int:
    """Do what the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.engine.schedkill", description="The scheduler is killed.")
    parser.add_argument("--tasks", type=int, default=400, metavar="N")
    parser.add_argument("--away", type=float, default=2.0, metavar="SECONDS", help="without a scheduler")
    parser.add_argument("--seed", type=int, metavar="N")
    asked = parser.parse_args()
    return run(asked.tasks, asked.away, seed=asked.seed)


if __name__ == "__main__":
    sys.exit(main())
