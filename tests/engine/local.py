"""Local nodes in tests: of a pool, where a task runs, nodes that are stopped; and an owner that can be killed.

The owner is a process of its own: `python -m engine.local JOURNAL LEASE`. It says first which processes its nodes are,
then what became of the tasks that ran, and of those that were queued behind them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import poolkit
from engine import work
from engine.work import Journal
from poolkit._nodes.provider_local import LocalProvider
from poolkit.nodes import NodePool
from support import wait_until

MakePool = Callable[..., NodePool]
NODES = 2  # of the owner, each of one worker


def pid_of(pool: NodePool, task: poolkit.Task[Any]) -> int:
    """The process of the node that runs a task."""
    return next(node.pid for node in pool.nodes() if node.address == task.node)


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process of which each thread is stopped; it goes on afterwards."""
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: _is_stopped(pid), "all threads of it to stop")
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _is_stopped(pid: int) -> bool:
    states = [path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return set(states) == {"T"}


def own(path: str, lease: float) -> None:
    """Be the owner."""
    provider = LocalProvider(NODES)
    with NodePool(provider, min_nodes=NODES, lease=lease) as pool:
        running = [pool.submit(work.journalled, path, number, 600.0) for number in range(NODES)]
        queued = [pool.submit(work.journalled, path, NODES + number) for number in range(NODES)]
        pool.on("node_left", lambda _event: provider.add())
        print(*(node.pid for node in pool.nodes()), flush=True)
        print(*(type(task.exception()).__name__ for task in running), flush=True)
        print(*(task.result() for task in queued), flush=True)


@contextlib.contextmanager
def owner(journal: Journal, lease: float) -> Iterator[subprocess.Popen[str]]:
    """A process that owns a pool, when its tasks run."""
    process = subprocess.Popen(
        [sys.executable, "-m", "engine.local", journal.path, str(lease)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: len(journal.begun()) == NODES or process.poll() is not None, "the tasks to begin")
        yield process
    finally:
        process.kill()
        process.communicate()


if __name__ == "__main__":
    own(sys.argv[1], float(sys.argv[2]))
