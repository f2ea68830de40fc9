"""Broken: the errors that are also `BrokenProcessPool`. They belong to `poolkit.errors`, which says why."""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool

from poolkit._root_error import PoolkitError


class WorkerCrashed(PoolkitError, BrokenProcessPool):
    """The worker died while it ran this task; no other task was touched.

    Attributes:
        exitcode: the exit code, or None when a signal ended the worker.
        signal: the signal's name, for example "SIGSEGV", or None.
        pid: process id of the dead worker.
        worker_id: the worker's id in its pool.
        stack: the Python stack at a fatal signal, innermost frame first; "" when there was none.
        peak_rss: the most resident memory the worker ever used, in bytes, or None when not known.
        output: the last lines that the task printed, 4 KiB at most; not what other programs or C code wrote.
        hint: what most likely happened, in words.
    """

    __module__ = "poolkit.errors"  # where it is to be found, also by pickle

    def __init__(  # noqa: PLR0913 -- the facts of a crash, all by keyword
        self,
        message: str = "",
        *,
        exitcode: int | None = None,
        signal: str | None = None,
        pid: int | None = None,
        worker_id: int | None = None,
        stack: str = "",
        peak_rss: int | None = None,
        output: str = "",
        hint: str = "",
    ) -> None:
        super().__init__(message)
        self.exitcode = exitcode
        self.signal = signal
        self.pid = pid
        self.worker_id = worker_id
        self.stack = stack
        self.peak_rss = peak_rss
        self.output = output
        self.hint = hint


class InitializerFailed(PoolkitError, BrokenProcessPool):
    """The pool's initializer raised in a worker; `__cause__` is what it raised. The pool has stopped."""

    __module__ = "poolkit.errors"  # where it is to be found, also by pickle


class NodeLost(WorkerCrashed):
    """The node that ran this task is gone: the machine, the connection to it, or the process that stood for it.

    Attributes:
        node: the address of the node.
        host: the name of its machine.
        reason: "closed" (its process ended), "silent" (not heard of for longer than its lease), "retired" (taken away)
            or "scheduler" (the cluster's scheduler is gone).
        begun: True; None where nobody can know whether it began.
    """

    __module__ = "poolkit.errors"  # where it is to be found, also by pickle

    def __init__(
        self,
        message: str = "",
        *,
        node: str = "",
        host: str = "",
        reason: str = "closed",
        begun: bool | None = None,
        worker_id: int | None = None,
    ) -> None:
        super().__init__(message, worker_id=worker_id)
        self.node = node
        self.host = host
        self.reason = reason
        self.begun = begun
