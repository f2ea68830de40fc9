"""Real Dask clusters for the programs here: `dask scheduler` and `dask worker` on loopback; and bars to be met.

Ports are the system's choice. Each program has a session of its own, which is killed with it at the end.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from unittest import mock

import psutil

import poolkit
import poolkit.nodes
import support
from engine.work import Journal
from poolkit._nodes.lease import D
from support_dask import LOOPBACK, Node, Program, Scheduler

if TYPE_CHECKING:
    from typing_extensions import Self

    from engine.network import Network

AFTER = D  # seconds from the end of a node's connection until what it ran counts as ended
LONG = 120.0  # seconds within which everything here happens, on any machine


class Bars:
    """What a program has to show: each bar is printed, and a missed one makes its exit status 1."""

    def __init__(self, title: str) -> None:
        self.missed = 0
        self._since = time.monotonic()
        print(title, flush=True)

    def bar(self, met: object, text: str) -> None:
        """One thing that must be so."""
        self.missed += not met
        print(f"  {'ok ' if met else 'BAD'} {text}", flush=True)

    def tell(self, text: str) -> None:
        """One thing that is good to know."""
        print(f"      {text}", flush=True)

    def done(self) -> int:
        """The exit status."""
        seconds = time.monotonic() - self._since
        print(f"  {f'{self.missed} bars MISSED' if self.missed else 'bars met'}, {seconds:.1f} s", flush=True)
        return int(self.missed > 0)


class Cluster:
    """A scheduler and nodes. Use as a context manager."""

    def __init__(
        self, nodes: int, threads: int = 2, *options: str, nanny: bool = False, network: Network | None = None
    ) -> None:
        self._threads, self._options, self._nanny = threads, options, nanny
        self._host = (lambda: LOOPBACK) if network is None else network.host
        self._programs: list[Program] = []
        self.nodes: dict[int, Node] = {}  # by process: the nannies', where there are any
        self.scheduler = self.start(Scheduler(on=self._host()))
        self.address = self.scheduler.address
        self.add(nodes)

    def start(self, program: Any) -> Any:
        """Have this program end with the others. Returns it."""
        self._programs.append(program)
        return program

    def add(self, nodes: int, *more: str, nanny: bool = False, python: str = sys.executable) -> list[int]:
        """Start so many nodes more, with more options; does not wait for them. Returns their processes."""
        options = "--nthreads", str(self._threads), *self._options, *more
        nanny = nanny or self._nanny
        new = [
            self.start(Node(self.address, *options, nanny=nanny, python=python, on=self._host())) for _ in range(nodes)
        ]
        self.nodes.update({node.pid: node for node in new})
        return [node.pid for node in new]

    def kill(self, pid: int) -> None:
        """SIGKILL that process of a node, and nothing else."""
        os.kill(pid, signal.SIGKILL)
        self.nodes.pop(pid, None)

    def kill_scheduler(self) -> None:
        """SIGKILL Dask's scheduler."""
        os.kill(self.scheduler.pid, signal.SIGKILL)

    def new_scheduler(self) -> None:
        """Start a scheduler where the last one was."""
        self.scheduler.kill()
        self._programs.remove(self.scheduler)
        self.scheduler = self.start(Scheduler(int(self.address.rpartition(":")[2])))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        left = [found for program in self._programs for found in offspring(program.pid)]
        for program in reversed(self._programs):
            program.end()
        for process in left:  # workers have sessions of their own
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def local_cluster(nodes: int, workers: int) -> Any:
    """A cluster in Dask's own way, which can be scaled; its nodes have nannies."""
    import distributed  # which takes a second, and starts threads

    return distributed.LocalCluster(
        n_workers=nodes,
        threads_per_worker=workers,
        dashboard_address=":0",
        memory_limit=0,
        silence_logs=logging.CRITICAL,
    )


@contextlib.contextmanager
def impatient_nodes(seconds: float) -> Iterator[None]:
    """Have nodes that are taken away wait for so long for what they run, and owners for nodes as long as ever."""
    from poolkit._nodes import provider_dask

    class ImpatientProvider(provider_dask.DaskProvider):
        async def _enrol(self, client: Any) -> None:
            self._timeout = seconds
            await super()._enrol(client)

    with mock.patch.object(provider_dask, "DaskProvider", ImpatientProvider):
        yield


def offspring(pid: int) -> list[psutil.Process]:
    """The processes under that one."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return list(psutil.Process(pid).children(recursive=True))
    return []


@contextlib.contextmanager
def new_journal() -> Iterator[Journal]:
    """A file for what tasks write."""
    with tempfile.TemporaryDirectory() as folder:
        yield Journal(Path(folder) / "journal")


def wait_for(predicate: Callable[[], object], what: str, seconds: float = LONG) -> None:
    """Return when that is so. Raises TimeoutError."""
    give_up = time.monotonic() + seconds
    while not predicate():
        if time.monotonic() > give_up:
            raise TimeoutError(f"waited {seconds:g} s in vain for {what}")
        pause(support.STEP)


def up(pool: poolkit.nodes.NodePool) -> set[str]:
    """Addresses of the nodes that take work."""
    return {node.address for node in pool.nodes() if node.state == "up"}


def pause(seconds: float) -> None:
    """Let some time pass: what is to be shown has no event."""
    time.sleep(max(0.0, seconds))  # noqa: TID251 -- see above


def count_of(errors: list[BaseException | None]) -> str:
    """How many results and errors there are, of which kinds."""
    names = [name_of(error) for error in errors]
    return ", ".join(f"{names.count(name)} {name}" for name in sorted(set(names)))


def name_of(error: BaseException | None) -> str:
    """What it is, in a word or two."""
    if isinstance(error, poolkit.NodeLost):
        return f"NodeLost({error.reason})"
    return "results" if error is None else type(error).__name__


def error_of(task: poolkit.Task[Any], seconds: float = LONG) -> BaseException | None:
    """What the task has ended with, also when it was cancelled. Raises AssertionError when it does not end."""
    try:
        return task.exception(seconds)
    except BaseException as exc:
        if not task.done():
            raise AssertionError(f"task {task.id} has no outcome after {seconds:g} s") from exc
        return exc


def overlapping(journal: Journal) -> list[int]:
    """Tasks of which a run began before the run before it had given its last sign of life."""
    return [
        number
        for number, runs in journal.all_runs().items()
        if any(again[0] <= run[1] for run, again in itertools.pairwise(runs))
    ]


def seeded(seed: int | None) -> random.Random:
    """Random choices, whose seed is printed."""
    seed = random.SystemRandom().randrange(2**32) if seed is None else seed
    print(f"seed {seed}", file=sys.stdout, flush=True)
    return random.Random(seed)
