"""Many nodes: they join, keep their leases, and a quarter of them is lost at once.

Usage: python -m tests.engine.many [--agents 200]

The nodes are dask workers, as many in each of four processes; their agents have no workers, and begin what they are
sent without ever ending it. All are up when the pool is made; all run tasks when one of the processes is killed.
Bars: all join within 10 s, and get as many tasks as each has workers; while nothing happens, the owner takes less than
5 % of a core for leases and all else; when a quarter is lost, its tasks are told within a second after `D`, and no
others.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import dask
import distributed
import psutil

from engine.cluster import AFTER, Bars, Cluster, error_of, name_of, pause, wait_for
from poolkit._clock import monotonic
from poolkit._nodes import messages
from poolkit._nodes.interfaces import WIRE, AgentSettings, Channel, Message, NodeFacts
from poolkit._nodes.lease import Tenant
from poolkit._nodes.provider_dask import DaskProvider
from poolkit.nodes import NodePool
from support_dask import Program

PROCESSES = 4
WORKERS = 2  # of a node, as it says
QUIET = 20.0  # seconds in which nothing happens
JOIN, CORE, SETTLE = 10.0, 0.05, 1.0  # the bars


class Bare:
    """An agent without workers. On the event loop of its dask worker."""

    def __init__(
        self, settings: AgentSettings, *, address: str, host: str, workers: int, ended: Callable[[], object]
    ) -> None:
        self._lease, self._ended = settings.lease, ended
        versions = {"python": settings.python, "wire": str(WIRE)}
        self.facts = NodeFacts(os.urandom(8).hex(), address, host, os.getpid(), workers, versions)
        self._outbox: deque[tuple[Any, ...]] = deque([(messages.UP, workers)])
        self._tenant: Tenant | None = None
        self._channel: Channel | None = None

    def attach(self, channel: Channel) -> None:
        """The owner has connected."""
        self._channel = channel
        channel.take, channel.on_message, channel.on_end = self._take, self._came, lambda _reason: self._ended()
        channel.start()
        self._tenant = Tenant(self._lease, monotonic())
        self._ask()

    def _ask(self) -> None:
        assert self._tenant is not None
        if (stamp := self._tenant.ask(monotonic())) is not None:
            self._post((messages.ASK, stamp))
        asyncio.get_running_loop().call_later(self._lease / 10, self._ask)

    def _post(self, entry: tuple[Any, ...]) -> None:
        self._outbox.append(entry)
        if self._channel is not None:
            self._channel.wake()

    def _take(self) -> Message | None:
        entries = list(self._outbox)
        self._outbox.clear()
        return (messages.pack(entries), ()) if entries else None

    def _came(self, head: bytes, _parts: Sequence[Any]) -> None:
        assert self._tenant is not None
        for kind, *rest in messages.unpack(head):
            if kind == messages.LEASED:
                self._tenant.answered(rest[0])
            elif kind == messages.KILL:
                self._post((messages.CANCELLED, rest[0], rest[1], ""))
            elif kind == messages.BYE:
                self._ended()

    def leave(self, reason: str) -> None:
        """The node is to be taken away."""
        self._post((messages.LEAVING, reason))

    def close(self) -> None:
        """End the channel."""
        if self._channel is not None:
            self._channel.abort()


async def host(address: str, count: int) -> None:
    """Be so many dask workers, until this is killed."""
    workers = [distributed.Worker(address, nthreads=WORKERS, memory_limit=0, dashboard=False) for _ in range(count)]
    await asyncio.gather(*workers)
    print(f"{count} are up", file=sys.stderr, flush=True)
    await asyncio.Event().wait()


def cpu_of(processes: list[psutil.Process]) -> float:
    """Seconds of CPU time that these have taken."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def run(agents: int) -> int:
    """Show it; returns the exit status."""
    bars = Bars(f"many: {agents} nodes in {PROCESSES} processes")
    with Cluster(0) as cluster:
        command = "engine.many", "--agents", str(agents // PROCESSES), "--at", cluster.address
        hosts = [cluster.start(Program(*command)) for _ in range(PROCESSES)]
        for program in hosts:
            program.wait_for_line("are up")
        others = [psutil.Process(program.pid) for program in (cluster.scheduler, *hosts)]
        since, cpu, theirs = time.monotonic(), time.process_time(), cpu_of(others)
        provider = DaskProvider(cluster.address, timeout=60.0, agent="engine.many:Bare")
        with NodePool(provider, min_nodes=agents) as pool:
            seconds = time.monotonic() - since
            bars.bar(seconds < JOIN, f"joined in {seconds:.1f} s (at most {JOIN:g})")
            cpu, theirs = time.process_time() - cpu, cpu_of(others) - theirs
            bars.tell(
                f"CPU time a node: the owner's {cpu / agents * 1e3:.1f} ms, all others' {theirs / agents * 1e3:.1f}"
            )
            tasks = [pool.submit(abs, number) for number in range(agents * WORKERS)]
            wait_for(lambda: sum(node.running for node in pool.nodes()) == len(tasks), "all nodes to have tasks")
            bars.bar({node.running for node in pool.nodes()} == {WORKERS}, f"tasks on each node: {WORKERS}")
            pause(2.0)  # until the nodes are held
            heard = pool.stats().network_messages
            since, cpu, theirs = time.monotonic(), time.process_time(), cpu_of(others)
            pause(QUIET)
            cpu, theirs, seconds = time.process_time() - cpu, cpu_of(others) - theirs, time.monotonic() - since
            share = cpu / seconds
            rate = (pool.stats().network_messages - heard) / QUIET
            bars.bar(share < CORE, f"quiet: {share:.1%} of a core (at most {CORE:.0%}), {rate:.0f} messages a second")
            bars.tell(f"Dask's scheduler and its workers: {theirs / seconds:.1%}")
            victims = {node.address for node in pool.nodes() if node.pid == hosts[0].pid}
            doomed = [task for task in tasks if task.node in victims]
            cpu = time.process_time()
            hosts[0].kill()
            since = time.monotonic()
            errors = [error_of(task) for task in doomed]
            seconds = time.monotonic() - since
            bars.bar(
                seconds - AFTER < SETTLE,
                f"{len(victims)} lost at once, {len(doomed)} tasks told after {AFTER:g} + {seconds - AFTER:.2f} s",
            )
            bars.tell(f"the owner's CPU time for that: {time.process_time() - cpu:.2f} s")
            bars.bar({name_of(error) for error in errors} == {"NodeLost(closed)"}, "all as NodeLost, closed")
            bars.bar(sum(task.done() for task in tasks) == len(doomed), "no other task is told anything")
            bars.bar(len(pool.nodes()) == agents - len(victims), f"nodes left: {len(pool.nodes())}")
            pool.shutdown(kill=True)
    return bars.done()


def main() -> int:
    """Do what the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.engine.many", description="Many nodes.")
    parser.add_argument("--agents", type=int, default=200, metavar="N")
    parser.add_argument("--at", metavar="ADDRESS", help=argparse.SUPPRESS)  # of a scheduler: be its dask workers
    asked = parser.parse_args()
    if asked.at is not None:
        with dask.config.set({"distributed.worker.profile.enabled": False}):
            asyncio.run(host(asked.at, asked.agents))
    return run(asked.agents)


if __name__ == "__main__":
    sys.exit(main())
