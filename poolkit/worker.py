"""Worker: a process, or thread, of its own for one function, with a channel to it.

It is a task on a hidden pool (`_engine/dedicated.py`), and the owner's end of a channel (`_child/port.py`). The channel
is shut when the task is done: what was sent before is still received, then the task tells how it ended.
Owner: whoever made the worker ends it, by `with`, `close` or `terminate`. Every method is thread-safe.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Optional, TypeVar

from poolkit import waiting
from poolkit._child.local_channel import LocalChannel, local_pair
from poolkit._child.port import Channel, Ends, Left, Port, countdown, run_target
from poolkit._child.socket_channel import socket_pair
from poolkit._core import options as checks
from poolkit._core.options import CallOptions
from poolkit._core.workforce import WorkerExited
from poolkit._engine.dedicated import DedicatedPool, pool_for
from poolkit._given import code_of, name_of, to_be_sent
from poolkit._kinds.settings import PoolSettings
from poolkit._owner import Arrivals
from poolkit.errors import ChannelClosed
from poolkit.task import Task

if TYPE_CHECKING:
    from typing_extensions import Self, TypeVarTuple, Unpack

    Ts = TypeVarTuple("Ts")
else:
    Self = Ts = Any  # for those who look at the annotations; not in CPython 3.10
    Unpack = Optional

T = TypeVar("T")

LEAVE_WITHIN = 5.0  # seconds that the end of a `with` gives a worker to end by itself

_numbers = itertools.count(1)


class _Run:
    """One dedicated worker from its start to its end, also when nobody has the `Worker` any more."""

    def __init__(self, pool: DedicatedPool, task: Task[Any], channel: Channel) -> None:
        self.engine, self.task, self.channel = pool.engine, task, channel
        self.exited: WorkerExited | None = None  # once it is
        self.gone = threading.Event()
        self._pools = [pool]  # to be released

    def begin(self) -> None:
        """Submit the task."""
        self.engine.listen("worker_exited", self._note_exit)
        try:
            self.engine.submit(self.task)
        except BaseException:
            self.engine.unlisten("worker_exited", self._note_exit)
            raise
        self.task.add_waker(self._task_done)

    def _task_done(self, task: Task[Any]) -> None:
        """A waker of the task, in whatever thread settles it."""
        self.channel.shut()
        if os.getpid() == self.engine.pid and (self.exited is not None or self.engine.is_over(task)):
            self._end()

    def _note_exit(self, event: WorkerExited) -> None:
        """A listener of the pool, on its callback thread."""
        if event.worker_id == self.task.worker_id:
            self.exited = event
            if self.task.done():
                self._end()

    def _end(self) -> None:
        self.gone.set()
        with contextlib.suppress(ValueError, IndexError):  # it was told twice
            self.engine.unlisten("worker_exited", self._note_exit)
            self._pools.pop().release()


class Worker(Ends, Generic[T]):
    """A process, or thread, that nobody had before, for one function; with a channel to it. Thread-safe.

    `with Worker(target) as worker:` tells it at the end that nothing more comes, gives it five seconds to return, and
    then terminates it. One that is dropped while it runs is terminated, and so are all when the interpreter ends.

    Attributes:
        task: what the target returned or raised, as of any task.
        name: for logs and errors.
    """

    def __init__(  # noqa: PLR0913 -- the contract
        self,
        target: Callable[[Port, Unpack[Ts]], T],
        /,
        *args: Unpack[Ts],
        kind: str = "process",
        name: str | None = None,
        preload: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        start_method: str | None = None,
        memory_limit: int | None = None,
        shm_threshold: int | None = 64 * 1024,
    ) -> None:
        """Start a worker that calls `target(port, *args)`; coroutines are run to their end. Does not block for it.

        Args:
            target: what to call; keyword arguments go into a `functools.partial`.
            args: its arguments, behind the port.
            kind: "process" or "thread".
            name: for logs and errors; None: the target's, with a number.
            preload: names of modules imported once, before workers fork.
            env: environment variables, set before anything is imported.
            start_method: of processes: "forkserver" (the default), "spawn" or "fork".
            memory_limit: bytes of memory of its own that the worker may use; process workers only.
            shm_threshold: buffers of so many bytes in a message lie in shared memory, and arrive writable; None: only
                what is too large for the channel.

        Raises:
            TypeError, ValueError: an argument has no sense.
            SerializationError: target or arguments cannot be pickled.
            RuntimeError: start_method="fork" while other threads run, or a platform without process workers.
            OSError: there are no more descriptors.
        """
        target = to_be_sent(target)
        settings = PoolSettings(1, kind, start_method, None, (), preload, env, shm_threshold)
        options = CallOptions().changed(memory_limit=memory_limit, name=name)
        self.name = options.name or f"{name_of(target)}-{next(_numbers)}"
        pool = pool_for(settings)
        try:
            self._begin(pool, target, args, options, settings)
        except BaseException:
            pool.release()
            raise

    def _begin(
        self,
        pool: DedicatedPool,
        target: Callable[..., T],
        args: tuple[Any, ...],
        options: CallOptions,
        settings: PoolSettings,
    ) -> None:
        engine, is_process = pool.engine, settings.kind == "process"
        why_not = engine.workforce.why_memory_unknown
        if options.memory_limit is not None and why_not is not None:
            msg = f"memory_limit={options.memory_limit!r} cannot be kept: {why_not}"
            raise ValueError(msg)
        with contextlib.ExitStack() as stack:
            channel: Channel
            theirs: Any
            if is_process:
                threshold = float("inf") if settings.shm_threshold is None else settings.shm_threshold
                channel, end, theirs = socket_pair(threshold, pool.sent())
                stack.callback(end.close)  # a copy of it is in the call
            else:
                channel, theirs = local_pair()
            call, nbytes = engine.workforce.pack(run_target, (theirs, target, args), {"is_process": is_process})
        self.task: Task[T] = Task(engine, options.name or name_of(target), call, options, nbytes, code_of(target))
        self._channel = channel
        self._is_closed = False
        run = _Run(pool, self.task, channel)
        run.begin()
        self._run = run

    @property
    def pid(self) -> int | None:
        """The process id; None before it is up, and of a thread."""
        exited = self._run.exited
        if isinstance(self._channel, LocalChannel):
            return None
        return self._run.engine.pid_of(self.task) if exited is None else exited.pid

    @property
    def alive(self) -> bool:
        """Whether it has not ended yet."""
        return not self._run.gone.is_set()

    def close(self) -> None:
        """Send nothing more: the worker's loop over its port ends after what was sent. Idempotent; does not block."""
        self._is_closed = True
        self._channel.close()

    def terminate(self, grace: float = 0.0) -> None:
        """Close, and stop the worker if it has not ended after `grace` seconds; its task is cancelled. Does not block.

        A coroutine is cancelled where it awaits; all else is killed, with what it started. A thread gets an exception,
        and is abandoned where it does not stop.
        """
        seconds = checks.wait_seconds("grace", grace)
        self.close()
        if seconds == 0.0:
            self.task.cancel()
        elif seconds is not None:
            self._run.engine.cancel_after(self.task, seconds)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until it is gone, for at most `timeout` seconds; return whether it is. In its callbacks, only look."""
        seconds = checks.wait_seconds("timeout", timeout)
        if self._run.engine.callbacks.thread.ident != threading.get_ident():
            self._run.gone.wait(None if seconds is None else min(seconds, threading.TIMEOUT_MAX))
        return self._run.gone.is_set()

    def __enter__(self) -> Self:
        """Use the worker as a context manager."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Close, and wait for its end; terminate it after five seconds, or where the block was interrupted."""
        self.close()
        try:
            if not waiting.is_interruption(exc) and self.join(LEAVE_WITHIN):
                return
        finally:
            self.terminate()
        self.join(LEAVE_WITHIN)

    async def __aenter__(self) -> Self:
        """Use the worker as an asynchronous context manager."""
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Do the same as `__exit__`, without blocking the event loop."""
        self.close()
        name = f"poolkit-{self.name}-exit"
        try:
            if not waiting.is_interruption(exc):
                await waiting.run_in_thread(self.join, LEAVE_WITHIN, name=name)
        finally:
            self.terminate()
            with waiting.shield():
                await waiting.run_in_thread(self.join, LEAVE_WITHIN, name=name)

    def _end(self, left: Left, *, sends: bool = False) -> BaseException:
        if sends and self._is_closed:
            return ChannelClosed(f"nothing can be sent to worker {self.name} any more: it was closed")
        try:
            error = self.task.exception(left())
        except CancelledError:
            return ChannelClosed(f"worker {self.name} was terminated")
        return ChannelClosed(f"worker {self.name} has ended") if error is None else _again(error)

    async def _end_async(self, *, sends: bool = False) -> BaseException:
        if not (self.task.done() or (sends and self._is_closed)):
            arrivals = Arrivals()
            arrivals.owner = self.task.add_waker(arrivals.ring)
            await waiting.wait_for(arrivals)
        return self._end(countdown(None), sends=sends)

    def __del__(self) -> None:
        """Warn about a worker that runs, and terminate it."""
        run = getattr(self, "_run", None)
        if run is not None and not run.task.done() and os.getpid() == run.engine.pid:
            run.engine.cancel_soon(run.task)  # before the warning, which may be made an error
            warnings.warn(
                f"{self!r} was dropped while it ran; use `with`, or keep it until it has ended",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    def __repr__(self) -> str:
        """Show name, process id and state."""
        return f"<poolkit.Worker {self.name!r} pid={self.pid} {'running' if self.alive else 'ended'}>"

    def __reduce__(self) -> NoReturn:
        """Refuse: a worker belongs to the process that made it."""
        msg = f"{self!r} cannot be pickled: it belongs to the process that made it"
        raise TypeError(msg)


def _again(error: BaseException) -> BaseException:
    """A new object of the same exception, as each of those who are told it adds to its traceback; or itself."""
    try:
        new = copy.copy(error)
    except Exception:  # noqa: BLE001 -- its own code
        return error
    if type(new) is not type(error):
        return error
    new.__cause__, new.__context__ = error.__cause__, error.__context__
    new.__suppress_context__ = error.__suppress_context__
    return new.with_traceback(error.__traceback__)
