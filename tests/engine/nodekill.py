"""A node is killed in a burst of tasks, by SIGKILL of its dask worker.

Usage: python -m tests.engine.nodekill [--tasks 5000] [--retries 2] [--short] [--nanny] [--seed N]

Three nodes of two workers; each task writes down when it begins, lives and ends, and takes 20 ms. At a random moment of
the first half one of the dask workers is killed. With `--nanny` it is started again, by its nanny.
Bars: no task begins twice, none stays without outcome, `NodeLost` for no more than that node's workers. With retries:
only results, and no run of a task begins while another one lives, by their own time stamps. With a nanny: the new dask
worker joins and takes tasks. With `--short`, tasks take 1 ms, and some are sent ahead: `NodeLost` for no more than what
that node was sent, with `.begun` None where nobody can know; none begins twice all the same.
"""

from __future__ import annotations

import argparse
import sys
import time

import poolkit
from engine import work
from engine.cluster import Bars, Cluster, count_of, error_of, new_journal, overlapping, seeded, wait_for
from poolkit.dask import DaskPool, NodeInfo

NODES, WORKERS = 3, 2
SECONDS, SHORT = 0.02, 0.001


def run(tasks: int, retries: int, *, short: bool, nanny: bool, seed: int | None) -> int:
    """Kill a node; returns the exit status."""
    rng = seeded(seed)
    seconds = SHORT if short else SECONDS
    how = f"{retries} retries, {'with nannies' if nanny else 'no nannies'}"
    bars = Bars(f"nodekill: {tasks} tasks of {seconds * 1000:.0f} ms, {how}")
    with (
        Cluster(NODES, WORKERS, nanny=nanny) as cluster,
        new_journal() as journal,
        DaskPool(cluster.address, min_nodes=NODES, retries=retries) as pool,
    ):
        since = time.monotonic()
        started = [pool.submit(work.journalled, journal.path, number, seconds) for number in range(tasks)]
        kill_at = rng.randrange(tasks // 20, tasks // 2)
        wait_for(started[kill_at].done, "the moment of the kill")
        victim = rng.choice(pool.nodes())
        if short:
            wait_for(lambda: slots_of(pool, victim) > WORKERS or started[-1].done(), "tasks that are sent ahead")
        cluster.kill(victim.pid)
        killed, most = time.monotonic(), slots_of(pool, victim)
        errors = [error_of(task) for task in started]
        bars.tell(
            f"killed after {kill_at} tasks, {killed - since:.1f} s; all done after {time.monotonic() - since:.1f} s"
        )
        begun = journal.begun()
        lost = [error for error in errors if isinstance(error, poolkit.NodeLost)]
        if short:
            bars.bar(most > WORKERS, f"places of that node: {most}, for {WORKERS} workers")
        bars.bar(all(task.done() for task in started), f"outcomes: {count_of(errors)}")
        if retries:
            bars.bar(not any(errors), "all have results")
            again = [runs for runs in journal.all_runs().values() if len(runs) > 1]
            bars.bar(len(again) <= most, f"begun more than once: {len(again)} (at most {most})")
            bars.bar(not overlapping(journal), f"runs that overlap: {len(overlapping(journal))}")
            for first, second, *_ in again:
                bars.tell(f"a retry began {second[0] - first[1]:.3f} s after the last sign of life")
        else:
            bars.bar(max(begun.values()) == 1, f"begun twice: {sum(count > 1 for count in begun.values())}")
            bars.bar(len(lost) <= most, f"NodeLost: {len(lost)} (at most {most})")
            bars.bar({error.reason for error in lost} <= {"closed"}, "their reason is that the connection was closed")
            unknown = sum(error.begun is None for error in lost)
            unbegun = [number for number, error in enumerate(errors) if error is not None and number not in begun]
            bars.bar(short or not unknown, f"of these may have begun or not: {unknown}; have not begun: {len(unbegun)}")
        bars.bar(len(lost) == sum(error is not None for error in errors), "no other error")
        ended = {int(number) for kind, number, *_ in journal.lines() if kind == "end"}
        right = all((error is not None) or number in ended for number, error in enumerate(errors))
        bars.bar(right, "every task with a result has ended")
        if nanny:
            _restarted(bars, pool, victim.pid)
    return bars.done()


def slots_of(pool: DaskPool, node: NodeInfo) -> int:
    """How many tasks may be sent to a node at a time."""
    return sum(worker.node == node.address for worker in pool.workers())


def _restarted(bars: Bars, pool: DaskPool, killed: int) -> None:
    """The new dask worker joins and takes tasks."""
    wait_for(lambda: sum(node.state == "up" for node in pool.nodes()) == NODES, "the new dask worker")
    bars.bar(killed not in {node.pid for node in pool.nodes()}, "the killed one is gone")

    def have_all_run_tasks() -> bool:
        for task in [pool.submit(work.name_of_process) for _ in range(20)]:
            task.result()
        return all(node.tasks_done for node in pool.nodes())

    wait_for(have_all_run_tasks, "tasks on the new one")
    bars.bar(True, f"tasks done: {[node.tasks_done for node in pool.nodes()]}")


def main() -> int:
    """Do what the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.engine.nodekill", description="A node is killed in a burst.")
    parser.add_argument("--tasks", type=int, default=5000, metavar="N")
    parser.add_argument("--retries", type=int, default=0, metavar="N")
    parser.add_argument("--short", action="store_true", help="tasks of 1 ms, of which some are sent ahead")
    parser.add_argument("--nanny", action="store_true", help="dask workers are started again by their nannies")
    parser.add_argument("--seed", type=int, metavar="N")
    asked = parser.parse_args()
    return run(asked.tasks, asked.retries, short=asked.short, nanny=asked.nanny, seed=asked.seed)


if __name__ == "__main__":
    sys.exit(main())
