"""What fails in the soak, and what its processes hold meanwhile; see `soak.py`."""

from __future__ import annotations

import contextlib
import functools
import heapq
import itertools
import os
import random
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable

import distributed
import psutil

from engine import work
from engine.cluster import LONG, Cluster, offspring, pause, wait_for
from engine.soak_owner import LEASE, NODES, Owner
from soak import memory

OLD = 120.0  # seconds that a node has lived for, of which what it holds is told
MEMORY, DESCRIPTORS, THREADS = 4 << 20, 8, 4  # what may have grown
SHORT_MEMORY = {  # for dask workers, which keep an hour of profiles and records otherwise: half a MiB more each minute
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__LOG_LENGTH": "60",
    "DASK_DISTRIBUTED__ADMIN__LOW_LEVEL_LOG_LENGTH": "100",
    "DASK_DISTRIBUTED__ADMIN__LOG_LENGTH": "100",
}

WEIGHTS = {
    "kill": 8,
    "kill_under_nanny": 4,
    "kill_child": 8,
    "stop_shortly": 6,
    "stop_for_long": 4,
    "hold_the_gil": 4,
    "retire": 4,
    "join": 4,
    "kill_scheduler": 1,
    "stop_owner_shortly": 2,
    "stop_owner_for_long": 1,
}


class Faults:
    """What can fail; each method does it to a random one, of whom the oldest node is spared what would end it.

    What is to be undone later, or is done by Dask, is on the agenda or on a thread.
    """

    def __init__(self, cluster: Cluster, owner: Owner) -> None:
        self.cluster, self.owner = cluster, owner
        self.rng = random.Random()
        self.nannies: set[int] = set()  # of the nodes, those that are nannies
        self._agenda: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._threads: list[threading.Thread] = []
        self.in_vain: Counter[str] = Counter()

    def do(self, name: str, seed: int) -> None:
        """Have one thing fail."""
        self.rng.seed(seed)
        try:
            getattr(self, name)()
        except (IndexError, psutil.NoSuchProcess, ProcessLookupError):  # there is none, or not any more
            self.in_vain[name] += 1

    def later(self, seconds: float, what: Callable[[], object]) -> None:
        """Do that then."""
        heapq.heappush(self._agenda, (time.monotonic() + seconds, next(self._numbers), what))

    def act(self) -> None:
        """Do what is due."""
        while self._agenda and self._agenda[0][0] <= time.monotonic():
            with contextlib.suppress(ProcessLookupError):
                heapq.heappop(self._agenda)[2]()

    def settle(self) -> None:
        """Undo everything, and wait for what Dask does."""
        wait_for(lambda: self.act() or not self._agenda, "what is to be undone")
        for thread in self._threads:
            thread.join(LONG)

    def living(self) -> list[int]:
        """The nodes, by their first processes; the oldest comes first."""
        return [pid for pid, node in self.cluster.nodes.items() if not node.has_ended()]

    def dask_worker(self, pid: int) -> int:
        """Of a node, the process that the agent is in: that, or the one under it if that is a nanny."""
        if pid not in self.nannies:
            return pid
        children = psutil.Process(pid).children()
        return next(iter(child.pid for child in children if "spawn_main" in " ".join(child.cmdline())), pid)

    def agents(self) -> list[int]:
        """The dask workers that have something of the pool under them."""
        found = []
        for pid in self.living():
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(self.dask_worker(pid))
        return list(filter(offspring, found))

    def restore(self) -> None:
        """Start what is missing of the nodes."""
        living = self.living()
        if not self.nannies & set(living):
            self.nannies.update(self.cluster.add(1, "--nanny"))
            living = self.living()
        self.cluster.add(max(0, NODES - len(living)))

    def _any(self, *, to_end: bool = False, nanny: bool = False) -> int:
        found = [pid for pid in self.living()[to_end:] if (pid in self.nannies) is nanny]
        return self.rng.choice(found)

    def _stop(self, pid: int, seconds: float) -> None:
        os.kill(pid, signal.SIGSTOP)
        self.later(seconds, functools.partial(os.kill, pid, signal.SIGCONT))

    def _ask_dask(self, what: Callable[[distributed.Client], object]) -> None:
        def ask() -> None:
            try:
                with distributed.Client(self.cluster.address, set_as_default=False, timeout=5) as client:
                    what(client)
            except Exception:  # whatever comes of a scheduler or node that ends meanwhile
                self.in_vain["asked of Dask"] += 1

        self._threads.append(threading.Thread(target=ask, daemon=True))
        self._threads[-1].start()

    def _address(self, client: distributed.Client) -> str:
        return self.rng.choice(sorted(client.scheduler_info(n_workers=-1)["workers"]))

    def kill(self) -> None:
        """A dask worker."""
        self.cluster.kill(self._any(to_end=True))

    def kill_under_nanny(self) -> None:
        """A dask worker whose nanny starts it again."""
        os.kill(self.dask_worker(self._any(nanny=True)), signal.SIGKILL)

    def kill_child(self) -> None:
        """A process under a dask worker: a worker of the pool, or the template process."""
        children = offspring(self.dask_worker(self._any()))
        self.rng.choice(children).kill()

    def stop_shortly(self) -> None:
        """A dask worker, for less than its lease."""
        self._stop(self.dask_worker(self._any()), LEASE / 3)

    def stop_for_long(self) -> None:
        """The same for two leases."""
        self._stop(self.dask_worker(self._any()), LEASE * 2)

    def hold_the_gil(self) -> None:
        """A task of Dask's keeps the interpreter's lock of a dask worker, for less than the lease."""

        def ask(client: distributed.Client) -> None:
            client.submit(work.hold_the_gil, LEASE / 3, pure=False, workers=[self._address(client)]).result(LONG)

        self._ask_dask(ask)

    def retire(self) -> None:
        """Dask takes a node away."""
        self._ask_dask(lambda client: client.retire_workers([self._address(client)]))

    def join(self) -> None:
        """One node more than there are to be."""
        if len(self.living()) <= NODES:
            self.cluster.add(1)

    def kill_scheduler(self) -> None:
        """Dask's scheduler, with all nodes; others come with the next, at the same address."""
        self.cluster.kill_scheduler()
        old = self.living()
        pause(1.0)
        self.cluster.new_scheduler()
        for pid in self.nannies & set(old):
            self.cluster.nodes[pid].end()
        for pid in old:
            self.cluster.nodes.pop(pid)
        self.restore()

    def stop_owner_shortly(self) -> None:
        """The owner, for less than the lease."""
        self._stop(self.owner.pid, LEASE / 3)

    def stop_owner_for_long(self) -> None:
        """The owner, for two leases."""
        self._stop(self.owner.pid, LEASE * 2)


class Holdings:
    """What the owner and the dask workers hold, over time: memory, descriptors, threads."""

    def __init__(self) -> None:
        self._samples: dict[int, list[tuple[float, tuple[int, int, int]]]] = defaultdict(list)

    def look(self, *pids: int) -> None:
        """Take down what these hold now."""
        for pid in pids:
            with contextlib.suppress(OSError):  # it has ended
                if found := memory.uss(pid):
                    held = found, memory.descriptors(pid), memory.threads(pid)
                    self._samples[pid].append((time.monotonic(), held))

    def old(self, owner: int) -> list[int]:
        """Nodes that have lived for long."""
        return [pid for pid, found in self._samples.items() if pid != owner and found[-1][0] - found[0][0] >= OLD]

    def grown(self, pid: int) -> tuple[str, bool]:
        """The least that it held in a fifth of its time, near the begin and at the end; and whether that is more."""
        samples = self._samples[pid]
        begun, seconds = samples[0][0], samples[-1][0] - samples[0][0]

        def least(since: float, until: float) -> tuple[int, ...]:
            held = [held for at, held in samples if since <= (at - begun) / seconds <= until]
            return tuple(map(min, zip(*held, strict=True)))

        before, after = least(0.1, 0.3), least(0.8, 1.0)
        allowed = MEMORY, DESCRIPTORS, THREADS
        is_more = any(now > then + more for then, now, more in zip(before, after, allowed, strict=True))
        told = "; ".join(
            f"{what} {then / unit:.{digits}f} then {now / unit:.{digits}f}"
            for what, unit, digits, then, now in zip(
                ("MiB", "descriptors", "threads"), (1 << 20, 1, 1), (1, 0, 0), before, after, strict=True
            )
        )
        return f"{told} in {seconds:.0f} s", is_more
