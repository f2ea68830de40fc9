"""Pool and PoolView: what users submit to. Validation, defaults, delegation; no rule of its own.

Owner: whoever made the pool ends it, by `with` or `shutdown`. Every method is thread-safe.
"""

from __future__ import annotations

import itertools
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, overload

import poolkit
from poolkit import _os
from poolkit._core import options as checks
from poolkit._core.options import CallOptions, PoolLimits
from poolkit._engine import log_records  # noqa: F401 -- see there
from poolkit._kinds.settings import Context, PoolSettings, check_limits, start_method_of
from poolkit.broadcast import Shared, broadcast
from poolkit.face import Face

TYPE_CHECKING = False  # what is imported here is imported before the template process is started
if TYPE_CHECKING:
    from poolkit._engine.interface import PoolEngine

T = TypeVar("T")

_numbers = itertools.count(1)


class Pool(Face):
    """A pool of long-lived workers: a `concurrent.futures.Executor` that survives what its tasks do.

    Thread-safe. Workers start on demand. `with Pool() as pool:` waits for the accepted work when it is left.
    """

    def __init__(  # noqa: PLR0913 -- the contract
        self,
        max_workers: int | None = None,
        mp_context: Context | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        kind: Literal["process", "thread"] = "process",
        name: str | None = None,
        thread_name_prefix: str = "",
        timeout: float | None = None,
        retries: int = 0,
        max_queue: int | None = None,
        max_tasks_per_child: int | None = None,
        max_memory_per_child: int | None = None,
        min_workers: int | None = None,
        idle_timeout: float | None = None,
        start_method: Literal["forkserver", "spawn", "fork"] | None = None,
        preload: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        shm_threshold: int | None = 64 * 1024,
    ) -> None:
        """Make a pool.

        Args:
            max_workers: how many workers; None: the CPUs that this process may really use.
            mp_context: a context of multiprocessing, of which the start method counts; the same as `start_method`.
            initializer: called with `initargs` in every worker before it takes tasks.
            initargs: its arguments.
            kind: "process" or "thread".
            name: for logs and errors.
            thread_name_prefix: what the names of threads begin with, for kind="thread".
            timeout: seconds that a task may run by default; None: no limit.
            retries: how often a task runs again by default when its worker crashed.
            max_queue: how many tasks may wait; None: any number.
            max_tasks_per_child: a worker is replaced after so many tasks.
            max_memory_per_child: a worker is replaced when it uses more bytes of memory after a task.
            min_workers: with `idle_timeout`, how many stay.
            idle_timeout: seconds after which an idle worker is let go; None: never.
            start_method: of processes: "forkserver" (the default), "spawn" or "fork".
            preload: names of modules imported once, before workers fork.
            env: environment variables for the workers, set before anything is imported.
            shm_threshold: buffers of so many bytes travel in shared memory; None: never.

        Raises:
            TypeError, ValueError: an argument has no sense.
            SerializationError: the initializer or its arguments cannot be pickled.
            RuntimeError: start_method="fork" while other threads run.
        """
        size = _os.usable_cpus() if max_workers is None else checks.whole("max_workers", max_workers)
        method = start_method_of(mp_context, start_method)
        settings = PoolSettings(
            size, kind, method, initializer, initargs, preload, env, shm_threshold, thread_name_prefix
        )
        limits = check_limits(
            size,
            max_queue=max_queue,
            max_tasks_per_child=max_tasks_per_child,
            max_memory_per_child=max_memory_per_child,
            min_workers=min_workers,
            idle_timeout=idle_timeout,
        )
        self._options = CallOptions().changed(timeout=timeout, retries=retries)
        self._max_workers = size
        self._kind: str = kind
        self.name = checks.text_or_none("name", name) or f"{kind}-{next(_numbers)}"
        self._initargs = initargs  # multiprocessing's locks end with the owner's objects, and workers come later too
        self._supervisor = self._build(settings, limits)

    def _build(self, settings: PoolSettings, limits: PoolLimits) -> PoolEngine:
        """Make what drives the pool; of what was checked."""
        if settings.kind == "process":
            # The hooks of forks, before anything is there that a forked child must not have; not for threads.
            from poolkit._engine import lifetime  # noqa: PLC0415

            settings.share_cpus()
            lifetime.prepare(settings)
        # While the template process starts, all the rest is imported.
        from poolkit._engine.build import build  # noqa: PLC0415 -- see above

        return build(settings, limits, self.name)

    @property
    def max_workers(self) -> int:
        """How many workers there may be."""
        return self._max_workers

    @property
    def kind(self) -> str:
        """The kind of its workers."""
        return self._kind

    def warm_up(self, timeout: float | None = None) -> None:
        """Start every worker and wait until all are up and initialised. Blocks for at most `timeout` seconds.

        Raises:
            TimeoutError: some are not up after `timeout` seconds; they go on starting.
            InitializerFailed: the initializer raised; its exception is the cause.
            WorkerCrashed: workers die before they are ready.
            OSError: with EMFILE: there are not enough descriptors for all of them; some may be up.
            PoolClosed: after shutdown.
        """
        self._supervisor.warm_up(checks.wait_seconds("timeout", timeout))

    def stats(self) -> poolkit.PoolStats:
        """A snapshot of counts, times and sizes. Thread-safe; does not block."""
        return self._supervisor.stats()

    def workers(self) -> list[poolkit.WorkerInfo]:
        """What each worker is doing now. Thread-safe; does not block."""
        return self._supervisor.workers()

    def stacks(self, timeout: float = 0.5) -> dict[int, str]:
        """Where each busy worker is: the Python stack of its task, most recent call first, by the worker's id.

        Also in C code that does not let other threads run; needs no privileges. "" of a worker that does not say within
        `timeout` seconds, or is just being stopped, and of workers of a fake pool. A process is asked by a signal
        (SIGXFSZ, and a real-time one while it is in C): what it waits for goes on, but calls of the system that cannot
        be restarted, as those of sleeps and polls in C code, may return early with EINTR; Python repeats its own. No
        task is stopped. Thread-safe; blocks for at most `timeout` seconds.

        Raises:
            TypeError, ValueError: `timeout` is no number of seconds.
            PoolClosed: in a forked child of the owner. PoolkitError: in a signal handler that interrupted the pool.
        """
        seconds = checks.wait_seconds("timeout", timeout)
        return self._supervisor.stacks(math.inf if seconds is None else seconds)

    @overload
    def on(self, event: Literal["worker_started"], callback: Callable[[poolkit.WorkerStarted], object]) -> None: ...
    @overload
    def on(self, event: Literal["worker_exited"], callback: Callable[[poolkit.WorkerExited], object]) -> None: ...
    @overload
    def on(self, event: Literal["task_started"], callback: Callable[[poolkit.TaskStarted], object]) -> None: ...
    @overload
    def on(self, event: Literal["task_done"], callback: Callable[[poolkit.TaskDone], object]) -> None: ...
    @overload
    def on(self, event: Literal["task_retried"], callback: Callable[[poolkit.TaskRetried], object]) -> None: ...
    @overload
    def on(self, event: str, callback: Callable[[Any], object]) -> None: ...
    def on(self, event: str, callback: Callable[[Any], object]) -> None:
        """Call `callback(event)` at each event of a kind; what it raises is logged.

        One at a time, in order, on the thread on which done callbacks are called: a slow one delays those, and no task.
        Thread-safe; does not block.

        Args:
            event: "worker_started", "worker_exited", "task_started", "task_done" or "task_retried".
            callback: gets one frozen record: a `poolkit.WorkerStarted`, `WorkerExited`, `TaskStarted`, `TaskDone` or
                `TaskRetried`.

        Raises:
            ValueError: there is no such event.
            TypeError: the callback cannot be called.
        """
        if not callable(callback):
            msg = f"callback must be something to call, was {callback!r}"
            raise TypeError(msg)
        self._supervisor.listen(_check_event(event), callback)

    def off(self, event: str, callback: Callable[[Any], object]) -> None:
        """Undo one `on`. Thread-safe; does not block.

        Raises:
            ValueError: there is no such event, or the callback was not listening to it.
        """
        self._supervisor.unlisten(_check_event(event), callback)

    def trace(self, path: str | os.PathLike[str] | None = None, *, most: int = 1_000_000) -> poolkit.Trace:
        """Take down what the pool does from now on, until the trace is stopped or the pool has ended.

        With a `path` that ends with ".json" it is written there as it goes, twice a second, as Chrome trace events. The
        last `most` runs are kept in memory, for `poolkit.Trace.save()`. Thread-safe; does not
        block; several traces at once are fine.

        Raises:
            ValueError, TypeError: `path` ends otherwise; `most` is no positive whole number.
            OSError: the file cannot be written.
            PoolClosed, InitializerFailed: the pool has ended.
        """
        from poolkit.trace import Trace  # noqa: PLC0415 -- for who wants one

        return Trace(self._supervisor, self.name, path, checks.whole("most", most))

    def resize(self, max_workers: int) -> None:
        """Change the number of workers while the pool runs; running tasks of surplus workers end first.

        Thread-safe; does not block.

        Raises:
            ValueError, TypeError: not a positive whole number.
            PoolClosed: after shutdown.
        """
        size = checks.whole("max_workers", max_workers)
        self._supervisor.resize(size)
        self._max_workers = size

    def broadcast(self, obj: T) -> Shared[T]:
        """Pack `obj` once, for many calls: passed as an argument, the handle arrives as the object itself.

        A process worker loads it at most once, when it first needs it, with read-only arrays; threads get `obj`.
        Dropped or closed, the handle frees the memory, in the workers too. Thread-safe; blocks as long as it packs.

        Raises:
            SerializationError: it cannot be pickled.
            OSError: there is no memory for it.
        """
        return Shared(None, obj) if self._supervisor.workforce.by_reference else broadcast(obj)

    def cancel_all(self) -> None:
        """Cancel all that is queued and stop all that runs. Thread-safe; does not block."""
        self._supervisor.cancel_all()

    def __del__(self) -> None:
        """Warn about a pool that was not shut down; the accepted work is finished all the same."""
        supervisor = getattr(self, "_supervisor", None)
        if supervisor is not None and supervisor.is_open() and supervisor.pid == os.getpid():
            text = f"{self!r} was not shut down; use `with` or shutdown()"
            supervisor.drop()  # before the warning, which may be made an error
            warnings.warn(text, ResourceWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        """Show name, kind and size."""
        state = "open" if self._supervisor.is_open() else "closed"
        return f"<poolkit.Pool {self.name!r} kind={self._kind} max_workers={self._max_workers} {state}>"


def _check_event(event: str) -> str:
    from poolkit._core.workforce import EVENT_NAMES  # noqa: PLC0415 -- see above

    if event not in EVENT_NAMES:
        msg = f"there is no event {event!r}; there are {', '.join(EVENT_NAMES)}"
        raise ValueError(msg)
    return event
