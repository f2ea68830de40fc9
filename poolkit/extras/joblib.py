"""register: "poolkit" as a backend of joblib, for all that calls `joblib.Parallel`. Needs the extra `poolkit[joblib]`.

A batch of joblib's is a task: a crash, a limit or an abort ends that task, and nobody else's. Without a pool of the
user's there is one for each `n_jobs`, kept until the interpreter ends; its workers go after five idle minutes. Each
`Parallel` has a backend of its own, as joblib does not say whose work is to be aborted.
Guarded by: `_lock`: `_pools`. By the lock of the `Parallel`: `handles` of a `_Call`. Its other fields have no
lock: who submits adds the task and then looks at `over`, who aborts sets that and then looks at the tasks.
"""

from __future__ import annotations

import copy
import operator
import threading
import weakref
from collections.abc import Callable
from typing import Any

from joblib import _memmapping_reducer as mapping
from joblib import parallel as joblib

from poolkit import _child, _os
from poolkit._child.port import current_port
from poolkit._engine import lifetime
from poolkit._given import name_of
from poolkit._locks import RLock
from poolkit.context import current_task
from poolkit.errors import PoolkitError, QueueFull
from poolkit.face import PoolView
from poolkit.outcome import Outcome
from poolkit.pool import Pool
from poolkit.task import Task, settled_task

IDLE_SECONDS = 300.0  # as loky's
DEPTH = 3  # of lists, tuples and dicts in which arrays are looked for: the arguments, what is in them, and in that
MOST = 100  # what may be in one of them
_OF_OTHERS = frozenset({"context", "prefer", "require", "temp_folder", "verbose"})  # what joblib tells each backend
_PLAIN = frozenset({bool, bytes, float, int, str, type(None)})

_lock = RLock()
_pools: dict[tuple[Any, ...], Pool] = {}  # by n_jobs and environment
lifetime.locks.append(_lock)


def register(make_default: bool = False) -> None:
    """Tell joblib of the backend "poolkit"; `make_default`: for each `Parallel` that names none. Idempotent.

    `joblib.parallel_config("poolkit", n_jobs=4)`, or `parallel_config("poolkit", pool=pool)` with a pool or a view.
    """
    joblib.register_parallel_backend("poolkit", PoolkitBackend, make_default=make_default)


class _Call:
    """One call of a `Parallel`: where its tasks go, those that are not done, and whether it was aborted."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool
        self.tasks: set[Task[Any]] = set()
        self.over = False
        self.handles: dict[int, Any] = {}  # by id: a weak reference to an array, and what is sent for it


class PoolkitBackend(joblib.AutoBatchingMixin, joblib.ParallelBackendBase):  # type: ignore[misc]  # it has no types
    """Made by joblib, which calls its methods; they are described in joblib's `ParallelBackendBase`."""

    supports_retrieve_callback = supports_inner_max_num_threads = True
    parallel: Any = None

    def __init__(
        self, pool: Pool | PoolView | None = None, nesting_level: Any = None, inner_max_num_threads: Any = None
    ) -> None:
        """Raise TypeError if `pool` is none."""
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        if not isinstance(pool, Pool | PoolView | None):
            msg = f"pool must be a poolkit.Pool or a view of one, was {pool!r}"
            raise TypeError(msg)
        self._given: Any = pool
        self._pool: Any = pool
        self._kind = "process" if pool is None else getattr(pool, "_of", pool).kind  # type: ignore[union-attr]
        self.uses_threads = self.supports_sharedmem = self._kind == "thread"
        if pool is not None:
            self.default_n_jobs = -1
            self.supports_inner_max_num_threads = False  # its workers have their environment

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Count the workers; of a pool that was given, all of them. 1: in place, as in a task of a pool."""
        if n_jobs == 0:
            msg = "n_jobs == 0 in Parallel has no meaning"
            raise ValueError(msg)
        if n_jobs == 1 or _is_in_task() or (self.uses_threads and self.nesting_level):
            return 1
        if self._given is not None:
            return int(self._given.max_workers)
        if n_jobs is None:
            return 1
        return n_jobs if n_jobs > 0 else max(1, _os.usable_cpus() + 1 + n_jobs)

    def configure(
        self, n_jobs: int = 1, parallel: Any = None, max_nbytes: int | None = None, mmap_mode: Any = None, **more: Any
    ) -> int:
        """Get ready for a `Parallel`, which gets a backend of its own first."""
        if unknown := more.keys() - _OF_OTHERS:
            msg = f"this backend takes no {', '.join(sorted(unknown))}; make a Pool with all it needs: pool=Pool(...)"
            raise TypeError(msg)
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise joblib.FallbackToBackend(joblib.SequentialBackend(nesting_level=self.nesting_level))
        if self.parallel is not parallel:
            own = copy.copy(self)
            own.parallel = parallel
            raise joblib.FallbackToBackend(own)
        self._pool = self._given or _kept(n_jobs, self.inner_max_num_threads, self.MAX_NUM_THREADS_VARS)
        self._most_bytes = max_nbytes if mmap_mode == "r" else None
        return n_jobs

    def start_call(self) -> None:
        """Begin a call."""
        self._call = _Call(self._pool)

    def stop_call(self) -> None:
        """End it. What was broadcast goes with the last task that has it."""
        self._call.handles.clear()  # a weak reference that is kept leads back to it

    def terminate(self) -> None:
        """Forget the pool, which is kept."""
        self._pool = self._given
        self.reset_batch_stats()

    def abort_everything(self, ensure_ready: bool = True) -> None:  # noqa: ARG002 -- it always is
        """Cancel the tasks of this call, and stop those that run."""
        self._call.over = True
        for task in tuple(self._call.tasks):
            task.cancel()

    def compute_batch_size(self) -> int:
        """Go by measured times, as joblib does; but a limit is meant for one item, and so is a retry."""
        options = self._call.pool._options  # noqa: SLF001 -- of this library
        is_limited = options.timeout is not None or options.memory_limit is not None or options.retries
        return 1 if is_limited else int(super().compute_batch_size())

    def submit(self, func: Any, callback: Callable[[Any], object] | None = None) -> object:
        """Submit a batch; on the thread that calls `Parallel`, or in the done callback of an earlier one."""
        if self._kind != "thread":
            func.items = [
                (fn, args if _is_plain(args) else self._sent(args), kwargs and self._sent(kwargs))
                for fn, args, kwargs in func.items
            ]
        given = self._call, func, callback
        try:
            return _submit(*given)
        except QueueFull:  # a callback must not wait for room
            thread = threading.Thread(target=_submit, args=(*given, False), name="poolkit-joblib-submit", daemon=True)
            thread.start()
            return thread

    apply_async = submit  # before joblib 1.5

    def retrieve_result_callback(self, out: Task[Any]) -> Any:
        """Return or raise what a task gave."""
        return out.result()

    def _sent(self, value: Any, depth: int = DEPTH) -> Any:
        """Return what is sent for an argument: itself, unless there are arrays in it that the workers share."""
        kind = type(value)
        if kind.__module__ == "numpy" and kind.__name__ in {"ndarray", "memmap"}:
            return self._sent_array(value)
        if not depth or kind not in {list, tuple, dict} or len(value) > MOST:
            return value
        items = list(value.values() if kind is dict else value)
        sent = [self._sent(item, depth - 1) for item in items]
        if all(map(operator.is_, items, sent)):
            return value
        return dict(zip(value, sent, strict=True)) if kind is dict else kind(sent)

    def _sent_array(self, array: Any) -> Any:
        backing = mapping._get_backing_memmap(array)  # noqa: SLF001 -- what others would have to write again
        if type(backing).__name__ == "memmap" and self._kind == "process":  # there is a file already
            return _Sent(*mapping._reduce_memmap_backed(array, backing))  # noqa: SLF001 -- see above
        if self._most_bytes is None or array.nbytes <= self._most_bytes or array.dtype.hasobject:
            return array
        handles, key = self._call.handles, id(array)
        if key not in handles or handles[key][0]() is not array:
            try:
                handle = getattr(self._call.pool, "_of", self._call.pool).broadcast(array)
            except (
                OSError,
                PoolkitError,
            ):  # as there is no room: it goes with each task, in whatever way that can be sent
                return array
            handles[key] = weakref.ref(array, lambda _: handles.pop(key, None)), _Sent(_view, (handle,))
        return handles[key][1]


class _Sent:
    """Stands for an array in a call."""

    def __init__(self, *made: Any) -> None:
        self._made = made

    def __reduce__(self) -> Any:
        """Be what it is made of."""
        return self._made


def _view(array: Any) -> Any:
    """Run in a worker: an array of the task's own, read-only as the one that all see."""
    return array.view()


def _is_plain(args: tuple[Any, ...]) -> bool:
    """Whether there is nothing to be looked at, as in most of many small calls."""
    return _PLAIN.issuperset(map(type, args))


def _is_in_task() -> bool:
    """Whether this is a task of a pool, or another thread in its process; not a dedicated worker."""
    task = current_task()
    return not task.is_dedicated if task is not None else _child.is_here and current_port() is None


def _kept(n_jobs: int, threads: int | None, variables: list[str]) -> Pool:
    """Return the pool of so many workers, whose libraries have so many threads."""
    key = n_jobs, threads
    with _lock:
        pool = _pools.get(key)
        if pool is None or not pool._supervisor.is_open():  # noqa: SLF001 -- of this library; closed in a forked child
            env = {} if threads is None else dict.fromkeys(variables, str(threads))
            pool = Pool(n_jobs, name=f"joblib-{n_jobs}", idle_timeout=IDLE_SECONDS, preload=(__name__,), env=env)
            _pools[key] = pool
        return pool


def _submit(call: _Call, batch: Any, callback: Any, may_raise: bool = True) -> Task[Any]:
    pool = call.pool
    if pool._options.name is None:  # noqa: SLF001 -- of this library
        pool = pool.options(name=name_of(batch.items[0][0]))
    try:
        task: Task[Any] = pool.submit(_run, batch)
    except Exception as error:  # in a callback nobody would see it, and `Parallel` would wait for ever
        if may_raise and type(error) is QueueFull:
            raise
        task = settled_task("joblib", Outcome.failure(error))
    call.tasks.add(task)
    if call.over:
        task.cancel()

    def done(task: Any) -> None:
        call.tasks.discard(task)
        if callback is not None:
            callback(task)

    task.add_done_callback(done)
    return task


def _run(batch: Any) -> Any:
    """Run in a worker: call what is in a batch, which may name this backend again."""
    if "poolkit" not in joblib.BACKENDS:
        register()
    return batch()
