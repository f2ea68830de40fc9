"""Show what tasks cost that crash or hang on a cluster, and nodes that are killed: their own tasks, and no others.

Each node is a `dask worker`, three of them here, on this machine; on a real cluster they are started in the same way.
Tasks run in processes of poolkit's own under these, and are begun once, unless retries are asked for.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator

import poolkit
from poolkit.dask import DaskPool

NODES = 3


@contextlib.contextmanager
def cluster() -> Iterator[str]:
    """Start a scheduler and nodes, each with one worker; the address of the scheduler."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    node = "dask_worker", address, "--nthreads", "1", "--memory-limit", "0", "--no-nanny", "--no-dashboard"
    scheduler = "dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as programs:
        for name, *arguments in (scheduler, *[node] * NODES):
            command = [sys.executable, "-m", f"distributed.cli.{name}", *arguments]
            program = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            programs.callback(program.wait)
            programs.callback(program.terminate)
        yield address


def segfault() -> None:
    """Read where nothing is."""
    ctypes.string_at(0)


def hang() -> None:
    """Never end, and hold the lock of the interpreter meanwhile."""
    sum(iter(int, 1))


def greet(number: int) -> int:
    """Print something, where this runs."""
    print(f"  task {number} says hello")
    return number


def stay(number: int) -> int:
    """Never end, when this runs for the first time."""
    context = poolkit.current_task()
    if context is not None and context.attempt == 1:
        threading.Event().wait()
    return number


def tell(what: str, task: poolkit.Task[int] | poolkit.Task[None]) -> None:
    """Print how a task ended."""
    error = task.exception()
    if isinstance(error, poolkit.NodeLost):
        how = f"{type(error).__name__}, its connection was {error.reason}"
    elif isinstance(error, poolkit.WorkerCrashed):
        how = f"{type(error).__name__}, {error.signal} in {error.stack.splitlines()[-1].split()[-1]}()"
    elif isinstance(error, poolkit.TaskTimeout):
        how = f"{type(error).__name__}, after {error.timeout} s"
    else:
        how = f"its result, {task.result()}"
    print(f"{what}: {how}; begun {task.attempts}x")


def kill_tasks(pool: DaskPool) -> None:
    """Have tasks end in bad ways, beside others."""
    bad = pool.submit(segfault), pool.options(timeout=1).submit(hang)
    good = [pool.submit(greet, number) for number in range(4)]
    print(f"beside them: {[task.result() for task in good]}", flush=True)
    tell("a segfault", bad[0])
    tell("a hang", bad[1])
    print(f"{len(pool.nodes())} nodes are up, {pool.stats().crashed} worker has crashed")


def kill_nodes(pool: DaskPool) -> None:
    """Kill two nodes that run something, while more is queued."""
    begun = threading.Semaphore(0)
    pool.on("task_started", lambda _event: begun.release())
    tasks = pool.submit(stay, 1), pool.options(retries=1).submit(stay, 2)
    for _ in tasks:
        begun.acquire()
    queued = [pool.submit(abs, number) for number in range(20)]
    for node in pool.nodes():
        if node.address in {task.node for task in tasks}:
            os.kill(node.pid, signal.SIGKILL)
    tell("on a killed node", tasks[0])
    tell("the same, with a retry", tasks[1])
    print(f"queued meanwhile: {sum(task.exception() is None for task in queued)} of 20 have results")
    print(f"{len(pool.nodes())} node is up")


def main() -> None:
    """Have everything go wrong."""
    with cluster() as address, DaskPool(address, min_nodes=NODES) as pool:
        kill_tasks(pool)
        kill_nodes(pool)


if __name__ == "__main__":
    main()
