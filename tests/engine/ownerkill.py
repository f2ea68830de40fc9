"""The owner of a pool is killed, or stopped for longer than its lease.

Usage: python -m tests.engine.ownerkill [--lease 3] [--patient]

Two nodes of two workers run tasks that tell every 20 ms that they live; the pool belongs to a process of its own.
Bars: after SIGKILL the last sign of life comes within a second. After SIGSTOP, within the lease and a second; when the
owner goes on after two leases, it gets `NodeLost` for what ran, and nodes join again and take tasks. Some time after an
owner's death, nothing of its pool is left in the scheduler and on the nodes: no plugin, handler, or process. That
time is a minute; without `--patient` the nodes are told to wait for a few seconds only.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import distributed

from engine import impatient, work
from engine.cluster import Bars, Cluster, error_of, name_of, new_journal, offspring, pause, wait_for
from engine.work import Journal
from poolkit._nodes import dask_node
from poolkit.dask import DaskPool

NODES, WORKERS = 2, 2
TASKS = NODES * WORKERS
SLACK = 1.0  # seconds


def own(address: str, path: str, lease: float) -> None:
    """Be the owner: run tasks that outlive everything, and then others."""
    with DaskPool(address, min_nodes=NODES, lease=lease) as pool:
        tasks = [pool.submit(work.journalled, path, number, 600.0) for number in range(TASKS)]
        print("lost", *[name_of(error_of(task, 600.0)) for task in tasks], flush=True)
        wait_for(lambda: sum(node.state == "up" for node in pool.nodes()) == NODES, "nodes to join again")
        again = [pool.submit(work.journalled, path, TASKS + number, 0.2) for number in range(2 * TASKS)]
        print("then", *[name_of(error_of(task)) for task in again], flush=True)
        print("on", len({task.node for task in again}), flush=True)


@contextlib.contextmanager
def owner(address: str, journal: Journal, lease: float) -> Iterator[subprocess.Popen[str]]:
    """A process that owns a pool, when its tasks run."""
    arguments = ["--own", address, "--journal", journal.path, "--lease", str(lease)]
    process = subprocess.Popen(
        [sys.executable, "-m", "engine.ownerkill", *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: len(journal.begun()) == TASKS or process.poll() is not None, "the tasks to begin")
        yield process
    finally:
        process.kill()
        process.communicate()


def run(lease: float, *, patient: bool) -> int:
    """Kill and stop owners; returns the exit status."""
    bars = Bars(f"ownerkill: lease {lease:g} s")
    alone = dask_node.ALONE if patient else impatient.ALONE
    options = () if patient else ("--preload", "engine.impatient")
    with Cluster(NODES, WORKERS, *options) as cluster:
        _kill(bars, cluster.address, lease)
        died = time.monotonic()
        _stop(bars, cluster.address, lease)
        with distributed.Client(cluster.address, set_as_default=False) as client:
            left: list[str] = []

            def is_clean() -> bool:
                left[:] = what_is_left(client) + [
                    f"{process.pid} {' '.join(process.cmdline())[:80]}"
                    for pid in cluster.nodes
                    for process in offspring(pid)
                    if process.status() != "zombie"
                ]
                return not left

            with contextlib.suppress(TimeoutError):
                wait_for(is_clean, "nothing to be left", alone * 2 + 30)
            bars.bar(not left, f"left of the pools on the nodes: {left or 'nothing'}")
            bars.tell(f"{time.monotonic() - died:.1f} s after the death of the first owner (nodes wait {alone:g} s)")
    return bars.done()


def _kill(bars: Bars, address: str, lease: float) -> None:
    with new_journal() as journal, owner(address, journal, lease) as process:
        killed = time.monotonic()
        process.kill()
        pause(2 * SLACK)
        after = last_sign(journal) - killed
        bars.bar(after < SLACK, f"SIGKILL: the last sign of life comes {after:.3f} s after it (less than {SLACK:g})")
        pause(0.5)
        bars.bar(last_sign(journal) - killed == after, "and none after that")
        bars.bar(set(journal.begun().values()) == {1}, "each task has begun once")


def _stop(bars: Bars, address: str, lease: float) -> None:
    with new_journal() as journal, owner(address, journal, lease) as process:
        stopped = time.monotonic()
        process.send_signal(signal.SIGSTOP)
        pause(2 * lease)
        lasted = last_sign(journal) - stopped
        process.send_signal(signal.SIGCONT)
        text = f"SIGSTOP: the last sign of life comes {lasted:.3f} s after it (less than {lease + SLACK:g})"
        bars.bar(lasted < lease + SLACK, text)
        said, _ = process.communicate(timeout=120)
        for line in said.splitlines():
            bars.tell(f"the owner: {line}")
        lines = dict(line.split(" ", 1) for line in said.splitlines())
        bars.bar(lines.get("lost", "").count("NodeLost") == TASKS, "when it wakes it gets NodeLost for what ran")
        bars.bar(lines.get("then", "").split() == ["results"] * (2 * TASKS), "then nodes join again and take tasks")
        bars.bar(lines.get("on") == str(NODES), "all of them")
        bars.bar(set(journal.begun().values()) == {1}, "each task has begun once")


def last_sign(journal: Journal) -> float:
    """When any task has said last that it lives."""
    return max(float(at) for _, _, at, _ in journal.lines())


def what_is_left(client: Any) -> list[str]:
    """Plugins and handlers of pools, in the scheduler and on the nodes."""

    def on_node(dask_worker: Any) -> list[str]:
        return [name for name in (*dask_worker.plugins, *dask_worker.handlers) if name.startswith("poolkit-")]

    def on_scheduler(dask_scheduler: Any) -> list[str]:
        return [name for name in dask_scheduler.worker_plugins if name.startswith("poolkit-")]

    found = [f"scheduler: {name}" for name in client.run_on_scheduler(on_scheduler)]
    for address, names in client.run(on_node).items():
        found += [f"{address}: {name}" for name in names]
    return found


def main() -> int:
    """Do what the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.engine.ownerkill", description="An owner dies, or sleeps.")
    parser.add_argument("--lease", type=float, default=3.0, metavar="SECONDS")
    parser.add_argument("--patient", action="store_true", help="nodes wait for an owner as long as they do")
    parser.add_argument("--own", metavar="ADDRESS", help=argparse.SUPPRESS)
    parser.add_argument("--journal", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.own is not None:
        own(asked.own, asked.journal, asked.lease)
        return 0
    return run(asked.lease, patient=asked.patient)


if __name__ == "__main__":
    sys.exit(main())
