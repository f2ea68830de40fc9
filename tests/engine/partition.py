"""A node is cut off while it lives on: by the network, or as its dask worker is stopped or held up.

Usage: python -m tests.engine.partition [--only CASE ...] [--times 1] [--lease 3] [--seed N]

Owner, scheduler and two nodes are in network namespaces of their own. Each node runs tasks with a retry and without;
each task writes down when it begins, lives and ends. Then one of the nodes is cut off:

    down, out, in   its link is down; only what it sends is lost; only what is sent to it
    timeout         its link is down, and the owner's end of the connection times out before the lease is over
    stop            its dask worker is stopped
    gil             a Dask task holds the interpreter's lock of its dask worker, for three leases
    heals-...       as down, out, in, stop and gil, but only for a third of the lease

Bars: by their own time stamps, the old runs end within the lease and a second, and a retry begins after that; without
retries, `NodeLost("silent")`; the other node's tasks have results and have begun once; the node joins again and takes
tasks. Where it heals: nothing happens, all tasks have results and have begun once.
Exit status 2 where no namespaces can be made.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import dask
import distributed

import poolkit
from engine import network, work
from engine.cluster import AFTER, Bars, Cluster, error_of, name_of, new_journal, pause, seeded, wait_for
from engine.work import Journal
from poolkit.dask import DaskPool
from poolkit.nodes import NodeInfo

NODES, WORKERS = 2, 4
WAYS = "down", "out", "in"
LOSSES = (*WAYS, "timeout", "stop", "gil")
HEALS = tuple(f"heals-{case}" for case in LOSSES if case != "timeout")
CASES = (*LOSSES, *HEALS)
TCP_PATIENCE = 11.0  # seconds, the least that Dask takes; the case "timeout" has a lease that is longer


class Site:
    """The owner's place in the network: a cluster and a pool on it."""

    def __init__(self, cluster: Cluster, net: network.Network, pool: DaskPool, lease: float) -> None:
        self.cluster, self.net, self.pool, self.lease = cluster, net, pool, lease
        self.left: list[Any] = []
        self.joined: list[float] = []
        pool.on("node_left", self.left.append)
        pool.on("node_joined", lambda _: self.joined.append(time.monotonic()))

    def cut(self, node: NodeInfo, how: str, seconds: float) -> Callable[[], object]:
        """Cut a node off, for so long if it cannot be ended; returns what ends it."""
        program = self.cluster.nodes[node.pid]
        if how in WAYS:
            return self.net.cut(program.host, how)
        if how == "stop":
            program.signal(signal.SIGSTOP)
            return lambda: program.signal(signal.SIGCONT)
        client = distributed.Client(self.cluster.address, set_as_default=False)
        client.submit(work.hold_the_gil, seconds, workers=[node.address], pure=False)
        return client.close


def spread(pool: DaskPool, journal: Journal, seconds: float) -> dict[int, poolkit.Task[int]]:
    """Tasks by their number, when each node runs one with a retry and one without."""
    tasks: dict[int, poolkit.Task[int]] = {}
    while len({(task.node, has_retry(number)) for number, task in tasks.items()}) < 2 * NODES:
        number = len(tasks)
        retries = int(has_retry(number))
        tasks[number] = pool.options(retries=retries).submit(work.journalled, journal.path, number, seconds)
        wait_for(lambda: number in journal.begun(), f"task {number} to begin")  # noqa: B023 -- called here
    return tasks


def has_retry(number: int) -> bool:
    """Two with one, two without: nodes mostly take turns."""
    return number % 4 < 2


def once(site: Site, case: str, rng: random.Random) -> tuple[list[str], str, float]:
    """Cut a node off, once. Returns what is wrong; what is told; seconds between the end of a run and its retry."""
    lease, is_loss = site.lease, case in LOSSES
    how = "down" if case == "timeout" else case.removeprefix("heals-")
    away = 3 * lease if case == "gil" else lease + 3 * AFTER if is_loss else lease / 3
    site.left.clear()
    with new_journal() as journal:
        tasks = spread(site.pool, journal, max(away, lease) + AFTER)
        victim = rng.choice([node for node in site.pool.nodes() if node.state == "up"])
        there = {number for number, task in tasks.items() if task.node == victim.address}
        told: list[float] = []
        for number in there:
            tasks[number].add_done_callback(lambda _: told.append(time.monotonic()))
        mend = site.cut(victim, how, away)
        since = time.monotonic()
        pause(away)
        mend()
        mended = time.monotonic()
        errors = {number: error_of(task) for number, task in tasks.items()}
        runs = journal.all_runs()
    wrong = []
    for number, error in errors.items():
        is_lost = is_loss and number in there
        want = "NodeLost(silent)" if is_lost and not has_retry(number) else "results"
        if name_of(error) != want:
            wrong.append(f"task {number}: {name_of(error)}, not {want}")
        if len(runs[number]) != 1 + (is_lost and has_retry(number)):
            wrong.append(f"task {number} began {len(runs[number])} times")
    if not is_loss:
        wrong += [f"a node left: {event}" for event in site.left]
        return wrong, f"nothing happened in {away:.1f} s", 0.0
    ended = max(runs[number][0][1] for number in there) - since
    again = [each for each in runs.values() if len(each) > 1]
    gap = min((later[0] - first[1] for first, later, *_ in again), default=-1.0)
    if gap <= 0:
        wrong.append("runs of a task overlap, or none was repeated")
    if ended > lease + AFTER:
        wrong.append("a run outlived the lease")
    wait_for(lambda: sum(node.state == "up" for node in site.pool.nodes()) == NODES, "the node to join again")
    rejoined = site.joined[-1] - mended
    wait_for(lambda: len({task.node for task in _served(site.pool)}) == NODES, "both nodes to take tasks")
    retried = min((later[0] for _, later, *_ in again), default=math.nan) - since
    text = (
        f"old runs ended after {ended:.2f} s, NodeLost told after {min(told) - since:.2f} s, "
        f"retries began after {retried:.2f} s, {gap:.2f} s after their old run; joined again {rejoined:.2f} s later"
    )
    return wrong, text, gap


def _served(pool: DaskPool) -> list[poolkit.Task[int]]:
    tasks = [pool.submit(work.name_of_process) for _ in range(NODES * WORKERS)]
    for task in tasks:
        task.result()
    return tasks


@contextlib.contextmanager
def site(net: network.Network, lease: float, tcp: float) -> Iterator[Site]:
    """A cluster, and a pool on it whose connections time out after so many seconds."""
    with (
        Cluster(NODES, WORKERS, "--preload", "engine.impatient", network=net) as cluster,
        dask.config.set({"distributed.comm.timeouts.tcp": f"{tcp} s"}),
        DaskPool(cluster.address, min_nodes=NODES, lease=lease) as pool,
    ):
        yield Site(cluster, net, pool, lease)


def run(cases: list[str], times: int, lease: float, *, seed: int | None) -> int:
    """Cut nodes off; returns the exit status."""
    rng = seeded(seed)
    bars = Bars(f"partition: lease {lease:g} s, each case {times} times")
    with network.Network() as net:
        for is_impatient in (False, True):
            now = [case for case in cases if (case == "timeout") is is_impatient]
            if not now:
                continue
            seconds = (TCP_PATIENCE + 4.0, TCP_PATIENCE) if is_impatient else (lease, 10 * lease)
            with site(net, *seconds) as place:
                for case in now:
                    gaps = []
                    for number in range(times):
                        wrong, text, gap = once(place, case, rng)
                        bars.bar(not wrong, f"{case} {number + 1}: {'; '.join([*wrong, text])}")
                        gaps.append(gap)
                    if case in LOSSES:
                        median = statistics.median(gaps)
                        text = f"a retry began {min(gaps):.2f} s or more after its old run (median {median:.2f} s)"
                        bars.tell(f"{case}: {text}, lease {place.lease:g} s")
    return bars.done()


def main() -> int:
    """Do what the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.engine.partition", description="Nodes are cut off.")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--times", type=int, default=1, metavar="N")
    parser.add_argument("--lease", type=float, default=3.0, metavar="SECONDS")
    parser.add_argument("--seed", type=int, metavar="N")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside:
        return run(asked.only, asked.times, asked.lease, seed=asked.seed)
    if lack := network.what_lacks():
        print(f"no network namespaces can be made here: {lack}", file=sys.stderr)
        return 2
    return network.enter("engine.partition", "--inside", *sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
